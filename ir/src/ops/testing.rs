//! Holds an op's `lower` against its `eval`, down to nests and kernels.

use std::collections::HashMap;

use super::{Lowered, Op, OpDef as _, Recurrence};
use crate::dtype::DType;
use crate::graph::Graph;
use crate::interpret::eval_op;
use crate::loops::interpret::{Region, run_kernel, run_program};
use crate::loops::interpret_nest;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// The op's results by `eval`, after checking their types and that `lower` gives the same.
pub(crate) fn check(op: impl Into<Op>, ins: &[Tensor]) -> Vec<Tensor> {
    let op = op.into();
    let expected = eval_op(&op, ins).expect("the op evaluates");
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    let outs = op.infer(&types.iter().collect::<Vec<_>>()).expect("the operands fit");
    for (tensor, ty) in expected.iter().zip(&outs) {
        assert!(
            tensor.dtype() == ty.dtype
                && tensor.rank() == ty.rank()
                && tensor.ty().dims.iter().zip(&ty.dims).all(|(a, b)| a.may_equal(b)),
            "{op:?} gives {}, infers {ty}",
            tensor.ty()
        );
    }
    let actual: Vec<TensorType> = expected.iter().map(Tensor::ty).collect();
    assert_close(&run_lowered(&op, ins, &actual), &expected, &format!("{op:?}"));
    expected
}

/// The results within a few units of f16, f32 or f64; integers exactly.
pub(crate) fn assert_close(found: &[Tensor], expected: &[Tensor], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert_eq!(a.ty(), b.ty(), "{what}");
        let tolerance = match a.dtype() {
            DType::F16 => 2e-3,
            DType::BF16 => 2e-2,
            DType::F32 => 1e-5,
            DType::F64 => 1e-12,
            _ => 0.0,
        };
        for (i, (x, y)) in a.to_f64s().into_iter().zip(b.to_f64s()).enumerate() {
            let close = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * y.abs().max(1.0);
            assert!(close, "{what}: element {i} is {x}, expected {y}");
        }
    }
}

/// An f32 tensor of values that look random, the same every time.
pub(crate) fn sample(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
            if dtype.is_float() { unit * 4.0 - 2.0 } else { (unit * 20.0).floor() - 5.0 }
        })
        .collect();
    match dtype.is_unsigned_int() {
        true => Tensor::from_f64s(dtype, shape, &values.iter().map(|v| v.abs()).collect::<Vec<_>>()),
        false => Tensor::from_f64s(dtype, shape, &values),
    }
}

/// The op's results by `lower`.
pub(crate) fn lowered(op: &Op, ins: &[Tensor]) -> Vec<Tensor> {
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    let outs = op.infer(&types.iter().collect::<Vec<_>>()).expect("the operands fit");
    run_lowered(op, ins, &outs)
}

fn run_lowered(op: &Op, ins: &[Tensor], outs: &[TensorType]) -> Vec<Tensor> {
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    match op.lower(&types, outs).expect("the op lowers") {
        Lowered::Nest(nest) => interpret_nest(&nest, ins).expect("the nest runs"),
        Lowered::Graph(graph) => run_graph(&graph, ins),
        Lowered::Kernel(kernel) => {
            let mut results: Vec<Tensor> =
                outs.iter().map(|ty| Tensor::zeros(ty.dtype, &ty.shape())).collect();
            let mut regions: Vec<Region<'_>> = ins.iter().map(|t| Region::Read(t.bytes())).collect();
            regions.extend(results.iter_mut().map(|t| Region::Write(t.bytes_mut())));
            run_kernel(&kernel, &mut regions).expect("the kernel runs");
            drop(regions);
            results
        }
        Lowered::Recurrence(recurrence) => {
            let [results, others] = [384, 1536].map(|sum_bytes| {
                let panels = recurrence.panels(sum_bytes).into_iter().flat_map(|panel| {
                    interpret_nest(&panel, &ins[Recurrence::WEIGHTS..][..1]).expect("the formula runs")
                });
                let mut ins = ins.to_vec();
                ins.splice(Recurrence::WEIGHTS..=Recurrence::WEIGHTS, panels.collect::<Vec<_>>());
                let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
                let program = recurrence.rounds(sum_bytes).to_program(&types, outs);
                run_program(&program, &ins).expect("the rounds run")
            });
            assert!(results.iter().zip(&others).all(|(a, b)| a.bytes() == b.bytes()), "other bits");
            results
        }
        Lowered::Repeated(repeated) => run_graph(&repeated.copied(&types).expect("the body is copied"), ins),
        Lowered::Interpret => eval_op(op, ins).expect("the op evaluates"),
    }
}

fn run_graph(graph: &Graph, ins: &[Tensor]) -> Vec<Tensor> {
    crate::graph::verify(graph).expect("the body is valid");
    let mut values: HashMap<_, Tensor> =
        graph.inputs().iter().map(|(_, v)| *v).zip(ins.iter().cloned()).collect();
    for (_, data) in graph.nodes() {
        let ins: Vec<Tensor> = data.ins.iter().map(|v| values[v].clone()).collect();
        let outs: Vec<TensorType> = data.outs.iter().map(|&v| graph.ty(v).clone()).collect();
        let results = match &*data.op {
            Op::Constant(constant) => constant.eval(&[]).expect("constants evaluate"),
            op => run_lowered(op, &ins, &outs),
        };
        values.extend(data.outs.iter().copied().zip(results));
    }
    graph.outputs().iter().map(|(_, v)| values[v].clone()).collect()
}
