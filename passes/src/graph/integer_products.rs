//! `integer_products`: convolutions and matrix products of dequantized operands as those of integers, and those of
//! integers as those of bytes.
//!
//! A sum of products of `(x - zx) * sx` and `(w - zw) * sw` is `sx * sw` times a sum of products of integers,
//! which is exact and which machines compute faster than floats, from operands of a quarter of their size:
//!
//! ```text
//! sum (x - zx) * (w - zw) = sum x * (w - zw) - zx * sum (w - zw)
//! ```
//!
//! The second sum is known with the weight, so activations are multiplied as they are, unsigned; signed ones with 128
//! added to them and to their zero point. It may be known only when it runs, as where activations are quantized by their
//! own least and greatest. Operands have an even number of steps afterwards, zeros added, since
//! machines take those in pairs.

use std::collections::BTreeSet;

use windlass_ir::graph::Values;
use windlass_ir::ops::{Pad, PadMode, Reduce, ReduceKind, Reshape};
use windlass_ir::{Builder, DType, Graph, Node, Op, ScalarFn, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::known::is_known;
use crate::manager::Pass;
use crate::reason::Reason;
use crate::rewrite::rewrite;

/// The pass.
pub const PASS: Pass =
    Pass { name: "integer_products", help: "products of dequantized operands as products of integers", run };

const RULE: &str = "integer_products";

/// The most that the product of two centered bytes can be.
const LARGEST_PRODUCT: u64 = 255 * 255;

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let mut plans: Vec<(Node, Result<Plan, Reason>)> =
        graph.nodes().filter_map(|(node, _)| Some((node, plan(graph, node)?))).collect();
    // What is multiplied as integers is not kept in another form too: its other readers dequantize the integers.
    let multiplied: BTreeSet<Value> =
        plans.iter().filter_map(|(_, plan)| Some(plan.as_ref().ok()?.a.x)).collect();
    plans.reverse();
    rewrite(graph, cx, |edit, node, cx| {
        let describe = || graph.describe(node);
        if let Some((_, plan)) = plans.pop_if(|(planned, _)| *planned == node) {
            let plan = match plan {
                Ok(plan) => plan,
                Err(reason) => {
                    cx.blocked(RULE, describe, || reason);
                    return Ok(None);
                }
            };
            if !cx.fire(RULE, describe) {
                return Ok(None);
            }
            let plan = plan.map(|v| edit.map(v));
            return Ok(Some(Values::from_slice(&[plan.build(edit.builder(), &graph.node(node).op)?])));
        }
        let Some(shared) = Quantized::of(graph, graph.node(node).outs[0]) else { return Ok(None) };
        if !multiplied.contains(&shared.x) || !shared.is_uniform(graph) || !cx.fire("dequantize", describe) {
            return Ok(None);
        }
        let shared = shared.map(|v| edit.map(v));
        let b = edit.builder();
        let mut x = shared.unsigned(b)?;
        if let Some(zero) = shared.unsigned_zero(b)? {
            x = b.map(ScalarFn::Sub, &[x, zero])?;
        }
        let scale = shared.scale.expect("it is dequantized");
        let (x, scale) = (b.cast(x, DType::F32)?, b.push1(Reshape::to(&[]), &[scale])?);
        Ok(Some(Values::from_slice(&[b.map(ScalarFn::Mul, &[x, scale])?])))
    })
}

/// The operands of a `dequantize_linear` of bytes to f32, or of what is `x - zero_point` in i32.
#[derive(Clone, Copy)]
struct Quantized {
    x: Value,
    /// None for integers.
    scale: Option<Value>,
    zero_point: Option<Value>,
    /// Where scales lie, if there are several.
    axis: i64,
}

