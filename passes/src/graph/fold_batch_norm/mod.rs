//! `fold_batch_norm`: batch norms, and what else scales and shifts channels by constants, into the
//! weights and bias of the convolution or matrix product before (or after).
//!
//! With `f = scale / sqrt(variance + epsilon)` a batch norm is `x * f + (bias - mean * f)`. Rules:
//!
//! - `batch_norm`: after a convolution, or a matrix product with constant weights and perhaps a
//!   constant bias, f scales the weights of each output channel;
//! - `into_batch_norm`: a product or sum with a constant a channel after a batch norm changes the batch
//!   norm's scale and bias;
//! - `as_affine`: elsewhere a batch norm becomes one product and one sum, which fuse with anything;
//! - `scale`, `bias`: a product or sum with a constant a channel after a convolution does the same;
//! - `before`: scaling and shifting channels before a convolution without padding scales the weights
//!   of each input channel, and adds to the bias what the shift contributes.
//!
//! Weights are computed in f64 and rounded once, so only rounding changes. What is to be done to them is
//! added to the graph as nodes, and not evaluated here. Weights that other nodes share are left to them:
//! each gets its own.

mod before;

use std::sync::Arc;

use windlass_ir::graph::Values;
use windlass_ir::ops::{BatchNorm, Elementwise, MatMul};
use windlass_ir::{Builder, DType, Edit, Graph, Node, Op, ScalarFn, Tensor, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::{is_known, scaled};
use crate::manager::Pass;
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "fold_batch_norm", help: "fold scales and shifts of channels into weights", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    // First among themselves, so that weights are computed once.
    let merged = rewrite(graph, cx, |edit, node, cx| match *graph.node(node).op {
        Op::Elementwise(Elementwise { f: f @ (ScalarFn::Mul | ScalarFn::Add | ScalarFn::Sub) }) => {
            into_batch_norm(edit, node, f, cx)
        }
        _ => Ok(None),
    })?;
    Ok(match &merged {
        Some(merged) => into_weights(merged, cx)?.or_else(|| Some(merged.clone())),
        None => into_weights(graph, cx)?,
    })
}

fn into_weights(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    rewrite(graph, cx, |edit, node, cx| {
        if !cx.has_fuel() {
            return Ok(None);
        }
        match &*graph.node(node).op {
            Op::BatchNorm(op) => batch_norm(edit, node, op, cx),
            Op::Elementwise(Elementwise { f: f @ (ScalarFn::Mul | ScalarFn::Add | ScalarFn::Sub) }) => {
                scale_or_bias(edit, node, *f, cx)
            }
            Op::Conv(op) => before::before(edit, node, op, cx),
            _ => Ok(None),
        }
    })
}

/// `x * factor + shift`, a number a channel.
struct Affine {
    factor: Vec<f64>,
    shift: Vec<f64>,
}

