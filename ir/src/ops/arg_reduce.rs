//! `arg_max` and `arg_min`: where the extremum along an axis is.

use super::movement::{around, int};
use super::{Lowered, OpDef, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder, Reduction};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis};
use crate::{require, with_element};

/// Which extremum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgKind {
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl Keyword for ArgKind {
    const ALL: &'static [(&'static str, ArgKind)] = &[("arg_max", ArgKind::Max), ("arg_min", ArgKind::Min)];
}

/// The position of the extremum along an axis, i64. NaN counts as the extremum; of equal elements the
/// first counts, or the last.
///
/// - (C1) the element type is a number;
/// - (C2) the axis lies within the operand's rank and is not empty.
///
/// ONNX: `ArgMax`, `ArgMin` (1..).
#[derive(Clone, Debug, PartialEq)]
pub struct ArgReduce {
    /// Which extremum.
    pub kind: ArgKind,
    /// The axis.
    pub axis: i64,
    /// Whether the axis stays, of size 1.
    pub keep: bool,
    /// Whether the last of equal elements counts.
    pub last: bool,
}

impl OpDef for ArgReduce {
    const NAMES: &'static [&'static str] = &["arg_max", "arg_min"];

    fn with_name(name: &str) -> ArgReduce {
        let found = ArgKind::ALL.iter().find(|(word, _)| *word == name);
        ArgReduce { kind: found.map_or(ArgKind::Max, |(_, k)| *k), axis: 0, keep: true, last: false }
    }

    fn name(&self) -> &'static str {
        self.kind.word()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))?;
        codec.attr("keepdims", Slot::Bool(&mut self.keep))?;
        codec.attr("select_last_index", Slot::Bool(&mut self.last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        let x = ins[0];
        require!(x.dtype != DType::Bool, "C1", "{x} is not numeric");
        let axis = normalize_axis(self.axis, x.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {x}", self.axis);
        let axis = axis.unwrap_or(0);
        require!(x.dims[axis] != Dim::Fixed(0), "C2", "axis {} of {x} is empty", self.axis);
        let mut dims = x.dims.clone();
        match self.keep {
            true => dims[axis] = Dim::Fixed(1),
            false => drop(dims.remove(axis)),
        }
        Ok(vec![TensorType { dtype: DType::I64, dims }])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let shape = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let axis = normalize_axis(self.axis, x.rank()).ok_or("the axis is outside the rank")?;
        let (_, n, inner) = around(x.shape(), axis);
        let out = with_element!(x.dtype(), T => {
            let elements = x.as_slice::<T>();
            // Whether `a` is more of an extremum than `b`.
            let beats = |a: T, b: T| {
                let (a_float, b_float) = (a.to_f64(), b.to_f64());
                if a_float.is_nan() || b_float.is_nan() {
                    return !b_float.is_nan();
                }
                match (T::DTYPE.is_float(), self.kind) {
                    (true, ArgKind::Max) => a_float > b_float,
                    (true, ArgKind::Min) => a_float < b_float,
                    (false, ArgKind::Max) => a.to_i128() > b.to_i128(),
                    (false, ArgKind::Min) => a.to_i128() < b.to_i128(),
                }
            };
            Tensor::from_fn::<i64>(&shape, |lane| {
                let start = lane / inner * n * inner + lane % inner;
                let at = |i: usize| elements[start + i * inner];
                (1..n).fold(0, |best, i| {
                    let better = if self.last { !beats(at(best), at(i)) } else { beats(at(i), at(best)) };
                    if better { i } else { best }
                }) as i64
            })
        });
        Ok(vec![out])
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        cx.along(ArgReduce { axis, ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (ty, shape) = (&ins[0], ins[0].shape());
        let axis = normalize_axis(self.axis, shape.len()).expect("infer accepted the axis");
        let size = shape[axis];
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ty.dtype, &shape);
        let mut rest = n.domain();
        if self.keep {
            rest.remove(axis);
        }
        let at = |k: &Index| {
            let mut index = rest.clone();
            index.insert(axis, k.clone());
            index
        };
        let extremum = match self.kind {
            ArgKind::Max => Reduction::Max,
            ArgKind::Min => Reduction::Min,
        };
        let best = n.reduce(extremum, &[size], |n, k| n.load(operand, &at(&k[0])));
        let (nearest, nowhere) = match self.last {
            false => (Reduction::Min, size as i64 - 1),
            true => (Reduction::Max, 0),
        };
        let result = n.reduce(nearest, &[size], |n, k| {
            let element = n.load(operand, &at(&k[0]));
            let mut found = n.apply(ScalarFn::Eq, &[element, best]);
            if ty.dtype.is_float() {
                // The extremum is NaN exactly if some element is, and equals none then.
                let is_nan = n.apply(ScalarFn::Ne, &[element, element]);
                found = n.apply(ScalarFn::Or, &[found, is_nan]);
            }
            let (here, nowhere) = (n.index_value(&k[0]), int(n, nowhere));
            n.apply(ScalarFn::Select, &[found, here, nowhere])
        });
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: ArgReduce, x: &[f32]) -> i64 {
        op.eval(&[Tensor::new(&[x.len()], x)]).unwrap()[0].to_ints()[0]
    }

    #[test]
    fn ties_and_nans() {
        let first = ArgReduce { keep: false, ..ArgReduce::with_name("arg_max") };
        let last = ArgReduce { last: true, ..first.clone() };
        assert_eq!(run(first.clone(), &[1.0, 3.0, 3.0]), 1);
        assert_eq!(run(last.clone(), &[1.0, 3.0, 3.0]), 2);
        assert_eq!(run(first.clone(), &[1.0, f32::NAN, 3.0, f32::NAN]), 1);
        assert_eq!(run(last, &[1.0, f32::NAN, 3.0, f32::NAN]), 3);
        assert_eq!(run(first, &[-0.0, 0.0]), 0);
        assert_eq!(run(ArgReduce::with_name("arg_min"), &[2.0, f32::NEG_INFINITY, 1.0]), 1);
    }

    #[test]
    fn shapes() {
        let op = ArgReduce { axis: -2, ..ArgReduce::with_name("arg_min") };
        let x = Tensor::new(&[2, 3], &[5u64, 1, u64::MAX, 4, 2, u64::MAX - 1]);
        assert_eq!(op.eval(&[x]).unwrap()[0], Tensor::new(&[1, 3], &[1i64, 0, 1]));
        let empty = TensorType::fixed(DType::F32, &[0, 3]);
        assert_eq!(op.infer(&[&empty]).unwrap_err().constraint, "C2");
        let lanes = TensorType::fixed(DType::F32, &[3, 0]);
        assert_eq!(op.infer(&[&lanes]).unwrap()[0].to_string(), "i64[1, 0]");
    }
}