impl Quantized {
    /// What a value is dequantized from, without blocks.
    fn of(graph: &Graph, value: Value) -> Option<Quantized> {
        let data = graph.def_node(value)?;
        let Op::DequantizeLinear(op) = &*data.op else { return None };
        let (x, scale, zero_point) = (data.ins[0], data.ins[1], data.ins.get(2).copied());
        let bytes = matches!(graph.ty(x).dtype, DType::I8 | DType::U8);
        let floats = op.to == DType::F32 && graph.ty(scale).dtype == DType::F32;
        let zero_point = zero_point.filter(|&zero| !is_zero(graph, zero));
        (bytes && floats && graph.ty(scale).rank() <= 1).then_some(Quantized {
            x,
            scale: Some(scale),
            zero_point,
            axis: op.axis,
        })
    }

    /// The bytes that a value of integers is, less a zero point if there is one.
    fn of_integers(graph: &Graph, value: Value) -> Option<Quantized> {
        let applied = |value: Value, f: ScalarFn| {
            let data = graph.def_node(value)?;
            matches!(&*data.op, Op::Elementwise(op) if op.f == f).then_some(&data.ins)
        };
        let (wide, zero_point) = match applied(value, ScalarFn::Sub) {
            Some(ins) => (ins[0], Some(ins[1])),
            None => (value, None),
        };
        let x = applied(wide, ScalarFn::Cast(DType::I32))?[0];
        let whole = graph.ty(value).dims == graph.ty(x).dims;
        let bytes = matches!(graph.ty(x).dtype, DType::I8 | DType::U8) && whole;
        bytes.then_some(Quantized { x, scale: None, zero_point, axis: 0 })
    }

    /// Whether all elements have one scale and one zero point.
    fn is_uniform(&self, graph: &Graph) -> bool {
        self.zero_point.into_iter().chain(self.scale).all(|v| graph.ty(v).as_len() == Some(1))
    }

    /// Whether elements have the same scale and zero point wherever they are alike along one axis.
    fn lies_along(&self, graph: &Graph, axis: usize) -> bool {
        let rank = graph.ty(self.x).rank() as i64;
        let counted = self.zero_point.into_iter().chain(self.scale).all(|v| graph.ty(v).as_len().is_some());
        self.is_uniform(graph) || counted && self.axis.rem_euclid(rank) == axis as i64
    }

    fn map(self, map: impl Fn(Value) -> Value) -> Quantized {
        Quantized {
            x: map(self.x),
            scale: self.scale.map(&map),
            zero_point: self.zero_point.map(&map),
            axis: self.axis,
        }
    }

    /// `x` as i32, 128 more if it is signed.
    fn unsigned(&self, b: &mut Builder) -> Result<Value, Error> {
        let signed = b.ty(self.x).dtype == DType::I8;
        let x = b.cast(self.x, DType::I32)?;
        if signed { raised(b, x) } else { Ok(x) }
    }

    /// The zero point of that, if there is one.
    fn unsigned_zero(&self, b: &mut Builder) -> Result<Option<Value>, Error> {
        let signed = b.ty(self.x).dtype == DType::I8;
        let zero = match self.zero_point {
            Some(zero) => {
                let zero = b.push1(Reshape::to(&[]), &[zero])?;
                b.cast(zero, DType::I32)?
            }
            None if signed => b.scalar(DType::I32, 0.0),
            None => return Ok(None),
        };
        if signed { raised(b, zero).map(Some) } else { Ok(Some(zero)) }
    }

    /// `x - zero_point` as i32, the zero points along a dimension if there are several.
    fn centered(&self, b: &mut Builder, dim: usize) -> Result<Value, Error> {
        let x = b.cast(self.x, DType::I32)?;
        let Some(zero) = self.zero_point else { return Ok(x) };
        let zero = along(b, zero, x, dim)?;
        let zero = b.cast(zero, DType::I32)?;
        Ok(b.map(ScalarFn::Sub, &[x, zero])?)
    }
}

/// 128 more.
fn raised(b: &mut Builder, x: Value) -> Result<Value, Error> {
    let half = b.scalar(DType::I32, 128.0);
    Ok(b.map(ScalarFn::Add, &[x, half])?)
}

fn is_zero(graph: &Graph, value: Value) -> bool {
    graph.as_constant(value).is_some_and(|constant| constant.bytes().iter().all(|&byte| byte == 0))
}