fn batch_norm(
    edit: &mut Edit<'_>,
    node: Node,
    op: &BatchNorm,
    cx: &mut PassCx,
) -> Result<Option<Values>, Error> {
    const RULE: &str = "batch_norm";
    let describe = || edit.old().describe(node);
    let ins = edit.map_all(&edit.old().node(node).ins);
    let [x, statistics @ ..] = ins.as_slice() else { return Ok(None) };
    let numbers = |value: &Value| edit.graph().as_constant(*value).map(Tensor::to_f64s);
    let Some(statistics) = statistics.iter().map(numbers).collect::<Option<Vec<_>>>() else {
        let what = || Reason::NotConstant { what: "a scale, bias, mean or variance".to_string() };
        cx.blocked(RULE, describe, what);
        return Ok(None);
    };
    let [scale, bias, mean, variance] = statistics.as_slice() else { return Ok(None) };
    let factor: Vec<f64> = scale.iter().zip(variance).map(|(s, v)| s / (v + op.epsilon).sqrt()).collect();
    let shift = bias.iter().zip(mean).zip(&factor).map(|((b, m), f)| b - m * f).collect();
    let affine = Affine { factor, shift };
    match linear(edit, *x, op.channels_last) {
        Ok(linear) => {
            if !cx.fire(RULE, || edit.old().describe(node)) {
                return Ok(None);
            }
            return Ok(Some(linear.rebuilt(edit.builder(), &affine)?));
        }
        Err(reason) => cx.blocked(RULE, || edit.old().describe(node), || reason),
    }
    let ty = edit.graph().ty(*x).clone();
    if !matches!(ty.dtype, DType::F32 | DType::F64) {
        // A batch norm rounds once, a product and a sum twice.
        cx.blocked(
            "as_affine",
            || edit.old().describe(node),
            || Reason::Type { what: "the operand", found: ty.clone() },
        );
        return Ok(None);
    }
    if !cx.fire("as_affine", || edit.old().describe(node)) {
        return Ok(None);
    }
    let mut shape = vec![affine.factor.len()];
    if !op.channels_last {
        shape.extend(vec![1; ty.rank() - 2]);
    }
    let b = edit.builder();
    let factor = b.constant(Tensor::from_f64s(ty.dtype, &shape, &affine.factor));
    let shift = b.constant(Tensor::from_f64s(ty.dtype, &shape, &affine.shift));
    let scaled = b.map(ScalarFn::Mul, &[*x, factor])?;
    Ok(Some(Values::from_slice(&[b.map(ScalarFn::Add, &[scaled, shift])?])))
}

/// A product or sum after a batch norm, with the channel's number in its scale and bias.
fn into_batch_norm(
    edit: &mut Edit<'_>,
    node: Node,
    f: ScalarFn,
    cx: &mut PassCx,
) -> Result<Option<Values>, Error> {
    const RULE: &str = "into_batch_norm";
    let ins = edit.map_all(&edit.old().node(node).ins);
    let built = edit.graph();
    let orders = if f == ScalarFn::Sub { &[(0, 1)][..] } else { &[(0, 1), (1, 0)][..] };
    for &(x, c) in orders {
        let (Some(data), Some(constant)) = (built.def_node(ins[x]), built.as_constant(ins[c])) else {
            continue;
        };
        let Op::BatchNorm(op) = &*data.op else { continue };
        let ty = built.ty(ins[x]);
        let channel = if op.channels_last { ty.rank() - 1 } else { 1 };
        let numbers = per_channel(constant, ty.rank(), channel, ty.dims[channel].as_fixed());
        let parameters = [1, 2].map(|i| built.as_constant(data.ins[i]));
        let (Some(numbers), [Some(scale), Some(bias)]) = (numbers, parameters) else { continue };
        if edit.old_uses(ins[x]) > 1 {
            let reason = Reason::OtherReaders {
                value: "the batch norm".into(),
                readers: edit.old_uses(ins[x]),
                expected: 1,
            };
            cx.blocked(RULE, || edit.old().describe(node), || reason);
            continue;
        }
        let apply = |tensor: &Tensor, g: fn(f64, f64) -> f64| {
            let new: Vec<f64> = tensor.to_f64s().iter().zip(&numbers).map(|(&a, &n)| g(a, n)).collect();
            Tensor::from_f64s(tensor.dtype(), tensor.shape(), &new)
        };
        let (scale, bias) = match f {
            ScalarFn::Mul => (apply(scale, |a, n| a * n), apply(bias, |a, n| a * n)),
            ScalarFn::Add => (scale.clone(), apply(bias, |a, n| a + n)),
            _ => (scale.clone(), apply(bias, |a, n| a - n)),
        };
        let (op, mut new) = (op.clone(), data.ins.clone());
        if !cx.fire(RULE, || edit.old().describe(node)) {
            return Ok(None);
        }
        let b = edit.builder();
        (new[1], new[2]) = (b.constant(scale), b.constant(bias));
        return Ok(Some(Values::from_slice(&[b.push1(op, &new)?])));
    }
    Ok(None)
}

