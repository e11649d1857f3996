//! Kernels that break one invariant each.

use super::*;
use crate::loops::KernelBuilder;
use crate::scalar::ScalarFn;

fn refused(kernel: &Kernel) -> &'static str {
    match verify_kernel(kernel) {
        Err(Error::Verify { invariant, .. }) => invariant,
        other => panic!("{other:?}"),
    }
}

fn kernel(build: impl FnOnce(&mut KernelBuilder, Buffer, Buffer)) -> Kernel {
    let mut b = KernelBuilder::new("k");
    let x = b.buffer("x", DType::F32, 16, Role::In);
    let y = b.buffer("y", DType::F32, 16, Role::Out);
    build(&mut b, x, y);
    b.finish()
}

#[test]
fn accesses_stay_inside_where_guards_hold() {
    let shifted = |guard: bool| {
        kernel(|b, x, y| {
            b.repeat(LoopKind::Vector, 16, |b, i| {
                let at = i.add_const(-1);
                let guards = if guard { vec![Guard::new(at.clone(), 16)] } else { vec![] };
                let v = b.load_guarded(x, at, guards);
                b.store(y, i, v);
            });
        })
    };
    verify_kernel(&shifted(true)).unwrap();
    assert_eq!(refused(&shifted(false)), "L6");
}

#[test]
fn prefetches_name_memory_and_stand_outside_of_lanes() {
    verify_kernel(&kernel(|b, x, y| {
        let stack = b.buffer("stack", DType::F32, 16, Role::Stack);
        b.prefetch(x, Index::constant(1 << 40));
        b.prefetch(y, Index::constant(-1));
        b.prefetch(stack, Index::constant(0));
    }))
    .unwrap();
    let of_registers = kernel(|b, _, _| {
        let tile = b.buffer("tile", DType::F32, 16, Role::Register);
        b.prefetch(tile, Index::constant(0));
    });
    assert_eq!(refused(&of_registers), "L5");
    let in_lanes = kernel(|b, x, _| b.repeat(LoopKind::Vector, 16, |b, i| b.prefetch(x, i)));
    assert_eq!(refused(&in_lanes), "L8");
}

#[test]
fn lanes_are_independent() {
    let prefix_sum = kernel(|b, _, _| {
        let acc = b.buffer("acc", DType::F32, 16, Role::Stack);
        b.repeat(LoopKind::Vector, 15, |b, i| {
            let (p, q) = (b.load(acc, i.clone()), b.load(acc, i.add_const(1)));
            let sum = b.apply(ScalarFn::Add, &[p, q]);
            b.store(acc, i.add_const(1), sum);
        });
    });
    assert_eq!(refused(&prefix_sum), "L8");
    let fold = kernel(|b, _, _| {
        let acc = b.buffer("acc", DType::F32, 16, Role::Register);
        b.repeat(LoopKind::Vector, 8, |b, i| {
            let (p, q) = (b.load(acc, i.clone()), b.load(acc, i.add_const(8)));
            let sum = b.apply(ScalarFn::Add, &[p, q]);
            b.store(acc, i, sum);
        });
    });
    verify_kernel(&fold).unwrap();
}

#[test]
fn scopes_roles_and_types() {
    let escaped = kernel(|b, x, y| {
        let mut inner = None;
        b.repeat(LoopKind::Serial, 4, |b, i| inner = Some(b.load(x, i)));
        b.store(y, Index::constant(0), inner.unwrap());
    });
    assert_eq!(refused(&escaped), "L2");
    let stored = kernel(|b, x, _| {
        let v = b.load(x, Index::constant(0));
        b.store(x, Index::constant(0), v);
    });
    assert_eq!(refused(&stored), "L5");
    let mistyped = kernel(|b, _, y| {
        let v = b.constant(DType::I32, 1.0);
        b.store(y, Index::constant(0), v);
    });
    assert_eq!(refused(&mistyped), "L4");
    let register = kernel(|b, _, _| {
        let acc = b.buffer("acc", DType::F32, 4, Role::Register);
        b.repeat(LoopKind::Serial, 4, |b, i| {
            let v = b.constant(DType::F32, 0.0);
            b.store(acc, i, v);
        });
    });
    assert_eq!(refused(&register), "L10");
    let parallel = kernel(|b, x, y| {
        b.repeat(LoopKind::Parallel, 4, |b, i| {
            let v = b.load(x, i);
            b.store(y, Index::constant(0), v);
        });
    });
    assert_eq!(refused(&parallel), "L7");
}
