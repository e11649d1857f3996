//! `hardmax`: 1 at the first largest element along an axis, 0 elsewhere.

use super::{Lowered, OpDef, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder, Reduction};
use crate::ops::movement::around;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{TensorType, normalize_axis};

/// 1 at the first element along the axis that is largest there, 0 elsewhere; NaN counts as largest.
///
/// - (C1) the operand is a float;
/// - (C2) the axis lies within its rank.
///
/// ONNX: `Hardmax` (13..); before, the importer flattens the axes from `axis` on.
#[derive(Clone, Debug, PartialEq)]
pub struct Hardmax {
    /// Along which axis.
    pub axis: i64,
}

impl OpDef for Hardmax {
    const NAMES: &'static [&'static str] = &["hardmax"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Hardmax", 13..=u32::MAX)];

    fn with_name(_: &str) -> Hardmax {
        Hardmax { axis: -1 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype.is_float(), "C1", "{} is not a float", ins[0]);
        let axis = normalize_axis(self.axis, ins[0].rank());
        require!(axis.is_some(), "C2", "axis {} is outside {}", self.axis, ins[0]);
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the operand")?;
        let (before, len, after) = around(x.shape(), axis);
        let values = x.to_f64s();
        let mut result = vec![0.0; values.len()];
        for line in 0..before * after {
            let at = |i: usize| line / after * len * after + line % after + i * after;
            let beats = |a: f64, b: f64| a > b || (a.is_nan() && !b.is_nan());
            let largest = (0..len).reduce(|b, a| if beats(values[at(a)], values[at(b)]) { a } else { b });
            if let Some(largest) = largest {
                result[at(largest)] = 1.0;
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &result)])
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        cx.along(Hardmax { axis })
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
            n.load(operand, &index)
        };
        let largest = n.reduce(Reduction::Max, &[shape[axis]], |n, k| load(n, &k[0]));
        let first = n.reduce(Reduction::Min, &[shape[axis]], |n, k| {
            let x = load(n, &k[0]);
            let equal = n.apply(ScalarFn::Eq, &[x, largest]);
            let nan = n.apply(ScalarFn::IsNan, &[x]);
            let found = n.apply(ScalarFn::Or, &[equal, nan]);
            let here = n.index_value(&k[0]);
            let none = n.constant_bits(DType::I64, i64::MAX as u64);
            n.apply(ScalarFn::Select, &[found, here, none])
        });
        let here = n.index_value(&at[axis]);
        let chosen = n.apply(ScalarFn::Eq, &[here, first]);
        let result = n.cast(chosen, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    #[test]
    fn the_first_of_equals_and_nan_win() {
        let x = Tensor::new(&[2, 3], &[1f32, 4., 4., 9., f32::NAN, f32::NAN]);
        assert_eq!(check(Hardmax { axis: 1 }, &[x])[0].to_f64s(), [0., 1., 0., 0., 1., 0.]);
        for axis in 0..3 {
            check(Hardmax { axis }, &[sample(DType::F16, &[3, 1, 4], 3)]);
        }
    }
}
