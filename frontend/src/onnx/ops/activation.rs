//! Activations written in scalar functions. Half floats compute in f32 and round once.

use windlass_ir::{ScalarFn, Value, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::ops::elementwise::align;
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("LeakyRelu", |cx| widened(cx, leaky_relu)),
    entry("PRelu", |cx| widened(cx, prelu)),
    entry("Elu", |cx| widened(cx, elu)),
    entry("Selu", |cx| widened(cx, selu)),
    entry("Celu", |cx| widened(cx, celu)),
    entry("ThresholdedRelu", |cx| widened(cx, thresholded_relu)),
    entry("HardSigmoid", |cx| widened(cx, hard_sigmoid)),
    entry("HardSwish", |cx| widened(cx, hard_swish)),
    entry("Softplus", |cx| widened(cx, softplus)),
    entry("Softsign", |cx| widened(cx, softsign)),
    entry("Mish", |cx| widened(cx, mish)),
    entry("Shrink", |cx| widened(cx, shrink)),
    entry("SwiGLU", swiglu),
];

/// Computes in the accumulator type of the first operand's type.
fn widened(cx: &mut NodeCx<'_, '_>, f: fn(&mut NodeCx<'_, '_>, Value) -> Imported<Value>) -> Imported {
    cx.ignore("consumed_inputs");
    let x = cx.input(0)?;
    let dtype = cx.dtype_of(x);
    let wide = cx.cast(x, dtype.accumulator())?;
    let y = f(cx, wide)?;
    Ok(vec![cx.cast(y, dtype)?])
}

/// `if x < threshold then below else x`.
fn below(cx: &mut NodeCx<'_, '_>, x: Value, threshold: f64, below: Value) -> Imported<Value> {
    let is_below = cx.map_constant(ScalarFn::Lt, x, threshold)?;
    cx.map(ScalarFn::Select, &[is_below, below, x])
}

fn leaky_relu(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let alpha = cx.float_or("alpha", 0.01)?;
    let scaled = cx.map_constant(ScalarFn::Mul, x, alpha)?;
    below(cx, x, 0.0, scaled)
}

fn prelu(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let slope = cx.input(1)?;
    let dtype = cx.dtype_of(x);
    let mut slope = cx.cast(slope, dtype)?;
    if cx.version() < 7 && cx.rank(slope) == 1 && cx.rank(x) > 1 && cx.ty(slope).as_len() != Some(1) {
        // One slope a channel.
        slope = align(cx, x, slope, 1)?;
    }
    let scaled = cx.map(ScalarFn::Mul, &[x, slope])?;
    below(cx, x, 0.0, scaled)
}

fn elu(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let alpha = cx.float_or("alpha", 1.0)?;
    let grown = cx.map(ScalarFn::Expm1, &[x])?;
    let scaled = cx.map_constant(ScalarFn::Mul, grown, alpha)?;
    below(cx, x, 0.0, scaled)
}

fn selu(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let old = cx.version() < 6;
    let alpha = cx.float_or("alpha", if old { 1.6732 } else { 1.673_263_2 })?;
    let gamma = cx.float_or("gamma", if old { 1.0507 } else { 1.050_701 })?;
    let grown = cx.map(ScalarFn::Expm1, &[x])?;
    let scaled = cx.map_constant(ScalarFn::Mul, grown, alpha)?;
    let both = below(cx, x, 0.0, scaled)?;
    cx.map_constant(ScalarFn::Mul, both, gamma)
}

/// `max(0, x) + min(0, alpha * (exp(x / alpha) - 1))`
fn celu(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let alpha = cx.float_or("alpha", 1.0)?;
    let scaled = cx.map_constant(ScalarFn::Div, x, alpha)?;
    let grown = cx.map(ScalarFn::Expm1, &[scaled])?;
    let negative = cx.map_constant(ScalarFn::Mul, grown, alpha)?;
    let negative = cx.map_constant(ScalarFn::Min, negative, 0.0)?;
    let positive = cx.map(ScalarFn::Relu, &[x])?;
    cx.map(ScalarFn::Add, &[positive, negative])
}

