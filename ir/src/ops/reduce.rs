//! `reduce_sum`, `reduce_mean`, `reduce_prod`, `reduce_max`, `reduce_min` over axes.

use super::movement::late_count;
use super::vjp;
use super::{Concat, Lowered, OpDef, Slice, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Late, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::Value;
use crate::loops::{Index, NestBuilder, Reduction};
use crate::scalar::{self, Operand, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, normalize_axis, strides};
use crate::{require, with_element};

/// How elements are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// Their sum.
    Sum,
    /// Their sum divided by their number.
    Mean,
    /// Their product.
    Prod,
    /// The largest; NaN if any is.
    Max,
    /// The smallest; NaN if any is.
    Min,
}

impl Keyword for ReduceKind {
    const ALL: &'static [(&'static str, ReduceKind)] = &[
        ("reduce_sum", ReduceKind::Sum),
        ("reduce_mean", ReduceKind::Mean),
        ("reduce_prod", ReduceKind::Prod),
        ("reduce_max", ReduceKind::Max),
        ("reduce_min", ReduceKind::Min),
    ];
}

/// Combines all elements along the axes.
///
/// f16 and bf16 accumulate in f32 and round once. Means of narrower integers than 32 bits accumulate in 32
/// bits, for there may be more elements than their type holds. Over no elements the result is the identity:
/// 0, 1, -inf or the smallest integer, inf or the largest; a mean is 0/0.
///
/// - (C1) the element type is a number, for `mean` a float or integer (which divides truncating);
/// - (C2) axes lie within the operand's rank and are distinct.
///
/// ONNX: `ReduceSum`, `ReduceMean`, `ReduceProd`, `ReduceMax`, `ReduceMin` (1..).
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// How.
    pub kind: ReduceKind,
    /// Which axes; none means all, unless `none_if_empty`.
    pub axes: Late,
    /// Whether reduced axes stay, of size 1.
    pub keep: bool,
    /// Whether no axes means nothing is reduced.
    pub none_if_empty: bool,
}

impl Reduce {
    /// What partial results are.
    fn accumulator(&self, dtype: DType) -> DType {
        match self.kind {
            ReduceKind::Mean if dtype.is_int() && dtype.size() < 4 => {
                if dtype.is_signed() {
                    DType::I32
                } else {
                    DType::U32
                }
            }
            _ => dtype.accumulator(),
        }
    }

    /// Over known axes.
    pub fn over(kind: ReduceKind, axes: &[i64], keep: bool) -> Reduce {
        Reduce { kind, axes: axes.into(), keep, none_if_empty: true }
    }

    /// Which of the operand's dimensions are reduced.
    fn reduced(&self, axes: &[i64], rank: usize) -> Result<Vec<bool>, Violation> {
        let mut reduced = vec![axes.is_empty() && !self.none_if_empty; rank];
        for &axis in axes {
            let found = normalize_axis(axis, rank);
            require!(found.is_some(), "C2", "axis {axis} is outside rank {rank}");
            let slot = &mut reduced[found.unwrap_or(0)];
            require!(!*slot, "C2", "axis {axis} is given twice");
            *slot = true;
        }
        Ok(reduced)
    }
}

/// The product along an axis, which stays with size 1, as products of one half with the other: they have
/// gradients where elements are 0.
fn halves(cx: &mut VjpCx<'_>, mut x: Value, axis: usize) -> Result<Value, Error> {
    let mut shape = cx.shape(x);
    if shape[axis] == 0 {
        shape[axis] = 1;
        let one = cx.builder.scalar_like(x, 1.0);
        return cx.broadcast(one, &shape);
    }
    while shape[axis] > 1 {
        let (n, half) = (shape[axis] as i64, shape[axis] as i64 / 2);
        let low = cx.push(Slice::along(axis, 0, half), &[x])?;
        let high = cx.push(Slice::along(axis, half, 2 * half), &[x])?;
        let rest = cx.push(Slice::along(axis, 2 * half, n), &[x])?;
        x = cx.map(ScalarFn::Mul, &[low, high])?;
        if 2 * half < n {
            x = cx.push(Concat { axis: axis as i64 }, &[x, rest])?;
        }
        shape = cx.shape(x);
    }
    Ok(x)
}

