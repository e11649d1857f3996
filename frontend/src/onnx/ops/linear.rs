//! Matrix products: MatMul, Gemm and their integer forms.

use windlass_ir::{DType, ScalarFn, Value, ops};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::ops::elementwise::align;
use crate::onnx::problem::invalid;
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("MatMul", matmul),
    entry("Gemm", gemm),
    entry("MatMulInteger", matmul_integer),
    entry("QLinearMatMul", qlinear_matmul),
];

fn matmul(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    Ok(vec![product(cx, a, b)?])
}

/// numpy's matrix product: a vector gets a dimension of 1, which the result does not have.
pub(super) fn product(cx: &mut NodeCx<'_, '_>, a: Value, b: Value) -> Imported<Value> {
    let (vector_a, vector_b) = (cx.rank(a) == 1, cx.rank(b) == 1);
    let a = if vector_a { cx.unsqueeze(a, &[0])? } else { a };
    let b = if vector_b { cx.unsqueeze(b, &[1])? } else { b };
    let mut y = cx.push(ops::MatMul::default(), &[a, b])?;
    if vector_b {
        y = cx.squeeze(y, &[-1])?;
    }
    if vector_a {
        y = cx.squeeze(y, &[if vector_b { -1 } else { -2 }])?;
    }
    Ok(y)
}

/// `alpha * a' * b' + beta * c`
fn gemm(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (a, b, c) = (cx.input(0)?, cx.input(1)?, cx.optional(2));
    if cx.rank(a) != 2 || cx.rank(b) != 2 {
        invalid!("{} and {} are not both matrices", cx.ty(a), cx.ty(b));
    }
    let (alpha, beta) = (cx.float_or("alpha", 1.0)?, cx.float_or("beta", 1.0)?);
    let (trans_a, trans_b) = (cx.bool_or("transA", false)?, cx.bool_or("transB", false)?);
    if cx.version() < 7 {
        cx.ignore("broadcast");
    }
    let mut y = cx.push(ops::MatMul { trans_a, trans_b }, &[a, b])?;
    if alpha != 1.0 {
        y = cx.map_constant(ScalarFn::Mul, y, alpha)?;
    }
    if let Some(c) = c.filter(|_| beta != 0.0) {
        let c = if beta == 1.0 { c } else { cx.map_constant(ScalarFn::Mul, c, beta)? };
        y = cx.map(ScalarFn::Add, &[y, c])?;
    }
    Ok(vec![y])
}

/// A quantised operand as i32 with its zero point taken off. A zero point that is a vector has an entry
/// for each of `axis`.
pub(super) fn centered(
    cx: &mut NodeCx<'_, '_>,
    x: Value,
    zero_point: Option<Value>,
    axis: i64,
) -> Imported<Value> {
    let wide = cx.cast(x, DType::I32)?;
    let Some(zero) = zero_point else { return Ok(wide) };
    let mut zero = cx.cast(zero, DType::I32)?;
    if cx.rank(zero) == 1 && cx.ty(zero).as_len() == Some(1) {
        zero = cx.reshape(zero, &[], false)?;
    }
    if cx.rank(zero) == 1 {
        zero = align(cx, x, zero, axis)?;
    }
    cx.map(ScalarFn::Sub, &[wide, zero])
}

fn matmul_integer(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let (zero_a, zero_b) = (cx.optional(2), cx.optional(3));
    let a = centered(cx, a, zero_a, if cx.rank(a) == 1 { -1 } else { -2 })?;
    let b = centered(cx, b, zero_b, -1)?;
    Ok(vec![product(cx, a, b)?])
}

/// Operands: a, scale, zero point, b, scale, zero point, result's scale, zero point.
fn qlinear_matmul(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (a, zero_a, b, zero_b) = (cx.input(0)?, cx.input(2)?, cx.input(3)?, cx.input(5)?);
    let (scale_a, scale_b) = (cx.input(1)?, cx.input(4)?);
    let (scale, zero) = (cx.input(6)?, cx.input(7)?);
    let wide_a = centered(cx, a, Some(zero_a), if cx.rank(a) == 1 { -1 } else { -2 })?;
    let wide_b = centered(cx, b, Some(zero_b), -1)?;
    let sum = product(cx, wide_a, wide_b)?;
    let scale_a = scalar_or_aligned(cx, scale_a, a, -2)?;
    Ok(vec![requantize(cx, sum, [scale_a, scale_b, scale], zero)?])
}

fn scalar_or_aligned(cx: &mut NodeCx<'_, '_>, scale: Value, x: Value, axis: i64) -> Imported<Value> {
    match cx.rank(scale) == 1 && cx.ty(scale).as_len() != Some(1) {
        true => align(cx, x, scale, axis),
        false => Ok(scale),
    }
}

/// An i32 sum of products of scales `[a, b]` as a quantised tensor of scale `y`: computed in f32,
/// rounded to even, saturated.
pub(super) fn requantize(
    cx: &mut NodeCx<'_, '_>,
    sum: Value,
    [scale_a, scale_b, scale_y]: [Value; 3],
    zero_point: Value,
) -> Imported<Value> {
    let mut scales = Vec::with_capacity(3);
    for scale in [scale_a, scale_b, scale_y] {
        scales.push(cx.cast(scale, DType::F32)?);
    }
    let factor = cx.map(ScalarFn::Mul, &[scales[0], scales[1]])?;
    let factor = cx.map(ScalarFn::Div, &[factor, scales[2]])?;
    let sum = cx.cast(sum, DType::F32)?;
    let scaled = cx.map(ScalarFn::Mul, &[sum, factor])?;
    let rounded = cx.map(ScalarFn::Round, &[scaled])?;
    let to = cx.dtype_of(zero_point);
    let zero = cx.cast(zero_point, DType::F32)?;
    let shifted = cx.map(ScalarFn::Add, &[rounded, zero])?;
    // A conversion from float to integer saturates.
    cx.cast(shifted, to)
}
