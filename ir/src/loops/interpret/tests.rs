//! A register tile, and guards, by hand.

use super::*;
use crate::loops::{KernelBuilder, Role};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;

#[test]
fn a_matrix_product_in_a_register_tile() {
    let (m, n, k) = (3, 4, 5);
    let mut b = KernelBuilder::new("product");
    let x = b.buffer("x", DType::F32, m * k, Role::In);
    let y = b.buffer("y", DType::F32, k * n, Role::In);
    let z = b.buffer("z", DType::F32, m * n, Role::Out);
    let acc = b.buffer("acc", DType::F32, n, Role::Register);
    b.repeat(LoopKind::Parallel, m, |b, row| {
        b.repeat(LoopKind::Vector, n, |b, col| {
            let zero = b.constant(DType::F32, 0.0);
            b.store(acc, col, zero);
        });
        b.repeat(LoopKind::Serial, k, |b, i| {
            b.repeat(LoopKind::Vector, n, |b, col| {
                let p = b.load(x, row.mul(k as i64).add(&i));
                let q = b.load(y, i.mul(n as i64).add(&col));
                let sum = b.load(acc, col.clone());
                let sum = b.apply(ScalarFn::Fma, &[p, q, sum]);
                b.store(acc, col, sum);
            });
        });
        b.repeat(LoopKind::Vector, n, |b, col| {
            let sum = b.load(acc, col.clone());
            b.store(z, row.mul(n as i64).add(&col), sum);
        });
    });
    let kernel = b.finish();
    let p = Tensor::from_fn::<f32>(&[m, k], |i| i as f32);
    let q = Tensor::from_fn::<f32>(&[k, n], |i| 1.0 - i as f32);
    for order in [Order::Forward, Order::Backward] {
        let mut out = Tensor::zeros(DType::F32, &[m, n]);
        let mut args = [Region::Read(p.bytes()), Region::Read(q.bytes()), Region::Write(out.bytes_mut())];
        let places = [0, 1, 2].map(|region| Argument { region, offset: 0 });
        Prepared::new(&kernel).unwrap().run(&mut args, &places, order).unwrap();
        let (p, q) = (p.to_f64s(), q.to_f64s());
        let expected: Vec<f64> =
            (0..m * n).map(|i| (0..k).map(|j| p[i / n * k + j] * q[j * n + i % n]).sum()).collect();
        assert_eq!(out.to_f64s(), expected);
    }
}

#[test]
fn guards_keep_loads_inside() {
    let mut b = KernelBuilder::new("pad");
    let x = b.buffer("x", DType::I16, 3, Role::In);
    let y = b.buffer("y", DType::I16, 5, Role::Out);
    b.repeat(LoopKind::Vector, 5, |b, i| {
        let at = i.add_const(-1);
        let v = b.load_guarded(x, at.clone(), vec![Guard::new(at, 3)]);
        b.store(y, i, v);
    });
    let kernel = b.finish();
    let x = Tensor::new::<i16>(&[3], &[-1, 2, 3]);
    let mut y = Tensor::zeros(DType::I16, &[5]);
    run_kernel(&kernel, &mut [Region::Read(x.bytes()), Region::Write(y.bytes_mut())]).unwrap();
    assert_eq!(y.to_ints(), [0, -1, 2, 3, 0]);
}
