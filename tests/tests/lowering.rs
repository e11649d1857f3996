//! Every op's `lower` agrees with its `eval`.

use windlass_ir::ops::{Elementwise, MatMul, Op, Reduce, ReduceKind, Transpose};
use windlass_ir::{DType, ScalarFn, Tensor};
use windlass_tests::lowering::{Checked, check_lowering};

/// A tensor of small values, some of them negative, none 0.
fn sample(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let len: usize = shape.iter().product();
    let value = |i: usize| (((i + seed) * 7 + 3) % 23) as f64 - 11.25;
    Tensor::from_f64s(dtype, shape, &(0..len).map(value).collect::<Vec<_>>())
}

fn check(op: impl Into<Op>, ins: &[Tensor]) {
    let op = op.into();
    match check_lowering(&op, ins) {
        Ok(Checked::Nest) => {}
        other => panic!("{op:?} on {ins:?}: {other:?}"),
    }
}

#[test]
fn scalar_functions_on_every_type_they_take() {
    for &f in ScalarFn::PLAIN {
        for dtype in DType::ALL {
            let mut types = vec![dtype; f.arity()];
            if f == ScalarFn::Select {
                types[0] = DType::Bool;
            }
            if f.result_type(&types).is_err() {
                continue;
            }
            let ins: Vec<Tensor> =
                types.iter().enumerate().map(|(i, &t)| sample(t, &[3, 1, 5][i % 2..], i)).collect();
            check(Elementwise { f }, &ins);
        }
    }
    for from in DType::ALL {
        for to in DType::ALL {
            if from != to {
                check(Elementwise { f: ScalarFn::Cast(to) }, &[sample(from, &[2, 7], 1)]);
            }
        }
    }
}

#[test]
fn products_reductions_and_movement() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64, DType::I32, DType::U8] {
        let (a, b) = (sample(dtype, &[2, 1, 3, 4], 0), sample(dtype, &[5, 4, 6], 5));
        check(MatMul { trans_a: false, trans_b: false }, &[a, b]);
        let (a, b) = (sample(dtype, &[4, 3], 0), sample(dtype, &[6, 4], 5));
        check(MatMul { trans_a: true, trans_b: true }, &[a, b]);
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Prod, ReduceKind::Max, ReduceKind::Min] {
            for keep in [false, true] {
                check(Reduce::over(kind, &[0, -1], keep), &[sample(dtype, &[3, 4, 2], 2)]);
            }
        }
        check(Transpose { perm: vec![2, 0, 1] }, &[sample(dtype, &[2, 3, 4], 1)]);
    }
}