/// A vector as a factor of `value` along one of its dimensions, whose size is known; the only element of one as a
/// scalar.
fn along(b: &mut Builder, vector: Value, value: Value, dim: usize) -> Result<Value, Error> {
    let ty = b.ty(value);
    let shape = match b.ty(vector).as_len() {
        Some(1) => Vec::new(),
        _ => (0..ty.rank()).map(|d| if d == dim { ty.dims[d].as_fixed().unwrap_or(1) } else { 1 }).collect(),
    };
    Ok(b.push1(Reshape::to(&shape), &[vector])?)
}

/// A product as one of integers.
#[derive(Clone, Copy)]
struct Plan {
    a: Quantized,
    b: Quantized,
    /// The dimensions of `a` and `b` that are summed over, apart from a convolution's kernel.
    depth: [usize; 2],
    /// Their size.
    steps: usize,
    /// The dimensions of `b` and of the result along which `b` may have scales.
    channels: [usize; 2],
    /// Whether the sum is also over a kernel.
    window: bool,
    bias: Option<Value>,
}

/// How to compute a node as a product of integers, if it is a product of dequantized operands.
fn plan(graph: &Graph, node: Node) -> Option<Result<Plan, Reason>> {
    let data = graph.node(node);
    if !matches!(*data.op, Op::Conv(_) | Op::MatMul(_)) {
        return None;
    }
    let [x, w] = [data.ins[0], data.ins[1]];
    let (a, b) = match Quantized::of(graph, x).zip(Quantized::of(graph, w)) {
        Some(dequantized) => dequantized,
        None => integers(graph, x, w)?,
    };
    let (a_ty, b_ty, y_ty) = (graph.ty(a.x), graph.ty(b.x), graph.ty(data.outs[0]));
    let (a_rank, b_rank) = (a_ty.rank(), b_ty.rank());
    let (depth, channels, taps, group) = match &*data.op {
        Op::Conv(op) if op.channels_last => {
            ([a_rank - 1, b_rank - 2], [b_rank - 1; 2], 0..b_rank - 2, op.group)
        }
        Op::Conv(op) => ([1, 1], [0, 1], 2..b_rank, op.group),
        Op::MatMul(op) => {
            let (row, column) = (b_rank - 2, b_rank - 1);
            let (summed, kept) = if op.trans_b { (column, row) } else { (row, column) };
            ([a_rank - 1 - usize::from(op.trans_a), summed], [kept, y_ty.rank() - 1], 0..0, 1)
        }
        _ => return None,
    };
    let window = matches!(*data.op, Op::Conv(_));
    let Some(shape) = b_ty.as_shape() else {
        return Some(Err(Reason::UnknownSize { what: format!("{b_ty}") }));
    };
    let steps = shape[depth[1]];
    if !a.is_uniform(graph) || !b.lies_along(graph, channels[0]) {
        let expected = "a scale for all elements, or for each output channel of the weight".to_string();
        return Some(Err(Reason::Form { expected, found: format!("{a_ty} and {b_ty}") }));
    }
    if !is_known(graph, b.x) {
        return Some(Err(Reason::NotConstant { what: format!("the weight {b_ty}") }));
    }
    if steps < 2 || group > 1 && steps % 2 == 1 {
        let expected = "channels that are summed in pairs".to_string();
        return Some(Err(Reason::Form { expected, found: format!("{b_ty}, group {group}") }));
    }
    let sizes = taps.chain([depth[1]]).map(|dim| shape[dim] as u64);
    let found = sizes.fold(LARGEST_PRODUCT, u64::saturating_mul);
    let limit = i32::MAX as u64;
    if found > limit {
        return Some(Err(Reason::Limit { what: "as the largest sum", found, limit }));
    }
    Some(Ok(Plan { a, b, depth, steps, channels, window, bias: data.ins.get(2).copied() }))
}

