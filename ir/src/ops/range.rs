//! `range` and `iota`: tensors of counted values.

use super::movement::{each_index, late_count, unknown};
use super::{Lowered, OpDef, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::limits::Limits;
use crate::loops::NestBuilder;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis};
use crate::{require, with_element};

/// `start`, `start + delta`, .. before `limit`; each element is `start + i * delta`, rounded once.
///
/// - (C1) the three operands are numbers of one type, with one element each.
///
/// The length depends on the operands' values. A delta of 0 is an error of evaluation.
/// ONNX: `Range` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Range;

/// A tensor whose every element is its own index along an axis.
///
/// - (C1) sizes are not negative, and how many there are is known;
/// - (C2) the axis lies within the rank;
/// - (C3) the element type is a number.
///
/// No ONNX operator: `EyeLike`, `OneHot` and masks are comparisons of these.
#[derive(Clone, Debug, PartialEq)]
pub struct Iota {
    /// The shape of the result.
    pub shape: Late,
    /// The axis counted along.
    pub axis: i64,
    /// The element type.
    pub dtype: DType,
}

impl OpDef for Range {
    const NAMES: &'static [&'static str] = &["range"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Range", 11..=u32::MAX)];

    fn with_name(_: &str) -> Range {
        Range
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 3..=3)?;
        let dtype = ins[0].dtype;
        let scalar = |ty: &TensorType| ty.dims.iter().all(|d| d.may_equal(&Dim::Fixed(1)));
        let fits = dtype != DType::Bool && ins.iter().all(|ty| ty.dtype == dtype && scalar(ty));
        require!(fits, "C1", "{}, {} and {} are not numbers of one type", ins[0], ins[1], ins[2]);
        Ok(vec![unknown(dtype, 1)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let dtype = ins[0].dtype();
        let check = |len: u128| match len <= u128::from(Limits::default().elements) {
            true => Ok(len as usize),
            false => Err(format!("a range of {len} elements exceeds the limit")),
        };
        if dtype.is_float() {
            let [start, limit, delta] = [0, 1, 2].map(|i| ins[i].to_f64s()[0]);
            if delta == 0.0 || !(start.is_finite() && limit.is_finite() && !delta.is_nan()) {
                return Err(format!("no range goes from {start} to {limit} by {delta}"));
            }
            let len = check(((limit - start) / delta).ceil().max(0.0) as u128)?;
            let element = |i: usize| start + i as f64 * delta;
            return Ok(vec![
                with_element!(dtype, T => Tensor::from_fn::<T>(&[len], |i| <T as Element>::from_f64(element(i)))),
            ]);
        }
        let [start, limit, delta] = [0, 1, 2].map(|i| ins[i].to_i128s()[0]);
        if delta == 0 {
            return Err(format!("no range goes from {start} to {limit} by {delta}"));
        }
        let distance = if delta > 0 { limit - start } else { start - limit };
        let len = check((distance.max(0) as u128).div_ceil(delta.unsigned_abs()))?;
        let element = |i: usize| start + i as i128 * delta;
        Ok(vec![with_element!(dtype, T => Tensor::from_fn::<T>(&[len], |i| T::from_i128(element(i))))])
    }
}

impl OpDef for Iota {
    const NAMES: &'static [&'static str] = &["iota"];

    fn with_name(_: &str) -> Iota {
        Iota { shape: Late::default(), axis: 0, dtype: DType::I64 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("shape", Slot::Late(&mut self.shape))?;
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("dtype", Slot::DType(&mut self.dtype))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 0..=1)?;
        let rank = late_count(&self.shape, ins);
        require!(rank.is_some(), "C1", "the rank of the result is not known");
        let rank = rank.unwrap_or(0);
        let axis = normalize_axis(self.axis, rank);
        require!(axis.is_some(), "C2", "axis {} is outside rank {rank}", self.axis);
        require!(self.dtype != DType::Bool, "C3", "{} does not count", self.dtype);
        let Some(sizes) = self.shape.as_known() else {
            return Ok(vec![unknown(self.dtype, rank)]);
        };
        require!(sizes.iter().all(|&n| n >= 0), "C1", "{sizes:?} has a negative size");
        Ok(vec![TensorType::new(self.dtype, sizes.iter().map(|&n| Dim::Fixed(n as usize)))])
    }

    fn eval(&self, _: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let shape: Vec<usize> = self.shape.known().iter().map(|&n| n as usize).collect();
        let axis = normalize_axis(self.axis, shape.len()).ok_or("the axis is outside the rank")?;
        let mut along = Vec::with_capacity(shape.iter().product());
        each_index(&shape, |index| along.push(index[axis] as i128));
        Ok(vec![Tensor::from_i128s(self.dtype, &shape, &along)])
    }

    fn lower(&self, _: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let axis = normalize_axis(self.axis, outs[0].rank()).expect("infer accepted the axis");
        let at = n.domain()[axis].clone();
        let count = n.index_value(&at);
        let element = n.cast(count, self.dtype);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T: Element>(start: T, limit: T, delta: T) -> Result<Tensor, String> {
        let ins = [start, limit, delta].map(Tensor::scalar);
        Range.eval(&ins).map(|mut outs| outs.remove(0))
    }

    #[test]
    fn ranges_stop_before_the_limit() {
        assert_eq!(run(10i32, 4, -2).unwrap().to_ints(), [10, 8, 6]);
        assert_eq!(run(1.0f32, 2.0, 0.3).unwrap().len(), 4);
        assert_eq!(run(3u8, 1, 1).unwrap().len(), 0);
        assert!(run(0i64, 5, 0).is_err());
        assert!(run(i64::MIN, i64::MAX, 1).is_err());
        assert!(run(0.0f64, f64::INFINITY, 1.0).is_err());
    }

    #[test]
    fn iota_counts_along_an_axis() {
        let op = Iota { shape: vec![2, 2].into(), axis: -1, dtype: DType::F16 };
        assert_eq!(op.eval(&[]).unwrap()[0].to_ints(), [0, 1, 0, 1]);
        let op = Iota { shape: Late::default(), axis: 0, dtype: DType::I64 };
        assert_eq!(op.infer(&[]).unwrap_err().constraint, "C2");
    }
}
