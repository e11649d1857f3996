//! `softmax` and `log_softmax` along an axis.

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

/// `exp(x - m) / sum(exp(x - m))` along the axis, m being the largest element there; `log_softmax` is
/// its logarithm, `x - m - log(sum(exp(x - m)))`. f16 and bf16 are computed in f32 and rounded once.
///
/// With `masked`, elements of -inf are left out, and where nothing is left the result is 0.
///
/// - (C1) the operand is a float;
/// - (C2) the axis lies within its rank;
/// - (C3) `masked` has no logarithm.
///
/// ONNX: `Softmax` and `LogSoftmax` (13..); before, the importer flattens the axes from `axis` on.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// Whether the result is the logarithm.
    pub log: bool,
    /// Along which axis.
    pub axis: i64,
    /// Whether a line of nothing but -inf gives 0.
    pub masked: bool,
}

impl Softmax {
    /// Plain softmax.
    pub fn along(axis: i64) -> Softmax {
        Softmax { log: false, axis, masked: false }
    }
}

impl OpDef for Softmax {
    const NAMES: &'static [&'static str] = &["softmax", "log_softmax"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("Softmax", 13..=u32::MAX), ("LogSoftmax", 13..=u32::MAX)];

    fn with_name(name: &str) -> Softmax {
        Softmax { log: name == "log_softmax", ..Softmax::along(-1) }
    }

    fn name(&self) -> &'static str {
        Self::NAMES[usize::from(self.log)]
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("masked", Slot::Bool(&mut self.masked))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype.is_float(), "C1", "{} is not a float", ins[0]);
        let axis = normalize_axis(self.axis, ins[0].rank());
        require!(axis.is_some(), "C2", "axis {} is outside {}", self.axis, ins[0]);
        require!(!(self.masked && self.log), "C3", "a masked softmax has no logarithm");
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the operand")?;
        let (before, len, after) = around(x.shape(), axis);
        let mut values = x.to_f64s();
        for line in 0..before * after {
            let start = line / after * len * after + line % after;
            let at = |i: usize| start + i * after;
            let mut largest = f64::NEG_INFINITY;
            for i in 0..len {
                largest = largest.max(values[at(i)]);
            }
            if self.masked && largest == f64::NEG_INFINITY && (0..len).all(|i| !values[at(i)].is_nan()) {
                (0..len).for_each(|i| values[at(i)] = 0.0);
                continue;
            }
            let sum: f64 = (0..len).map(|i| libm::exp(values[at(i)] - largest)).sum();
            for i in 0..len {
                let shifted = values[at(i)] - largest;
                values[at(i)] = if self.log { shifted - libm::log(sum) } else { libm::exp(shifted) / sum };
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &values)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, y) = (cx.dout(0), cx.outs[0]);
        let axis = normalize_axis(self.axis, cx.shape(y).len()).expect("infer accepted the axis");
        if self.log {
            let total = cx.sum(g, &[axis], true)?;
            let share = cx.map(ScalarFn::Exp, &[y])?;
            let share = cx.map(ScalarFn::Mul, &[share, total])?;
            return vjp::one(cx.map(ScalarFn::Sub, &[g, share])?);
        }
        let product = cx.map(ScalarFn::Mul, &[g, y])?;
        let total = cx.sum(product, &[axis], true)?;
        let centered = cx.map(ScalarFn::Sub, &[g, total])?;
        vjp::one(cx.map(ScalarFn::Mul, &[centered, y])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        cx.along(Softmax { axis, ..self.clone() })
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
        // Where an element is NaN, so is the sum.
        let mut largest = n.reduce(Reduction::Greatest, &[shape[axis]], |n, k| load(n, &k[0]));
        let constant = |n: &mut NestBuilder, value| n.constant(dtype.accumulator(), value);
        if self.masked {
            // exp(-inf - 0) is 0, and so is the sum where nothing is left.
            let (lowest, zero) = (constant(&mut n, f64::NEG_INFINITY), constant(&mut n, 0.0));
            let nothing = n.apply(ScalarFn::Eq, &[largest, lowest]);
            largest = n.apply(ScalarFn::Select, &[nothing, zero, largest]);
        }
        let mut sum = n.reduce(Reduction::Sum, &[shape[axis]], |n, k| {
            let x = load(n, &k[0]);
            let shifted = n.apply(ScalarFn::Sub, &[x, largest]);
            n.apply(ScalarFn::Exp, &[shifted])
        });
        if self.masked {
            let (zero, one) = (constant(&mut n, 0.0), constant(&mut n, 1.0));
            let nothing = n.apply(ScalarFn::Eq, &[sum, zero]);
            sum = n.apply(ScalarFn::Select, &[nothing, one, sum]);
        }
        let x = load(&mut n, &at[axis]);
        let shifted = n.apply(ScalarFn::Sub, &[x, largest]);
        let result = match self.log {
            true => {
                let log = n.apply(ScalarFn::Log, &[sum]);
                n.apply(ScalarFn::Sub, &[shifted, log])
            }
            false => {
                // One division for a row: sums lie between 1 and the row's length.
                let one = constant(&mut n, 1.0);
                let share = n.apply(ScalarFn::Div, &[one, sum]);
                let exp = n.apply(ScalarFn::Exp, &[shifted]);
                n.apply(ScalarFn::Mul, &[exp, share])
            }
        };
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
    fn large_operands_do_not_overflow() {
        let x = Tensor::new(&[2, 3], &[0f64, 1., 2., 10000., 10001., 10002.]);
        let y = check(Softmax::along(-1), std::slice::from_ref(&x))[0].to_f64s();
        assert!((y[2] - 0.665_240_955_774_821_9).abs() < 1e-15);
        assert_eq!(y[..3], y[3..]);
        let y = check(Softmax { log: true, ..Softmax::along(1) }, &[x])[0].to_f64s();
        assert!((y[0] + 2.407_605_964_444_38).abs() < 1e-14);
    }

    #[test]
    fn every_axis_and_float_agrees_with_the_formula() {
        for axis in -3..3 {
            for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
                for log in [false, true] {
                    check(Softmax { log, ..Softmax::along(axis) }, &[sample(dtype, &[2, 3, 4], 5)]);
                }
            }
        }
        check(Softmax::along(1), &[sample(DType::F32, &[2, 0, 3], 1)]);
        check(Softmax::along(0), &[sample(DType::F32, &[1], 1)]);
    }

    #[test]
    fn constraints_are_named() {
        let ints = TensorType::fixed(DType::I32, &[2]);
        assert_eq!(Softmax::along(0).infer(&[&ints]).unwrap_err().constraint, "C1");
        let floats = TensorType::fixed(DType::F32, &[2]);
        assert_eq!(Softmax::along(1).infer(&[&floats]).unwrap_err().constraint, "C2");
    }
}