fn scale_or_bias(
    edit: &mut Edit<'_>,
    node: Node,
    f: ScalarFn,
    cx: &mut PassCx,
) -> Result<Option<Values>, Error> {
    let ins = edit.map_all(&edit.old().node(node).ins);
    let built = edit.graph();
    // The operand that a convolution makes, and the one that is a constant.
    let is_conv = |v: Value| matches!(built.def_node(v).map(|n| &*n.op), Some(Op::Conv(_)));
    let (x, constant) = match (is_conv(ins[0]), is_conv(ins[1])) {
        (true, false) => (ins[0], ins[1]),
        (false, true) if f != ScalarFn::Sub => (ins[1], ins[0]),
        _ => return Ok(None),
    };
    let Some(tensor) = built.as_constant(constant).cloned() else { return Ok(None) };
    let Some(Op::Conv(conv)) = built.def_node(x).map(|n| &*n.op) else { return Ok(None) };
    let rule = if f == ScalarFn::Mul { "scale" } else { "bias" };
    let ty = built.ty(x).clone();
    let channel = if conv.channels_last { ty.rank() - 1 } else { 1 };
    let numbers = per_channel(&tensor, ty.rank(), channel, ty.dims[channel].as_fixed());
    let found = match numbers {
        None => Err(Reason::Form { expected: "a number a channel".into(), found: tensor.ty().to_string() }),
        Some(numbers) => linear(edit, x, conv.channels_last).map(|linear| (numbers, linear)),
    };
    match found {
        Err(reason) => {
            cx.blocked(rule, || edit.old().describe(node), || reason);
            Ok(None)
        }
        Ok((numbers, linear)) => {
            if !cx.fire(rule, || edit.old().describe(node)) {
                return Ok(None);
            }
            let (ones, zeros) = (vec![1.0; numbers.len()], vec![0.0; numbers.len()]);
            let affine = match f {
                ScalarFn::Mul => Affine { factor: numbers, shift: zeros },
                ScalarFn::Add => Affine { factor: ones, shift: numbers },
                _ => Affine { factor: ones, shift: numbers.iter().map(|x| -x).collect() },
            };
            Ok(Some(linear.rebuilt(edit.builder(), &affine)?))
        }
    }
}

/// One number a channel, from a constant that broadcasts to `rank` dimensions and varies along the
/// channel only.
fn per_channel(tensor: &Tensor, rank: usize, channel: usize, channels: Option<usize>) -> Option<Vec<f64>> {
    let channels = channels?;
    let skipped = rank.checked_sub(tensor.rank())?;
    let along = channel.checked_sub(skipped).map_or(1, |d| tensor.shape()[d]);
    if tensor.len() != along || !(along == 1 || along == channels) {
        return None;
    }
    let numbers = tensor.to_f64s();
    Some((0..channels).map(|c| numbers[if along == 1 { 0 } else { c }]).collect())
}

/// A convolution or matrix product whose weights may be rewritten.
struct Linear {
    op: Arc<Op>,
    name: Option<Arc<str>>,
    x: Value,
    weights: Value,
    /// The dimension of the weights that counts output channels.
    out_dim: usize,
    bias: Option<Tensor>,
    channels: usize,
}