/// Integers to be multiplied as bytes, if that is not what they are; the other factor stays as it is.
fn integers(graph: &Graph, x: Value, w: Value) -> Option<(Quantized, Quantized)> {
    let a = Quantized::of_integers(graph, x)?;
    let changes = a.zero_point.is_some() || graph.ty(a.x).dtype == DType::I8;
    Quantized::of_integers(graph, w).filter(|_| changes && a.is_uniform(graph))?;
    Some((a, Quantized { x: w, scale: None, zero_point: None, axis: 0 }))
}

impl Plan {
    fn map(self, map: impl Fn(Value) -> Value) -> Plan {
        Plan { a: self.a.map(&map), b: self.b.map(&map), bias: self.bias.map(&map), ..self }
    }

    fn build(&self, b: &mut Builder, product: &Op) -> Result<Value, Error> {
        let mut operands = [self.a.unsigned(b)?, self.b.centered(b, self.channels[0])?];
        let zero = self.a.unsigned_zero(b)?;
        if self.steps % 2 == 1 {
            for (operand, dim) in operands.iter_mut().zip(self.depth) {
                let zero = b.scalar_like(*operand, 0.0);
                let (pads, axes) = (vec![0, 1].into(), vec![dim as i64].into());
                *operand = b.push1(Pad { pads, axes, mode: PadMode::Constant }, &[*operand, zero])?;
            }
        }
        let mut product = product.clone();
        if let (Some(zero), Op::Conv(conv)) = (zero, &mut product)
            && conv.pads.iter().any(|&pad| pad != 0)
        {
            let first = if conv.channels_last { 1 } else { 2 };
            let axes: Vec<i64> = (0..conv.pads.len() as i64 / 2).map(|d| d + first).collect();
            let pads = std::mem::take(&mut conv.pads);
            let pad = Pad { pads: pads.into(), axes: axes.into(), mode: PadMode::Constant };
            operands[0] = b.push1(pad, &[operands[0], zero])?;
        }
        let mut sums = b.push1(product, &operands)?;
        if let Some(zero) = zero {
            let of_zeros = self.of_zeros(b, operands[1], sums, zero)?;
            sums = b.map(ScalarFn::Sub, &[sums, of_zeros])?;
        }
        let (Some(scale_a), Some(scale_b)) = (self.a.scale, self.b.scale) else { return Ok(sums) };
        let dim = self.channels[1];
        let sums = b.cast(sums, DType::F32)?;
        let scale_a = along(b, scale_a, sums, dim)?;
        let scale_b = along(b, scale_b, sums, dim)?;
        let scale = b.map(ScalarFn::Mul, &[scale_a, scale_b])?;
        let y = b.map(ScalarFn::Mul, &[sums, scale])?;
        let Some(bias) = self.bias else { return Ok(y) };
        let bias = along(b, bias, y, dim)?;
        Ok(b.map(ScalarFn::Add, &[y, bias])?)
    }

