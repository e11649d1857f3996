//! Losses, written in log-softmax, gathers and reductions.

use windlass_ir::ops::ReduceKind;
use windlass_ir::{DType, ScalarFn, Tensor, Value, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::invalid;
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("NegativeLogLikelihoodLoss", negative_log_likelihood),
    entry("SoftmaxCrossEntropyLoss", softmax_cross_entropy),
];

fn negative_log_likelihood(cx: &mut NodeCx<'_, '_>) -> Imported {
    let log_probabilities = cx.input(0)?;
    Ok(vec![likelihood_loss(cx, log_probabilities)?])
}

fn softmax_cross_entropy(cx: &mut NodeCx<'_, '_>) -> Imported {
    let scores = cx.input(0)?;
    let log_probabilities = cx.push(ops::Softmax { log: true, axis: 1, masked: false }, &[scores])?;
    Ok(vec![likelihood_loss(cx, log_probabilities)?, log_probabilities])
}

/// The loss of `[N, C, d..]` logarithms against classes `[N, d..]`: minus what stands at each class,
/// times the class' weight, and nothing for the ignored class. The mean is over weights.
fn likelihood_loss(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let (classes, weights) = (cx.input(1)?, cx.optional(2));
    if cx.rank(x) < 2 || cx.rank(classes) + 1 != cx.rank(x) {
        invalid!("{} does not hold a class for each row of {}", cx.ty(classes), cx.ty(x));
    }
    let ignored = cx.int("ignore_index")?;
    let reduction = cx.string_or("reduction", "mean")?;
    let dtype = cx.dtype_of(x);
    let wide = cx.cast(x, dtype.accumulator())?;
    let mut classes = cx.cast(classes, DType::I64)?;
    let mut counted = None;
    if let Some(ignored) = ignored {
        let ignored = cx.add_constant(Tensor::scalar(ignored));
        let counts = cx.map(ScalarFn::Ne, &[classes, ignored])?;
        let first = cx.scalar_like(classes, 0.0);
        classes = cx.map(ScalarFn::Select, &[counts, classes, first])?;
        counted = Some(counts);
    }
    let column = cx.unsqueeze(classes, &[1])?;
    let picked = cx.push(ops::GatherElements { axis: 1 }, &[wide, column])?;
    let picked = cx.squeeze(picked, &[1])?;
    let mut loss = cx.map(ScalarFn::Neg, &[picked])?;
    let mut weight = match weights {
        Some(weights) => {
            let weights = cx.cast(weights, dtype.accumulator())?;
            let weight = cx.push(ops::Gather { axis: 0 }, &[weights, classes])?;
            loss = cx.map(ScalarFn::Mul, &[loss, weight])?;
            Some(weight)
        }
        None => None,
    };
    if let Some(counted) = counted {
        let zero = cx.scalar_like(loss, 0.0);
        loss = cx.map(ScalarFn::Select, &[counted, loss, zero])?;
        weight = Some(match weight {
            Some(weight) => cx.map(ScalarFn::Select, &[counted, weight, zero])?,
            None => cx.cast(counted, dtype.accumulator())?,
        });
    }
    let axes: Vec<i64> = (0..cx.rank(loss) as i64).collect();
    let total = ops::Reduce::over(ReduceKind::Sum, &axes, false);
    let result = match (reduction.as_str(), weight) {
        ("none", _) => loss,
        ("sum", _) => cx.push(total, &[loss])?,
        ("mean", None) => cx.push(ops::Reduce::over(ReduceKind::Mean, &axes, false), &[loss])?,
        ("mean", Some(weight)) => {
            let (loss, weight) = (cx.push(total.clone(), &[loss])?, cx.push(total, &[weight])?);
            cx.map(ScalarFn::Div, &[loss, weight])?
        }
        (other, _) => invalid!("attribute `reduction` is `{other}`"),
    };
    cx.cast(result, dtype)
}