/// What makes `value`, if scaling and shifting its channels can move into it.
fn linear(edit: &Edit<'_>, value: Value, channels_last: bool) -> Result<Linear, Reason> {
    let built = edit.graph();
    let form = |v: Value| Reason::Form {
        expected: "a convolution or matrix product".into(),
        found: match built.def_node(v) {
            Some(data) => data.name.as_deref().unwrap_or(data.op.name()).to_string(),
            None => "an input".to_string(),
        },
    };
    let single = |v: Value| match edit.old_uses(v) {
        0 | 1 => Ok(()),
        readers => {
            let value = built.def_node(v).map_or("input", |n| n.op.name()).to_string();
            Err(Reason::OtherReaders { value, readers, expected: 1 })
        }
    };
    let constant = |v: Value, what: &str| {
        built.as_constant(v).cloned().ok_or_else(|| Reason::NotConstant { what: what.to_string() })
    };
    let weights = |v: Value| match is_known(built, v) {
        true => Ok(v),
        false => Err(Reason::NotConstant { what: "the weight".to_string() }),
    };
    let size = |v: Value, dim: usize| built.ty(v).shape()[dim];
    let data = built.def_node(value).ok_or_else(|| form(value))?;
    if !built.ty(value).dtype.is_float() {
        return Err(Reason::Type { what: "the operand", found: built.ty(value).clone() });
    }
    match &*data.op {
        Op::Conv(op) if op.channels_last == channels_last => {
            single(value)?;
            let weights = weights(data.ins[1])?;
            let out_dim = if op.channels_last { built.ty(weights).rank() - 1 } else { 0 };
            let bias = data.ins.get(2).map(|&v| constant(v, "the bias")).transpose()?;
            let channels = size(weights, out_dim);
            Ok(Linear {
                op: data.op.clone(),
                name: data.name.clone(),
                x: data.ins[0],
                weights,
                out_dim,
                bias,
                channels,
            })
        }
        // The channels of a matrix product are its columns: rank 2, or channels last.
        Op::MatMul(op) if built.ty(value).rank() == 2 || channels_last => {
            single(value)?;
            let weights = weights(data.ins[1])?;
            let out_dim = built.ty(weights).rank() - if op.trans_b { 2 } else { 1 };
            let channels = size(weights, out_dim);
            Ok(Linear {
                op: data.op.clone(),
                name: data.name.clone(),
                x: data.ins[0],
                weights,
                out_dim,
                bias: None,
                channels,
            })
        }
        Op::Elementwise(Elementwise { f: ScalarFn::Add }) => {
            single(value)?;
            let rank = built.ty(value).rank();
            for (product, bias) in [(data.ins[0], data.ins[1]), (data.ins[1], data.ins[0])] {
                let is_product = matches!(built.def_node(product).map(|n| &*n.op), Some(Op::MatMul(_)));
                let Some(bias) = built.as_constant(bias).filter(|_| is_product) else { continue };
                let mut found = linear(edit, product, channels_last)?;
                let numbers = per_channel(bias, rank, rank - 1, Some(found.channels))
                    .ok_or_else(|| Reason::NotConstant { what: "a bias a column".to_string() })?;
                found.bias = Some(Tensor::from_f64s(bias.dtype(), &[numbers.len()], &numbers));
                return Ok(found);
            }
            Err(form(value))
        }
        _ => Err(form(value)),
    }
}