fn thresholded_relu(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let alpha = cx.float_or("alpha", 1.0)?;
    let above = cx.map_constant(ScalarFn::Gt, x, alpha)?;
    let zero = cx.scalar_like(x, 0.0);
    cx.map(ScalarFn::Select, &[above, x, zero])
}

/// `max(0, min(1, alpha * x + beta))`
fn hard_sigmoid(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let (alpha, beta) = (cx.float_or("alpha", 0.2)?, cx.float_or("beta", 0.5)?);
    hard_sigmoid_of(cx, x, alpha, beta)
}

fn hard_sigmoid_of(cx: &mut NodeCx<'_, '_>, x: Value, alpha: f64, beta: f64) -> Imported<Value> {
    let scaled = cx.map_constant(ScalarFn::Mul, x, alpha)?;
    let shifted = cx.map_constant(ScalarFn::Add, scaled, beta)?;
    let (zero, one) = (cx.scalar_like(x, 0.0), cx.scalar_like(x, 1.0));
    cx.map(ScalarFn::Clamp, &[shifted, zero, one])
}

fn hard_swish(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let gate = hard_sigmoid_of(cx, x, 1.0 / 6.0, 0.5)?;
    cx.map(ScalarFn::Mul, &[x, gate])
}

/// `max(x, 0) + log1p(exp(-|x|))`, which overflows nowhere.
fn softplus(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let size = cx.map(ScalarFn::Abs, &[x])?;
    let negative = cx.map(ScalarFn::Neg, &[size])?;
    let small = cx.map(ScalarFn::Exp, &[negative])?;
    let tail = cx.map(ScalarFn::Log1p, &[small])?;
    let positive = cx.map(ScalarFn::Relu, &[x])?;
    cx.map(ScalarFn::Add, &[positive, tail])
}

/// `x / (1 + |x|)`
fn softsign(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let size = cx.map(ScalarFn::Abs, &[x])?;
    let below = cx.map_constant(ScalarFn::Add, size, 1.0)?;
    cx.map(ScalarFn::Div, &[x, below])
}

/// `x tanh(ln(1 + e^x))` as `x t / (t + 2)` for `t = e^x (e^x + 2)`; past 20 the factor is 1 and `t` need not overflow.
fn mish(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let limited = cx.map_constant(ScalarFn::Min, x, 20.0)?;
    let exp = cx.map(ScalarFn::Exp, &[limited])?;
    let more = cx.map_constant(ScalarFn::Add, exp, 2.0)?;
    let above = cx.map(ScalarFn::Mul, &[exp, more])?;
    let below = cx.map_constant(ScalarFn::Add, above, 2.0)?;
    let gate = cx.map(ScalarFn::Div, &[above, below])?;
    cx.map(ScalarFn::Mul, &[x, gate])
}

/// `x + bias` below `-lambd`, `x - bias` above `lambd`, else 0.
fn shrink(cx: &mut NodeCx<'_, '_>, x: Value) -> Imported<Value> {
    let (lambd, bias) = (cx.float_or("lambd", 0.5)?, cx.float_or("bias", 0.0)?);
    let (low, high) = (cx.map_constant(ScalarFn::Lt, x, -lambd)?, cx.map_constant(ScalarFn::Gt, x, lambd)?);
    let (raised, lowered) =
        (cx.map_constant(ScalarFn::Add, x, bias)?, cx.map_constant(ScalarFn::Sub, x, bias)?);
    let zero = cx.scalar_like(x, 0.0);
    let upper = cx.map(ScalarFn::Select, &[high, lowered, zero])?;
    cx.map(ScalarFn::Select, &[low, raised, upper])
}

/// `a * sigmoid(alpha * a) * b`
fn swiglu(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let alpha = cx.float_or("alpha", 1.0)?;
    let dtype = cx.dtype_of(a);
    let (a, b) = (cx.cast(a, dtype.accumulator())?, cx.cast(b, dtype.accumulator())?);
    let gate = cx.push(ops::Silu { alpha }, &[a])?;
    let y = cx.map(ScalarFn::Mul, &[gate, b])?;
    Ok(vec![cx.cast(y, dtype)?])
}
