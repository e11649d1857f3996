//! `quantize_linear` and `dequantize_linear`: floats as small integers with a scale and a zero point.

use std::sync::Arc;

use super::{Lowered, Op, OpDef, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Shape, TensorType, normalize_axis, strides};
use crate::with_element;

/// `round(x / scale) + zero_point`, ties to even, saturated to the result type. Quotients are computed
/// in the wider of f32 and the types given.
///
/// Scale and zero point have one element, or one a position of `axis`, or, with a `block_size`, the rank
/// of `x` with an element a block of that many positions.
///
/// - (C1) `x` is a float or i32, the scale a float;
/// - (C2) `to` is an integer of 8 or 16 bits; the zero point is of that type, shaped as the scale;
/// - (C3) the scale's shape is one of those above.
///
/// ONNX: `QuantizeLinear` (10..), by its importer, which knows the result type.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeLinear {
    /// Where a scale of rank 1 lies, or the dimension cut into blocks.
    pub axis: i64,
    /// Positions that share a scale; 0 if the scale is not blocked.
    pub block_size: i64,
    /// The result type.
    pub to: DType,
}

/// `(x - zero_point) * scale`, in f32 or the result type if that is wider. Scale and zero point as for
/// [`QuantizeLinear`].
///
/// - (C1) `x` is an integer of at most 32 bits, the scale a float;
/// - (C2) `to` is a float; the zero point is of the type of `x`, shaped as the scale;
/// - (C3) the scale's shape is one of those that [`QuantizeLinear`] takes.
///
/// ONNX: `DequantizeLinear` (10..), by its importer, which knows the result type.
#[derive(Clone, Debug, PartialEq)]
pub struct DequantizeLinear {
    /// Where a scale of rank 1 lies, or the dimension cut into blocks.
    pub axis: i64,
    /// Positions that share a scale; 0 if the scale is not blocked.
    pub block_size: i64,
    /// The result type.
    pub to: DType,
}

/// How scales are laid over `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sharing {
    /// One for all.
    All,
    /// One a position of this axis.
    Axis(usize),
    /// One a block of positions along this axis.
    Blocks(usize, usize),
}

impl Sharing {
    fn new(x: &TensorType, scale: &TensorType, axis: i64, block_size: i64) -> Result<Sharing, Violation> {
        if scale.as_len() == Some(1) && scale.rank() <= 1 {
            return Ok(Sharing::All);
        }
        let Some(at) = normalize_axis(axis, x.rank()) else {
            return Err(Violation::new("C3", format!("axis {axis} is outside {x}")));
        };
        if block_size == 0 {
            let fits = scale.rank() == 1 && scale.dims[0].may_equal(&x.dims[at]);
            require!(fits, "C3", "a scale {scale} does not lie along axis {axis} of {x}");
            return Ok(Sharing::Axis(at));
        }
        let block = usize::try_from(block_size).unwrap_or(0);
        let fits = |d: usize| match (x.dims[d].as_fixed(), scale.dims[d].as_fixed()) {
            (Some(n), Some(m)) if d == at => n.div_ceil(block) == m,
            (Some(n), Some(m)) => n == m,
            _ => true,
        };
        let blocked = block > 0 && scale.rank() == x.rank() && (0..x.rank()).all(fits);
        require!(blocked, "C3", "a scale {scale} has no blocks of {block_size} along axis {axis} of {x}");
        Ok(Sharing::Blocks(at, block))
    }

    /// The position of each element's scale, in row-major order.
    fn places(self, x: &[usize], scale: &[usize]) -> Vec<usize> {
        let stride = strides(scale);
        let place = |mut at: Shape| match self {
            Sharing::All => 0,
            Sharing::Axis(axis) => at[axis],
            Sharing::Blocks(axis, block) => {
                at[axis] /= block;
                position(&at, &stride)
            }
        };
        points(x).map(place).collect()
    }