impl Linear {
    /// The same with its results scaled and shifted.
    fn rebuilt(&self, b: &mut Builder, affine: &Affine) -> Result<Values, Error> {
        b.set_name(self.name.clone());
        let dtype = b.ty(self.weights).dtype;
        let weights = scaled(b, self.weights, self.out_dim, &affine.factor)?;
        let old_bias = self.bias.as_ref().map_or_else(|| vec![0.0; self.channels], Tensor::to_f64s);
        let bias: Vec<f64> =
            old_bias.iter().zip(&affine.factor).zip(&affine.shift).map(|((b, f), s)| b * f + s).collect();
        let bias = b.constant(Tensor::from_f64s(dtype, &[self.channels], &bias));
        Ok(match &*self.op {
            Op::MatMul(op) => {
                let product = b.push1(MatMul::clone(op), &[self.x, weights])?;
                Values::from_slice(&[b.map(ScalarFn::Add, &[product, bias])?])
            }
            op => Values::from_slice(&[b.push1(op.clone(), &[self.x, weights, bias])?]),
        })
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::TensorType;
    use windlass_ir::ops::Conv;

    use super::*;
    use crate::testing::{after, blocked, graph, ops, seeded, weights};

    fn norm(b: &mut Builder, x: Value, channels: usize) -> Value {
        let mut ins = vec![x];
        ins.extend((1..4).map(|seed| weights(b, &[channels], seed)));
        let variance = seeded(&TensorType::fixed(DType::F32, &[channels]), 4).to_f64s();
        let variance: Vec<f64> = variance.iter().map(|v| v.abs() + 0.1).collect();
        ins.push(b.constant(Tensor::from_f64s(DType::F32, &[channels], &variance)));
        b.push1(BatchNorm { epsilon: 1e-5, channels_last: false }, &ins).unwrap()
    }

    fn conv(b: &mut Builder, x: Value, shape: &[usize], op: Conv) -> Value {
        let w = weights(b, shape, 9);
        b.push1(op, &[x, w]).unwrap()
    }

    #[test]
    fn into_a_convolution_with_groups_and_without() {
        for group in [1, 2] {
            let g = graph(&[&[2, 4, 5, 5]], |b, x| {
                let op = Conv { group, pads: vec![1; 4], ..Conv::plain() };
                let y = conv(b, x[0], &[6, 4 / group as usize, 3, 3], op);
                let y = norm(b, y, 6);
                let (two, shift) = (b.scalar_like(y, 2.0), weights(b, &[6, 1, 1], 12));
                let y = b.map(ScalarFn::Mul, &[two, y])?;
                Ok(smallvec![b.map(ScalarFn::Sub, &[y, shift])?])
            });
            assert_eq!(ops(&after(&g, &["fold_batch_norm", "fold"]).0), "conv 1");
        }
    }

    #[test]
    fn into_a_matrix_product_and_its_bias() {
        let g = graph(&[&[3, 4]], |b, x| {
            let w = weights(b, &[5, 4], 3);
            let y = b.push1(MatMul { trans_a: false, trans_b: true }, &[x[0], w])?;
            let bias = weights(b, &[5], 6);
            let y = b.map(ScalarFn::Add, &[bias, y])?;
            Ok(smallvec![norm(b, y, 5)])
        });
        assert_eq!(ops(&after(&g, &["fold_batch_norm", "fold"]).0), "add 1, matmul 1");
    }

    #[test]
    fn shared_results_block_and_become_affine() {
        let g = graph(&[&[2, 4, 5, 5]], |b, x| {
            let y = conv(b, x[0], &[6, 4, 3, 3], Conv::plain());
            Ok(smallvec![y, norm(b, y, 6)])
        });
        let (g, records) = after(&g, &["fold_batch_norm", "fold"]);
        assert_eq!(ops(&g), "add 1, conv 1, mul 1");
        assert!(matches!(blocked(&records, "batch_norm"), Some(Reason::OtherReaders { readers: 2, .. })));
    }

    #[test]
    fn before_a_convolution_without_padding() {
        for group in [1, 2] {
            let g = graph(&[&[2, 4, 5, 5]], |b, x| {
                let y = norm(b, x[0], 4);
                let op = Conv { group, ..Conv::plain() };
                Ok(smallvec![conv(b, y, &[6, 4 / group as usize, 3, 3], op)])
            });
            assert_eq!(ops(&after(&g, &["fold_batch_norm", "fold"]).0), "conv 1");
        }
    }

    #[test]
    fn padding_is_not_shifted() {
        let g = graph(&[&[2, 4, 5, 5]], |b, x| {
            let y = norm(b, x[0], 4);
            Ok(smallvec![conv(b, y, &[6, 4, 3, 3], Conv { pads: vec![1; 4], ..Conv::plain() })])
        });
        let (g, records) = after(&g, &["fold_batch_norm", "fold"]);
        assert_eq!(ops(&g), "add 1, conv 1, mul 1");
        assert_eq!(blocked(&records, "before"), Some(&Reason::Unsound("padding is not shifted")));
    }

    #[test]
    fn a_bias_that_varies_over_space_stays() {
        let g = graph(&[&[2, 4, 5, 5]], |b, x| {
            let y = conv(b, x[0], &[6, 4, 3, 3], Conv::plain());
            let bias = weights(b, &[3, 3], 6);
            Ok(smallvec![b.map(ScalarFn::Add, &[y, bias])?])
        });
        let (_, records) = after(&g, &["fold_batch_norm", "fold"]);
        assert!(matches!(blocked(&records, "bias"), Some(Reason::Form { .. })), "{records:?}");
    }
}
