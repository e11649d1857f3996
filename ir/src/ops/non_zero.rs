//! `non_zero` and `compress`: results whose size depends on data.

use super::movement::{each_index, pick, position, with_dim};
use super::{OpDef, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::Violation;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};

/// The indices of the elements that are not 0, as columns in row-major order: i64 of shape
/// `[rank, count]`. NaN is not 0.
///
/// ONNX: `NonZero` (9..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NonZero;

/// The slices along an axis where a condition holds. Slices past the condition's end are left out.
///
/// - (C1) the condition is a bool vector, no longer than the axis;
/// - (C2) the axis lies within the operand's rank.
///
/// ONNX: `Compress` (9..), which without an axis compresses the flattened operand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compress {
    /// The axis.
    pub axis: i64,
}

impl OpDef for NonZero {
    const NAMES: &'static [&'static str] = &["non_zero"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("NonZero", 9..=u32::MAX)];

    fn with_name(_: &str) -> NonZero {
        NonZero
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        Ok(vec![TensorType::new(DType::I64, [Dim::Fixed(ins[0].rank()), Dim::Unknown])])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let mut values = x.to_f64s().into_iter();
        let mut rows: Vec<Vec<i64>> = vec![Vec::new(); x.rank()];
        let mut count = 0;
        each_index(x.shape(), |index| {
            if values.next().is_some_and(|v| v != 0.0) {
                rows.iter_mut().zip(index).for_each(|(row, &i)| row.push(i as i64));
                count += 1;
            }
        });
        Ok(vec![Tensor::new(&[x.rank(), count], &rows.concat())])
    }
}

impl OpDef for Compress {
    const NAMES: &'static [&'static str] = &["compress"];

    fn with_name(_: &str) -> Compress {
        Compress::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (x, condition) = (ins[0], ins[1]);
        let axis = normalize_axis(self.axis, x.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {x}", self.axis);
        let axis = axis.unwrap_or(0);
        let vector = condition.dtype == DType::Bool && condition.rank() == 1;
        require!(vector, "C1", "{condition} is not a bool vector");
        let fits = match (condition.dims[0].as_fixed(), x.dims[axis].as_fixed()) {
            (Some(found), Some(size)) => found <= size,
            _ => true,
        };
        require!(fits, "C1", "{condition} is longer than axis {} of {x}", self.axis);
        Ok(vec![with_dim(x, axis, Dim::Unknown)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, condition) = (&ins[0], &ins[1]);
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the rank")?;
        let holds = condition.to_ints().into_iter().enumerate().filter(|(_, c)| *c != 0);
        let kept: Vec<usize> = holds.map(|(i, _)| i).collect();
        let mut shape = x.shape().to_vec();
        shape[axis] = kept.len();
        let stride = strides(x.shape());
        let mut at = shape.clone();
        Ok(vec![pick(&[x], &shape, |index| {
            at.copy_from_slice(index);
            at[axis] = kept[index[axis]];
            (0, position(&at, &stride))
        })])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bool8;

    #[test]
    fn indices_are_columns() {
        let x = Tensor::new(&[2, 2], &[1.0f32, 0.0, -0.0, f32::NAN]);
        assert_eq!(NonZero.eval(&[x]).unwrap()[0], Tensor::new(&[2, 2], &[0i64, 1, 0, 1]));
        assert_eq!(NonZero.eval(&[Tensor::scalar(5u8)]).unwrap()[0].shape(), [0, 1]);
        assert_eq!(NonZero.eval(&[Tensor::zeros(DType::I64, &[3])]).unwrap()[0].shape(), [1, 0]);
    }

    #[test]
    fn compress_keeps_some_slices() {
        let x = Tensor::new(&[2, 3], &[1i32, 2, 3, 4, 5, 6]);
        let condition = Tensor::new(&[2], &[Bool8(0), Bool8(1)]);
        let y = Compress { axis: 1 }.eval(&[x, condition]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2, 1], &[2i32, 5]));
    }
}