    fn index(self, at: &[Index], rank: usize) -> Vec<Index> {
        match self {
            Sharing::All => vec![Index::constant(0); rank],
            Sharing::Axis(axis) => vec![at[axis].clone()],
            Sharing::Blocks(axis, block) => {
                let mut index = at.to_vec();
                index[axis] = at[axis].div(block as i64);
                index
            }
        }
    }
}

fn check_zero_point(ins: &[&TensorType], dtype: DType) -> Result<(), Violation> {
    if let Some(zero_point) = ins.get(2) {
        let scale = ins[1];
        let same_shape = zero_point.rank() == scale.rank()
            && zero_point.dims.iter().zip(&scale.dims).all(|(a, b)| a.may_equal(b));
        let fits = zero_point.dtype == dtype && (same_shape || zero_point.as_len() == Some(1));
        require!(fits, "C2", "the zero point {zero_point} is not {dtype} shaped as {scale}");
    }
    Ok(())
}

/// The scale and the zero point of each element of `x`.
fn parameters(sharing: Sharing, ins: &[Tensor]) -> (Vec<f64>, Vec<i128>) {
    let places = sharing.places(ins[0].shape(), ins[1].shape());
    let scales = ins[1].to_f64s();
    let zeros = match ins.get(2) {
        Some(zeros) if zeros.len() == scales.len() => zeros.to_i128s(),
        Some(zero) => vec![zero.to_i128s()[0]; scales.len()],
        None => vec![0; scales.len()],
    };
    (places.iter().map(|&p| scales[p]).collect(), places.iter().map(|&p| zeros[p]).collect())
}

/// The wider of the types that quotients and products of two floats are computed in.
fn wider(a: DType, b: DType) -> DType {
    if a == DType::F64 || b == DType::F64 { DType::F64 } else { DType::F32 }
}

fn round_to(dtype: DType, value: f64) -> f64 {
    with_element!(dtype, T => T::from_f64(value).to_f64())
}

/// The operands of `x` and its parameters as loads at the domain.
fn load_zero_point(
    n: &mut NestBuilder,
    at: &[Index],
    sharing: Sharing,
    ty: &TensorType,
    as_type: DType,
) -> crate::loops::Val {
    let operand = n.operand(ty.dtype, &ty.shape());
    let index = match ty.as_len() == Some(1) {
        true => vec![Index::constant(0); ty.rank()],
        false => sharing.index(at, ty.rank()),
    };
    let value = n.load(operand, &index);
    n.cast(value, as_type)
}

/// The op without a zero point of zeros.
fn without_zero_point(
    op: &(impl Clone + Into<Arc<Op>>),
    b: &mut Builder,
    ins: &[Value],
) -> Result<Option<Values>, Error> {
    let is_zero = |value| b.graph().as_constant(value).and_then(Tensor::as_uniform_f64) == Some(0.0);
    match ins {
        &[x, scale, zero] if is_zero(zero) => {
            Ok(Some(Values::from_slice(&[b.push1(op.clone(), &[x, scale])?])))
        }
        _ => Ok(None),
    }
}

