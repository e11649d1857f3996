//! Hand-written kernels that read columns: native code against the loop interpreter, bit for bit.

mod common;

use common::check;
use windlass_codegen::{Target, ssa_text};
use windlass_ir::loops::LoopKind::{Parallel, Serial, Vector};
use windlass_ir::loops::{KernelBuilder, Role};
use windlass_ir::{DType, ScalarFn};

#[test]
fn transposes_are_strided() {
    let (rows, cols) = (13, 37);
    let mut b = KernelBuilder::new("transpose");
    let x = b.buffer("x", DType::F32, rows * cols, Role::In);
    let y = b.buffer("y", DType::F32, cols * rows, Role::Out);
    b.repeat(Parallel, cols, |b, j| {
        b.repeat(Vector, rows, |b, i| {
            let v = b.load(x, i.mul(cols as i64).add(&j));
            b.store(y, j.mul(rows as i64).add(&i), v);
        });
    });
    check(b.finish());
    let mut b = KernelBuilder::new("scatter_stride");
    let x = b.buffer("x", DType::I16, 100, Role::In);
    let y = b.buffer("y", DType::I16, 300, Role::InOut);
    b.repeat(Vector, 100, |b, i| {
        let v = b.load(x, i.mul(-1).add_const(99));
        b.store(y, i.mul(3), v);
    });
    check(b.finish());
}

/// Columns of words are made of rows of them, whatever is done with the lanes then.
#[test]
fn columns_of_words_that_become_wider() {
    let (rows, cols) = (29, 37);
    for lanes in [4, 8] {
        let mut b = KernelBuilder::new("columns");
        let x = b.buffer("x", DType::F32, rows * cols, Role::In);
        let scale = b.buffer("scale", DType::F64, rows, Role::In);
        let y = b.buffer("y", DType::F32, (rows - lanes + 1) * cols * lanes, Role::Out);
        b.repeat(Parallel, rows - lanes + 1, |b, first| {
            b.repeat(Serial, cols, |b, j| {
                b.repeat(Vector, lanes, |b, i| {
                    let row = first.add(&i);
                    let v = b.load(x, row.mul(cols as i64).add(&j));
                    let wide = b.apply(ScalarFn::Cast(DType::F64), &[v]);
                    let by = b.load(scale, row);
                    let scaled = b.apply(ScalarFn::Mul, &[wide, by]);
                    let v = b.apply(ScalarFn::Cast(DType::F32), &[scaled]);
                    b.store(y, first.mul((cols * lanes) as i64).add(&j.mul(lanes as i64)).add(&i), v);
                });
            });
        });
        let kernel = b.finish();
        for bits in [256, 512] {
            let target = Target::parse("x86_64-unknown-linux-gnu").unwrap();
            let target = Target { cpu: Some("x86-64-v4".to_string()), ..target };
            let text = ssa_text(&kernel, &target, Some(bits)).unwrap();
            assert!(text.contains("zip"), "{lanes} lanes at {bits} bits: {text}");
        }
        check(kernel);
    }
}
