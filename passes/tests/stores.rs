//! Formulas of each element of a kernel's result, computed where the kernel stores it.

mod common;

use common::{build, f32s, ramp};
use windlass_ir::ops::{Cumulative, CumulativeKind, ScatterNd, ScatterReduction, Transpose, Winograd};
use windlass_ir::{Builder, DType, ScalarFn, Tensor, Value};
use windlass_passes::lower::{LowerOptions, lower};

/// How many steps a graph takes, which is checked.
fn steps(name: &str, body: impl FnOnce(&mut Builder) -> Vec<Value>) -> usize {
    lower(&build(name, body), &LowerOptions::default()).unwrap().steps.len()
}

/// The same of what is made of the results of Winograd's last transform.
fn steps_after(name: &str, body: impl FnOnce(&mut Builder, Value) -> Vec<Value>) -> usize {
    steps(name, |b| {
        let sums = b.input("sums", f32s(&[36, 15, 40]));
        let y = b.push1(Winograd::output(&[1, 9, 19]), &[sums]).unwrap();
        body(b, y)
    })
}

#[test]
fn formulas_of_single_elements_are_computed_where_they_are_stored() {
    let found = steps_after("relu", |b, y| vec![b.map(ScalarFn::Relu, &[y]).unwrap()]);
    assert_eq!(found, 1);
    // Other operands are read at the same place, at one channel's, or at any.
    let found = steps_after("operands", |b, y| {
        let image = b.input("image", f32s(&[1, 9, 19, 40]));
        let other = b.input("other", f32s(&[1, 19, 9, 40]));
        let scale = b.constant(ramp(&[40], 2));
        let turned = b.push1(Transpose { perm: vec![0, 2, 1, 3] }, &[other]).unwrap();
        let y = b.map(ScalarFn::Mul, &[y, scale]).unwrap();
        let y = b.map(ScalarFn::Add, &[y, image]).unwrap();
        vec![b.map(ScalarFn::Max, &[y, turned]).unwrap()]
    });
    assert_eq!(found, 1);
    let found = steps_after("another type", |b, y| {
        let y = b.cast(y, DType::F64).unwrap();
        vec![b.map(ScalarFn::Neg, &[y]).unwrap()]
    });
    assert_eq!(found, 1);
}

#[test]
fn other_readers_read_what_is_stored() {
    let twice = steps_after("twice", |b, y| vec![b.map(ScalarFn::Relu, &[y]).unwrap(), y]);
    assert_eq!(twice, 2);
    let elsewhere =
        steps_after("elsewhere", |b, y| vec![b.push1(Transpose { perm: vec![0, 2, 1, 3] }, &[y]).unwrap()]);
    assert_eq!(elsewhere, 2);
    let squared = steps_after("its own operand", |b, y| vec![b.map(ScalarFn::Mul, &[y, y]).unwrap()]);
    assert_eq!(squared, 1);
}

/// A scatter stores all elements and then some again.
#[test]
fn elements_that_are_stored_twice() {
    for reduction in [ScatterReduction::None, ScatterReduction::Add] {
        build("scatter", |b| {
            let x = b.input("x", f32s(&[6, 40]));
            let updates = b.input("updates", f32s(&[3, 40]));
            let rows = b.constant(Tensor::new(&[3, 1], &[4i64, 0, 4]));
            let y = b.push1(ScatterNd { reduction }, &[x, rows, updates]).unwrap();
            vec![b.map(ScalarFn::Relu, &[y]).unwrap()]
        });
    }
}

/// What adds up one element after another, without lanes, is no place for what lanes compute.
#[test]
fn running_sums_are_stored_first() {
    let found = steps("sums", |b| {
        let x = b.input("x", f32s(&[7, 33]));
        let kind = CumulativeKind::Sum;
        let sum = Cumulative { kind, axis: vec![1].into(), exclusive: false, reverse: false };
        let y = b.push1(sum, &[x]).unwrap();
        vec![b.map(ScalarFn::Exp, &[y]).unwrap()]
    });
    assert_eq!(found, 2);
}