impl OpDef for QuantizeLinear {
    const NAMES: &'static [&'static str] = &["quantize_linear"];

    fn with_name(_: &str) -> QuantizeLinear {
        QuantizeLinear { axis: 1, block_size: 0, to: DType::U8 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("block_size", Slot::Int(&mut self.block_size))?;
        codec.attr("to", Slot::DType(&mut self.to))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=3)?;
        let (x, scale) = (ins[0], ins[1]);
        let fits = (x.dtype.is_float() || x.dtype == DType::I32) && scale.dtype.is_float();
        require!(fits, "C1", "{x} with a scale {scale} is not quantized");
        let narrow = matches!(self.to, DType::I8 | DType::U8 | DType::I16 | DType::U16);
        require!(narrow, "C2", "nothing is quantized to {}", self.to);
        check_zero_point(ins, self.to)?;
        Sharing::new(x, scale, self.axis, self.block_size)?;
        Ok(vec![x.with_dtype(self.to)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let sharing =
            Sharing::new(&x.ty(), &ins[1].ty(), self.axis, self.block_size).map_err(|v| v.to_string())?;
        let (scales, zeros) = parameters(sharing, ins);
        let wide = wider(x.dtype(), ins[1].dtype());
        let (low, high) = self.to.int_range();
        let quantized = |(i, x): (usize, f64)| {
            let quotient = round_to(wide, round_to(wide, x) / scales[i]).round_ties_even();
            (quotient as i128).saturating_add(zeros[i]).clamp(low, high) * i128::from(!quotient.is_nan())
        };
        let values: Vec<i128> = x.to_f64s().into_iter().enumerate().map(quantized).collect();
        Ok(vec![Tensor::from_i128s(self.to, x.shape(), &values)])
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        match (normalize_axis(self.axis, cx.rank(0)), cx.rank(1) > 1 || self.block_size > 0) {
            (_, true) => Ok(Vmap::OneByOne),
            (Some(axis), false) => cx.along(QuantizeLinear { axis: axis as i64 + 1, ..self.clone() }),
            (None, false) => cx.along(self.clone()),
        }
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, scale) = (&ins[0], &ins[1]);
        let sharing =
            Sharing::new(x, scale, self.axis, self.block_size).expect("infer accepted the scale's shape");
        let wide = wider(x.dtype, scale.dtype);
        let mut n = NestBuilder::new(&outs[0].shape());
        let at = n.domain();
        let (operand, op_scale) = (n.operand(x.dtype, &x.shape()), n.operand(scale.dtype, &scale.shape()));
        let value = n.load(operand, &at);
        let value = n.cast(value, wide);
        let scale = n.load(op_scale, &sharing.index(&at, scale.rank()));
        let scale = n.cast(scale, wide);
        let quotient = n.apply(ScalarFn::Div, &[value, scale]);
        let mut result = n.apply(ScalarFn::Round, &[quotient]);
        if let Some(ty) = ins.get(2) {
            let zero_point = load_zero_point(&mut n, &at, sharing, ty, wide);
            result = n.apply(ScalarFn::Add, &[result, zero_point]);
        }
        // The conversion saturates, and takes NaN to 0.
        let result = n.cast(result, self.to);
        Ok(Lowered::nest(n.finish(&[result])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        without_zero_point(self, b, ins)
    }
}

impl OpDef for DequantizeLinear {
    const NAMES: &'static [&'static str] = &["dequantize_linear"];

    fn with_name(_: &str) -> DequantizeLinear {
        DequantizeLinear { axis: 1, block_size: 0, to: DType::F32 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("block_size", Slot::Int(&mut self.block_size))?;
        codec.attr("to", Slot::DType(&mut self.to))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=3)?;
        let (x, scale) = (ins[0], ins[1]);
        let fits = x.dtype.is_int() && x.dtype.size() <= 4 && x.dtype != DType::U32;
        require!(fits && scale.dtype.is_float(), "C1", "{x} with a scale {scale} is not dequantized");
        require!(self.to.is_float(), "C2", "nothing is dequantized to {}", self.to);
        check_zero_point(ins, x.dtype)?;
        Sharing::new(x, scale, self.axis, self.block_size)?;
        Ok(vec![x.with_dtype(self.to)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let sharing =
            Sharing::new(&x.ty(), &ins[1].ty(), self.axis, self.block_size).map_err(|v| v.to_string())?;
        let (scales, zeros) = parameters(sharing, ins);
        let wide = wider(self.to, ins[1].dtype());
        let value = |(i, x): (usize, i128)| {
            let distance = f64::from(i32::from_i128(x - zeros[i]));
            round_to(wide, round_to(wide, distance) * scales[i])
        };
        let values: Vec<f64> = x.to_i128s().into_iter().enumerate().map(value).collect();
        Ok(vec![Tensor::from_f64s(self.to, x.shape(), &values)])
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        match (normalize_axis(self.axis, cx.rank(0)), cx.rank(1) > 1 || self.block_size > 0) {
            (_, true) => Ok(Vmap::OneByOne),
            (Some(axis), false) => cx.along(DequantizeLinear { axis: axis as i64 + 1, ..self.clone() }),
            (None, false) => cx.along(self.clone()),
        }
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, scale) = (&ins[0], &ins[1]);
        let sharing =
            Sharing::new(x, scale, self.axis, self.block_size).expect("infer accepted the scale's shape");
        let wide = wider(self.to, scale.dtype);
        let mut n = NestBuilder::new(&outs[0].shape());
        let at = n.domain();
        let (operand, op_scale) = (n.operand(x.dtype, &x.shape()), n.operand(scale.dtype, &scale.shape()));
        let value = n.load(operand, &at);
        let mut value = n.cast(value, DType::I32);
        let scale = n.load(op_scale, &sharing.index(&at, scale.rank()));
        let scale = n.cast(scale, wide);
        if let Some(ty) = ins.get(2) {
            let zero_point = load_zero_point(&mut n, &at, sharing, ty, DType::I32);
            value = n.apply(ScalarFn::Sub, &[value, zero_point]);
        }
        let value = n.cast(value, wide);
        let result = n.apply(ScalarFn::Mul, &[value, scale]);
        let result = n.cast(result, self.to);
        Ok(Lowered::nest(n.finish(&[result])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        without_zero_point(self, b, ins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    #[test]
    fn rounds_to_even_and_saturates() {
        let x = Tensor::new(&[6], &[0f32, 2., 3., 1000., -254., -1000.]);
        let ins = [x, Tensor::scalar(2f32), Tensor::scalar(128u8)];
        let op = QuantizeLinear { axis: 1, block_size: 0, to: DType::U8 };
        assert_eq!(check(op, &ins)[0].to_ints(), [128, 129, 130, 255, 1, 0]);
    }

    #[test]
    fn every_sharing_agrees_with_the_formula() {
        for (axis, block_size, shape) in [(0, 0, &[][..]), (1, 0, &[4]), (-1, 0, &[6]), (2, 4, &[2, 4, 2])] {
            let positive = |shape: &[usize]| {
                let values = sample(DType::F32, shape, 5).to_f64s();
                Tensor::from_f64s(
                    DType::F32,
                    shape,
                    &values.iter().map(|x| x.abs() + 0.1).collect::<Vec<_>>(),
                )
            };
            for to in [DType::U8, DType::I8, DType::I16, DType::U16] {
                let (x, zero) = (sample(DType::F32, &[2, 4, 6], 1), sample(to, shape, 3));
                let quantize = QuantizeLinear { axis, block_size, to };
                let y = check(quantize.clone(), &[x.clone(), positive(shape), zero.clone()]).remove(0);
                check(quantize, &[x, positive(shape)]);
                for to in [DType::F32, DType::F16] {
                    let dequantize = DequantizeLinear { axis, block_size, to };
                    check(dequantize.clone(), &[y.clone(), positive(shape), zero.clone()]);
                    check(dequantize, &[y.clone(), positive(shape)]);
                }
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let ty = |dtype, shape: &[usize]| TensorType::fixed(dtype, shape);
        let (x, scale) = (ty(DType::F32, &[2, 4]), ty(DType::F32, &[4]));
        let op = QuantizeLinear { axis: 1, block_size: 0, to: DType::I8 };
        let violated = |op: &QuantizeLinear, ins: &[&TensorType]| op.infer(ins).unwrap_err().constraint;
        assert_eq!(violated(&op, &[&ty(DType::U8, &[4]), &scale]), "C1");
        assert_eq!(violated(&op, &[&x, &scale, &ty(DType::U8, &[4])]), "C2");
        assert_eq!(violated(&QuantizeLinear { to: DType::I64, ..op.clone() }, &[&x, &scale]), "C2");
        assert_eq!(violated(&QuantizeLinear { axis: 0, ..op.clone() }, &[&x, &scale]), "C3");
        assert_eq!(violated(&QuantizeLinear { block_size: 3, ..op }, &[&x, &ty(DType::F32, &[2, 1])]), "C3");
    }
}
