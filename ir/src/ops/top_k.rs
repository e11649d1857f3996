//! `top_k`: the largest or smallest elements along an axis, and where they are.

use std::cmp::Ordering;

use super::movement::{around, late_count, with_dim};
use super::{
    Gradients, Lowered, OpDef, ScatterElements, ScatterReduction, Vjp, VjpCx, Vmap, VmapCx, arity,
    top_k_lower,
};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis};
use crate::{require, with_element};

/// The `k` largest (or smallest) elements along an axis, best first, and their positions as i64. NaN
/// counts as larger than any number; of equal elements the earlier is better.
///
/// - (C1) the element type is a number;
/// - (C2) the axis lies within the operand's rank;
/// - (C3) `k` is one integer between 0 and the axis' size.
///
/// ONNX: `TopK` (1..), whose `k` is an operand since 10.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// How many.
    pub k: Late,
    /// The axis.
    pub axis: i64,
    /// Whether the largest are wanted.
    pub largest: bool,
    /// Whether the order matters to the reader; the result is sorted in any case.
    pub sorted: bool,
}

impl OpDef for TopK {
    const NAMES: &'static [&'static str] = &["top_k"];

    fn with_name(_: &str) -> TopK {
        TopK { k: Late::default(), axis: -1, largest: true, sorted: true }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("k", Slot::Late(&mut self.k))?;
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("largest", Slot::Bool(&mut self.largest))?;
        codec.attr("sorted", Slot::Bool(&mut self.sorted))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        require!(x.dtype != DType::Bool, "C1", "{x} is not numeric");
        let axis = normalize_axis(self.axis, x.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {x}", self.axis);
        let axis = axis.unwrap_or(0);
        let k = match self.k.as_known() {
            Some(&[k]) => {
                let most = x.dims[axis].as_fixed().unwrap_or(usize::MAX);
                let fits = usize::try_from(k).is_ok_and(|k| k <= most);
                require!(fits, "C3", "{k} of the {} elements along axis {} of {x}", x.dims[axis], self.axis);
                Dim::Fixed(k as usize)
            }
            Some(ks) => return Err(Violation::new("C3", format!("{ks:?} is not one integer"))),
            None => {
                require!(late_count(&self.k, ins).is_none_or(|n| n == 1), "C3", "k is not one integer");
                Dim::Unknown
            }
        };
        let values = with_dim(x, axis, k);
        let positions = values.with_dtype(DType::I64);
        Ok(vec![values, positions])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the rank")?;
        let k = self.k.known()[0] as usize;
        let (outer, n, inner) = around(x.shape(), axis);
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        let mut positions = Tensor::zeros(DType::I64, &shape);
        let mut values = Tensor::zeros(x.dtype(), &shape);
        with_element!(x.dtype(), T => {
            let elements = x.as_slice::<T>();
            let compare = |a: T, b: T| match T::DTYPE.is_float() {
                false => a.to_i128().cmp(&b.to_i128()),
                true => {
                    let (a, b) = (a.to_f64(), b.to_f64());
                    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
                }
            };
            for lane in 0..outer * inner {
                let (o, lane) = (lane / inner, lane % inner);
                let at = |i: usize| elements[(o * n + i) * inner + lane];
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|&i, &j| {
                    let by_value: Ordering = compare(at(i), at(j));
                    if self.largest { by_value.reverse() } else { by_value }
                });
                for (place, &i) in order.iter().take(k).enumerate() {
                    let to = (o * k + place) * inner + lane;
                    values.as_mut_slice::<T>()[to] = at(i);
                    positions.as_mut_slice::<i64>()[to] = i as i64;
                }
            }
        });
        Ok(vec![values, positions])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let g = cx.dout(0);
        let ty = cx.builder.ty(cx.ins[0]).clone();
        let zeros = cx.builder.constant(Tensor::zeros(ty.dtype, &ty.shape()));
        let back = ScatterElements { axis: self.axis, reduction: ScatterReduction::Add };
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[0] = Some(cx.push(back, &[zeros, cx.outs[1], g])?);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        cx.along(TopK { axis, ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let k = self.k.known()[0] as usize;
        let kernel = (outs[0].as_len() != Some(0)).then(|| top_k_lower::kernel(self, &ins[0], k)).flatten();
        Ok(kernel.map_or(Lowered::Interpret, |kernel| Lowered::Kernel(Box::new(kernel))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_of_equal_elements_wins() {
        let x = Tensor::new(&[2, 3], &[1i32, 7, 7, 3, 2, 1]);
        let op = TopK { k: vec![2].into(), ..TopK::with_name("top_k") };
        let outs = op.eval(&[x.clone()]).unwrap();
        assert_eq!(outs, [Tensor::new(&[2, 2], &[7i32, 7, 3, 2]), Tensor::new(&[2, 2], &[1i64, 2, 0, 1])]);
        let op = TopK { k: vec![1].into(), axis: 0, largest: false, sorted: true };
        let outs = op.eval(&[x]).unwrap();
        assert_eq!(outs[1], Tensor::new(&[1, 3], &[0i64, 1, 1]));
    }

    #[test]
    fn edges() {
        let op = TopK { k: vec![0].into(), ..TopK::with_name("top_k") };
        assert_eq!(op.eval(&[Tensor::zeros(DType::F32, &[2, 0])]).unwrap()[0].shape(), [2, 0]);
        let op = TopK { k: vec![2].into(), ..TopK::with_name("top_k") };
        let nan = Tensor::new(&[3], &[1.0f32, f32::NAN, f32::INFINITY]);
        assert_eq!(op.eval(&[nan]).unwrap()[1].to_ints(), [1, 2]);
        assert_eq!(op.infer(&[&TensorType::fixed(DType::F32, &[1])]).unwrap_err().constraint, "C3");
    }
}