    /// What a product would be if `a` were zero points: those times the sums over the weight.
    fn of_zeros(&self, b: &mut Builder, weight: Value, product: Value, zero: Value) -> Result<Value, Error> {
        let shape = b.ty(weight).shape();
        let kept = self.channels[0];
        let summed: Vec<i64> = match self.window {
            true => (0..shape.len()).filter(|&dim| dim != kept).map(|dim| dim as i64).collect(),
            false => vec![self.depth[1] as i64],
        };
        let sums = b.push1(Reduce::over(ReduceKind::Sum, &summed, false), &[weight])?;
        let sums = match self.window {
            true => along(b, sums, product, self.channels[1])?,
            false => {
                let batch = &shape[..shape.len() - 2];
                b.push1(Reshape::to(&[batch, &[1, shape[kept]]].concat()), &[sums])?
            }
        };
        Ok(b.map(ScalarFn::Mul, &[sums, zero])?)
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::{Conv, DequantizeLinear, MatMul, QuantizeLinear};
    use windlass_ir::{Late, Tensor, TensorType};

    use super::*;
    use crate::testing::{after, blocked, graph, ops, seeded};

    /// Quantized to bytes, signed where the zero point is negative, and back.
    fn activation(b: &mut Builder, x: Value, zero: i32) -> Value {
        let to = if zero < 0 { DType::I8 } else { DType::U8 };
        let zero = Tensor::from_i128s(to, &[], &[i128::from(zero)]);
        let (scale, zero) = (b.constant(Tensor::scalar(0.02f32)), b.constant(zero));
        let q = b.push1(QuantizeLinear { axis: 1, block_size: 0, to }, &[x, scale, zero]).unwrap();
        dequantized(b, q, &[scale, zero], 1)
    }

    fn dequantized(b: &mut Builder, q: Value, parameters: &[Value], axis: i64) -> Value {
        let op = DequantizeLinear { axis, block_size: 0, to: DType::F32 };
        b.push1(op, &[&[q], parameters].concat()).unwrap()
    }

    /// Bytes with a scale, and now and then a zero point, for each position of a dimension.
    fn weight(b: &mut Builder, shape: &[usize], axis: usize, zero: bool) -> Value {
        let values = seeded(&TensorType::fixed(DType::F64, shape), 5).to_f64s();
        let values: Vec<i8> = values.into_iter().map(|x| (60.0 * x) as i8).collect();
        let q = b.constant(Tensor::new(shape, &values));
        let count = shape[axis];
        let scales: Vec<f32> = (0..count).map(|i| 0.01 * (1 + i) as f32).collect();
        let mut parameters = vec![b.constant(Tensor::new(&[count], &scales))];
        if zero {
            let zeros: Vec<i8> = (0..count).map(|i| i as i8 - 3).collect();
            parameters.push(b.constant(Tensor::new(&[count], &zeros)));
        }
        dequantized(b, q, &parameters, axis as i64)
    }

    #[test]
    fn convolutions_with_a_scale_for_each_channel() {
        for (zero, pads) in [(128, 1), (0, 0), (-5, 1)] {
            let g = graph(&[&[1, 3, 5, 4]], |b, x| {
                let x = activation(b, x[0], zero);
                let w = weight(b, &[5, 3, 3, 2], 0, zero == 0);
                let bias = b.constant(Tensor::new(&[5], &[0.5f32, -1.0, 2.0, 0.0, 1.0]));
                let op = Conv { pads: vec![pads; 4], strides: vec![2, 1], ..Conv::plain() };
                Ok(smallvec![b.push1(op, &[x, w, bias])?])
            });
            let found = ops(&after(&g, &["integer_products"]).0);
            assert!(found.contains("pad ") && !found.contains("dequantize"), "{found}");
        }
    }

    #[test]
    fn a_bias_of_unknown_length_has_as_many_elements_as_there_are_channels() {
        for channels_last in [false, true] {
            let shape: &[usize] = if channels_last { &[1, 5, 4] } else { &[1, 4, 5] };
            let g = graph(&[shape, &[6]], |b, x| {
                let length = b.constant(Tensor::new(&[1], &[-1i64]));
                let unknown = Reshape { shape: Late::Operand(1), copy_zero: false };
                let bias = b.push1(unknown, &[x[1], length])?;
                let (shape, axis) = if channels_last { ([3, 4, 6], 2) } else { ([6, 4, 3], 0) };
                let (x, w) = (activation(b, x[0], 7), weight(b, &shape, axis, false));
                let op = Conv { channels_last, ..Conv::plain() };
                Ok(smallvec![b.push1(op, &[x, w, bias])?])
            });
            assert!(!ops(&after(&g, &["integer_products"]).0).contains("dequantize"));
        }
    }

    #[test]
    fn matrix_products_and_groups() {
        for (trans_b, shape, axis) in [(false, [6, 4], 1), (true, [4, 6], 0)] {
            let g = graph(&[&[2, 3, 6]], |b, x| {
                let (x, w) = (activation(b, x[0], 7), weight(b, &shape, axis, true));
                Ok(smallvec![b.push1(MatMul { trans_a: false, trans_b }, &[x, w])?])
            });
            assert!(!ops(&after(&g, &["integer_products"]).0).contains("dequantize"));
        }
        let g = graph(&[&[1, 4, 5]], |b, x| {
            let (x, w) = (activation(b, x[0], 7), weight(b, &[6, 2, 3], 0, false));
            Ok(smallvec![b.push1(Conv { group: 2, ..Conv::plain() }, &[x, w])?])
        });
        assert!(!ops(&after(&g, &["integer_products"]).0).contains("dequantize"));
    }

    #[test]
    fn other_readers_dequantize_what_is_multiplied() {
        let g = graph(&[&[4, 4]], |b, x| {
            let (x, w) = (activation(b, x[0], 3), weight(b, &[4, 4], 1, false));
            let y = b.push1(MatMul::default(), &[x, w])?;
            Ok(smallvec![b.map(ScalarFn::Add, &[x, y])?])
        });
        let g = after(&g, &["integer_products", "simplify", "fold", "cse"]).0;
        assert_eq!(ops(&g), "add 1, cast 3, matmul 1, mul 2, quantize_linear 1, sub 2");
    }

    #[test]
    fn integers_less_a_zero_point_of_the_run() {
        let centered = |b: &mut Builder, q: Value, zero: Option<Value>| {
            let q = b.cast(q, DType::I32)?;
            match zero {
                Some(zero) => {
                    let zero = b.cast(zero, DType::I32)?;
                    b.map(ScalarFn::Sub, &[q, zero])
                }
                None => Ok(q),
            }
        };
        for signed in [false, true] {
            for window in [false, true] {
                let shape: &[usize] = if window { &[2, 6, 3] } else { &[2, 3, 6] };
                let g = graph(&[shape, &[]], |b, x| {
                    let dtype = if signed { DType::I8 } else { DType::U8 };
                    let q = b.map(ScalarFn::Cast(dtype), &[x[0]])?;
                    let zero = b.map(ScalarFn::Cast(dtype), &[x[1]])?;
                    let zero = (!signed || window).then_some(zero);
                    let values: Vec<i8> = (0..24).map(|i| 5 * i - 60).collect();
                    let shape: &[usize] = if window { &[4, 6, 1] } else { &[6, 4] };
                    let w = b.constant(Tensor::new(shape, &values));
                    let (x, w) = (centered(b, q, zero)?, centered(b, w, None)?);
                    Ok(smallvec![match window {
                        true => b.push1(Conv { pads: vec![1, 1], ..Conv::plain() }, &[x, w])?,
                        false => b.push1(MatMul::default(), &[x, w])?,
                    }])
                });
                let (changed, records) = after(&g, &["integer_products"]);
                assert!(records.iter().any(|record| record.rule == RULE), "{records:?}");
                // Once more changes nothing.
                assert_eq!(ops(&after(&changed, &["integer_products"]).0), ops(&changed));
            }
        }
    }

    #[test]
    fn what_does_not_pair_blocks() {
        let product = |shape: &'static [usize], op: Conv| {
            let g = graph(&[&[1, 4, 5]], |b, x| {
                let (x, w) = (activation(b, x[0], 0), weight(b, shape, 0, false));
                Ok(smallvec![b.push1(op, &[x, w])?])
            });
            after(&g, &["integer_products"]).1
        };
        let depthwise = product(&[4, 1, 3], Conv { group: 4, ..Conv::plain() });
        assert!(matches!(blocked(&depthwise, RULE), Some(Reason::Form { .. })));
        let g = graph(&[&[4, 4], &[4, 4]], |b, x| {
            let (x, w) = (activation(b, x[0], 0), activation(b, x[1], 0));
            Ok(smallvec![b.push1(MatMul::default(), &[x, w])?])
        });
        let (_, records) = after(&g, &["integer_products"]);
        assert!(matches!(blocked(&records, RULE), Some(Reason::NotConstant { .. })));
        let g = graph(&[&[1, 40_000]], |b, x| {
            let (x, w) = (activation(b, x[0], 0), weight(b, &[40_000, 1], 1, false));
            Ok(smallvec![b.push1(MatMul::default(), &[x, w])?])
        });
        let (_, records) = after(&g, &["integer_products"]);
        assert!(matches!(blocked(&records, RULE), Some(Reason::Limit { .. })));
    }
}