impl OpDef for Reduce {
    const NAMES: &'static [&'static str] =
        &["reduce_sum", "reduce_mean", "reduce_prod", "reduce_max", "reduce_min"];

    fn with_name(name: &str) -> Reduce {
        let kind =
            ReduceKind::ALL.iter().find(|(word, _)| *word == name).map_or(ReduceKind::Sum, |(_, k)| *k);
        Reduce { kind, axes: Late::default(), keep: true, none_if_empty: false }
    }

    fn name(&self) -> &'static str {
        self.kind.word()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axes", Slot::Late(&mut self.axes))?;
        codec.attr("keepdims", Slot::Bool(&mut self.keep))?;
        codec.attr("noop_with_empty_axes", Slot::Bool(&mut self.none_if_empty))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let ty = ins[0];
        require!(ty.dtype != DType::Bool, "C1", "{ty} is not numeric");
        let axes = match &self.axes {
            Late::Known(axes) => axes,
            Late::Operand(_) => {
                let count = late_count(&self.axes, ins);
                let rank = match (self.keep, count) {
                    (true, _) => ty.rank(),
                    (false, Some(n)) if n <= ty.rank() => ty.rank() - n,
                    (false, _) => return Err(Violation::new("C2", "the number of axes is not known")),
                };
                return Ok(vec![TensorType::new(ty.dtype, vec![Dim::Unknown; rank])]);
            }
        };
        let reduced = self.reduced(axes, ty.rank())?;
        let dims = ty.dims.iter().zip(&reduced).filter_map(|(dim, &r)| match (r, self.keep) {
            (false, _) => Some(dim.clone()),
            (true, true) => Some(Dim::Fixed(1)),
            (true, false) => None,
        });
        Ok(vec![TensorType::new(ty.dtype, dims.collect::<Vec<_>>())])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let out = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0);
        let reduced = self.reduced(self.axes.known(), x.rank()).map_err(|v| v.to_string())?;
        let kept: Shape = x.shape().iter().zip(&reduced).map(|(&n, &r)| if r { 1 } else { n }).collect();
        let stride = strides(&kept);
        let count: usize = x.shape().iter().zip(&reduced).filter(|(_, r)| **r).map(|(n, _)| n).product();
        let len: usize = kept.iter().product();
        let (kind, dtype) = (self.kind, x.dtype());
        let place = |mut linear: usize| {
            let mut at = 0;
            for d in (0..kept.len()).rev() {
                let n = x.shape()[d];
                at += if reduced[d] { 0 } else { (linear % n) * stride[d] };
                linear /= n;
            }
            at
        };
        let shape = out.shape();
        if dtype.is_float() {
            let (start, f): (f64, ScalarFn) = match kind {
                ReduceKind::Sum | ReduceKind::Mean => (0.0, ScalarFn::Add),
                ReduceKind::Prod => (1.0, ScalarFn::Mul),
                ReduceKind::Max => (f64::NEG_INFINITY, ScalarFn::Max),
                ReduceKind::Min => (f64::INFINITY, ScalarFn::Min),
            };
            let mut acc = vec![Operand::Float(start); len];
            for (i, v) in x.to_f64s().into_iter().enumerate() {
                let slot = &mut acc[place(i)];
                *slot = scalar::eval(f, DType::F64, &[*slot, Operand::Float(v)]);
            }
            let finish = |v: &Operand| match v {
                Operand::Float(v) if kind == ReduceKind::Mean => v / count as f64,
                Operand::Float(v) => *v,
                Operand::Int(_) => unreachable!("floats reduce to floats"),
            };
            return Ok(vec![Tensor::from_f64s(dtype, &shape, &acc.iter().map(finish).collect::<Vec<_>>())]);
        }
        let (low, high) = dtype.int_range();
        let start = match kind {
            ReduceKind::Sum | ReduceKind::Mean => 0,
            ReduceKind::Prod => 1,
            ReduceKind::Max => low,
            ReduceKind::Min => high,
        };
        // Integers wrap at every step, as they do in a register of their width.
        let accumulator = self.accumulator(dtype);
        let wrap = |v: i128| with_element!(accumulator, T => T::from_i128(v).to_i128());
        let mut acc = vec![start; len];
        for (i, v) in x.to_i128s().into_iter().enumerate() {
            let slot = &mut acc[place(i)];
            *slot = wrap(match kind {
                ReduceKind::Sum | ReduceKind::Mean => *slot + v,
                ReduceKind::Prod => slot.wrapping_mul(v),
                ReduceKind::Max => (*slot).max(v),
                ReduceKind::Min => (*slot).min(v),
            });
        }
        if kind == ReduceKind::Mean {
            let count = (count as i128).min(accumulator.int_range().1);
            acc.iter_mut().for_each(|v| *v = v.checked_div(count).unwrap_or(0));
        }
        Ok(vec![Tensor::from_i128s(dtype, &shape, &acc)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, g, y) = (cx.ins[0], cx.dout(0), cx.outs[0]);
        let shape = cx.shape(x);
        let reduced = self.reduced(self.axes.known(), shape.len()).expect("infer accepted the axes");
        let kept: Shape = shape.iter().zip(&reduced).map(|(&n, &r)| if r { 1 } else { n }).collect();
        let g = cx.reshape(g, &kept)?;
        let axes: Vec<usize> = (0..shape.len()).filter(|&d| reduced[d]).collect();
        match self.kind {
            ReduceKind::Sum => vjp::one(cx.broadcast(g, &shape)?),
            ReduceKind::Mean => {
                let count: usize = axes.iter().map(|&d| shape[d]).product();
                let share = cx.with_constant(ScalarFn::Div, g, count as f64)?;
                vjp::one(cx.broadcast(share, &shape)?)
            }
            // Elements that are equally extreme share alike.
            ReduceKind::Max | ReduceKind::Min => {
                let y = cx.reshape(y, &kept)?;
                let chosen = cx.map(ScalarFn::Eq, &[x, y])?;
                let ones = cx.map(ScalarFn::Cast(cx.dtype(x)), &[chosen])?;
                let count = cx.sum(ones, &axes, true)?;
                let share = cx.map(ScalarFn::Div, &[g, count])?;
                let share = cx.broadcast(share, &shape)?;
                vjp::one(cx.masked(chosen, share)?)
            }
            ReduceKind::Prod => {
                let product = axes.iter().try_fold(x, |product, &axis| halves(cx, product, axis))?;
                let result = cx.shape(cx.outs[0]);
                vjp::through(cx.reshape(product, &result)?)
            }
        }
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axes = match self.axes.known() {
            [] if !self.none_if_empty => (1..=cx.rank(0) as i64).collect(),
            axes => axes.iter().map(|&axis| cx.axis(axis, 0)).collect::<Vec<i64>>(),
        };
        cx.along(Reduce::over(self.kind, &axes, self.keep))
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let ty = &ins[0];
        let shape = ty.shape();
        let reduced = self.reduced(self.axes.known(), shape.len()).expect("infer accepted the axes");
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ty.dtype, &shape);
        let mut domain = n.domain().into_iter();
        let mut at: Vec<Option<Index>> = Vec::new();
        for &r in &reduced {
            at.push(match (r, self.keep) {
                (false, _) => domain.next(),
                (true, keep) => {
                    if keep {
                        domain.next();
                    }
                    None
                }
            });
        }
        let extents: Vec<usize> = shape.iter().zip(&reduced).filter(|(_, r)| **r).map(|(&n, _)| n).collect();
        let accumulator = self.accumulator(ty.dtype);
        let kind = match self.kind {
            ReduceKind::Sum | ReduceKind::Mean => Reduction::Sum,
            ReduceKind::Prod => Reduction::Prod,
            ReduceKind::Max => Reduction::Max,
            ReduceKind::Min => Reduction::Min,
        };
        let mut result = n.reduce(kind, &extents, |n, k| {
            let mut k = k.iter();
            let part = |i: &Option<Index>| {
                i.clone().unwrap_or_else(|| k.next().expect("one a reduced axis").clone())
            };
            let index: Vec<Index> = at.iter().map(part).collect();
            let x = n.load(operand, &index);
            n.cast(x, accumulator)
        });
        if self.kind == ReduceKind::Mean {
            let count: usize = extents.iter().product();
            let count = n.constant(accumulator, count as f64);
            result = n.apply(ScalarFn::Div, &[result, count]);
        }
        let result = n.cast(result, ty.dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn means_of_more_elements_than_the_type_holds() {
        for (dtype, value, mean) in
            [(DType::I8, -7, -7.0), (DType::U8, 200, 200.0), (DType::I16, -300, -300.0)]
        {
            let x = Tensor::from_i128s(dtype, &[2, 70_000], &vec![value; 140_000]);
            let op = Reduce::over(ReduceKind::Mean, &[1], false);
            assert_eq!(check(op, &[x])[0].to_f64s(), [mean, mean]);
        }
    }
}
