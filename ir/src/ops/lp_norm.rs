//! `lp_norm`: vectors along an axis scaled to norm 1.

use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder, Reduction};
use crate::ops::movement::around;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{TensorType, normalize_axis};

/// `x` divided by the sum of magnitudes (p = 1) or the Euclidean norm (p = 2) along the axis; 0 where
/// the norm is 0.
///
/// - (C1) the operand is a float;
/// - (C2) the axis lies within its rank;
/// - (C3) p is 1 or 2.
///
/// ONNX: `LpNormalization` (1..).
#[derive(Clone, Debug, PartialEq)]
pub struct LpNorm {
    /// Along which axis.
    pub axis: i64,
    /// The order of the norm.
    pub p: i64,
}

impl OpDef for LpNorm {
    const NAMES: &'static [&'static str] = &["lp_norm"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("LpNormalization", 1..=u32::MAX)];

    fn with_name(_: &str) -> LpNorm {
        LpNorm { axis: -1, p: 2 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("p", Slot::Int(&mut self.p))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype.is_float(), "C1", "{} is not a float", ins[0]);
        let axis = normalize_axis(self.axis, ins[0].rank());
        require!(axis.is_some(), "C2", "axis {} is outside {}", self.axis, ins[0]);
        require!(matches!(self.p, 1 | 2), "C3", "p is {}", self.p);
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the operand")?;
        let (before, len, after) = around(x.shape(), axis);
        let mut values = x.to_f64s();
        for line in 0..before * after {
            let at = |i: usize| line / after * len * after + line % after + i * after;
            let norm: f64 = match self.p {
                1 => (0..len).map(|i| values[at(i)].abs()).sum(),
                _ => (0..len).map(|i| values[at(i)].powi(2)).sum::<f64>().sqrt(),
            };
            for i in 0..len {
                values[at(i)] = if norm == 0.0 { 0.0 } else { values[at(i)] / norm };
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let x = cx.ins[0];
        let axis = normalize_axis(self.axis, cx.shape(x).len()).expect("infer accepted the axis");
        let powers = match self.p {
            1 => cx.map(ScalarFn::Abs, &[x])?,
            _ => cx.map(ScalarFn::Mul, &[x, x])?,
        };
        let sum = cx.sum(powers, &[axis], true)?;
        // A line of zeros stays one, as if its norm were 1.
        let empty = cx.with_constant(ScalarFn::Eq, sum, 0.0)?;
        let one = cx.builder.scalar_like(sum, 1.0);
        let safe = cx.map(ScalarFn::Select, &[empty, one, sum])?;
        let norm = if self.p == 1 { safe } else { cx.map(ScalarFn::Sqrt, &[safe])? };
        vjp::through(cx.map(ScalarFn::Div, &[x, norm])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        cx.along(LpNorm { axis, ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (shape, dtype) = (outs[0].shape(), ins[0].dtype);
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let load = |n: &mut NestBuilder, along: &Index| {
            let mut index = at.clone();
            index[axis] = along.clone();
            let x = n.load(operand, &index);
            n.cast(x, dtype.accumulator())
        };
        let sum = n.reduce(Reduction::Sum, &[shape[axis]], |n, k| {
            let x = load(n, &k[0]);
            match self.p {
                1 => n.apply(ScalarFn::Abs, &[x]),
                _ => n.apply(ScalarFn::Mul, &[x, x]),
            }
        });
        let norm = if self.p == 1 { sum } else { n.apply(ScalarFn::Sqrt, &[sum]) };
        let x = load(&mut n, &at[axis]);
        let quotient = n.apply(ScalarFn::Div, &[x, norm]);
        let zero = n.constant(dtype.accumulator(), 0.0);
        let is_zero = n.apply(ScalarFn::Eq, &[norm, zero]);
        let result = n.apply(ScalarFn::Select, &[is_zero, zero, quotient]);
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn norms_by_hand_and_zero_vectors() {
        let x = Tensor::new(&[2, 2], &[3f32, -4., 0., 0.]);
        let y = check(LpNorm { axis: 1, p: 2 }, std::slice::from_ref(&x))[0].to_f64s();
        assert_eq!(y, [f64::from(0.6f32), f64::from(-0.8f32), 0., 0.]);
        assert_eq!(check(LpNorm { axis: 0, p: 1 }, &[x])[0].to_f64s(), [1., -1., 0., 0.]);
    }

    #[test]
    fn every_axis_agrees_with_the_formula() {
        for axis in -3..3 {
            for p in [1, 2] {
                for dtype in [DType::F16, DType::F32, DType::F64] {
                    check(LpNorm { axis, p }, &[sample(dtype, &[2, 3, 4], 9)]);
                }
            }
        }
    }
}
