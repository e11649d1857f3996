//! `cumulative_sum` and `cumulative_prod`: running totals along an axis.

use super::movement::{around, late_count};
use super::vjp;
use super::{Gradients, Lowered, OpDef, Pad, PadMode, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Late, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::Value;
use crate::loops::{Index, KernelBuilder, LoopKind, Reduction, Rhs, Role};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{TensorType, normalize_axis};
use crate::{require, with_element};

/// What is accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CumulativeKind {
    /// A sum.
    Sum,
    /// A product.
    Prod,
}

impl Keyword for CumulativeKind {
    const ALL: &'static [(&'static str, CumulativeKind)] =
        &[("cumulative_sum", CumulativeKind::Sum), ("cumulative_prod", CumulativeKind::Prod)];
}

/// Each element combined with all before it along an axis. f16 and bf16 accumulate in f32.
///
/// - (C1) the element type is a number;
/// - (C2) the axis is one integer within the operand's rank.
///
/// ONNX: `CumSum` (11..) and `CumProd`, whose axis is an operand.
#[derive(Clone, Debug, PartialEq)]
pub struct Cumulative {
    /// What is accumulated.
    pub kind: CumulativeKind,
    /// The axis.
    pub axis: Late,
    /// Whether an element is left out of its own total.
    pub exclusive: bool,
    /// Whether totals start at the end.
    pub reverse: bool,
}

/// The elements so many places before along an axis (after, if reversed), 1 where there are none.
fn shifted(cx: &mut VjpCx<'_>, x: Value, axis: usize, by: i64, reverse: bool) -> Result<Value, Error> {
    let pads = if reverse { vec![-by, by] } else { vec![by, -by] };
    let one = cx.builder.scalar_like(x, 1.0);
    cx.push(Pad { pads: pads.into(), axes: vec![axis as i64].into(), mode: PadMode::Constant }, &[x, one])
}

impl OpDef for Cumulative {
    const NAMES: &'static [&'static str] = &["cumulative_sum", "cumulative_prod"];

    fn with_name(name: &str) -> Cumulative {
        let found = CumulativeKind::ALL.iter().find(|(word, _)| *word == name);
        let kind = found.map_or(CumulativeKind::Sum, |(_, kind)| *kind);
        Cumulative { kind, axis: vec![0].into(), exclusive: false, reverse: false }
    }

    fn name(&self) -> &'static str {
        self.kind.word()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Late(&mut self.axis))?;
        codec.attr("exclusive", Slot::Bool(&mut self.exclusive))?;
        codec.attr("reverse", Slot::Bool(&mut self.reverse))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        require!(x.dtype != DType::Bool, "C1", "{x} is not numeric");
        match self.axis.as_known() {
            None => {
                require!(
                    late_count(&self.axis, ins).is_none_or(|n| n == 1),
                    "C2",
                    "the axis is not one integer"
                );
            }
            Some(&[axis]) => {
                require!(normalize_axis(axis, x.rank()).is_some(), "C2", "axis {axis} is outside {x}");
            }
            Some(axes) => return Err(Violation::new("C2", format!("{axes:?} is not one axis"))),
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axis = normalize_axis(self.axis.known()[0], x.rank()).ok_or("the axis is outside the rank")?;
        let (outer, n, inner) = around(x.shape(), axis);
        let mut order: Vec<usize> = (0..n).collect();
        if self.reverse {
            order.reverse();
        }
        let mut out = Tensor::zeros(x.dtype(), x.shape());
        with_element!(x.dtype(), T => {
            let (from, to) = (x.as_slice::<T>(), out.as_mut_slice::<T>());
            for lane in 0..outer * inner {
                let start = lane / inner * n * inner + lane % inner;
                let (mut float, mut int) = match self.kind {
                    CumulativeKind::Sum => (0.0, 0i128),
                    CumulativeKind::Prod => (1.0, 1),
                };
                for &i in &order {
                    let at = start + i * inner;
                    let before = (float, int);
                    match self.kind {
                        CumulativeKind::Sum => {
                            float += from[at].to_f64();
                            int += from[at].to_i128();
                        }
                        CumulativeKind::Prod => {
                            float *= from[at].to_f64();
                            int = T::from_i128(int.wrapping_mul(from[at].to_i128())).to_i128();
                        }
                    }
                    let (f, i) = if self.exclusive { before } else { (float, int) };
                    to[at] = if T::DTYPE.is_float() { <T as Element>::from_f64(f) } else { T::from_i128(i) };
                }
            }
        });
        Ok(vec![out])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, g) = (cx.ins[0], cx.dout(0));
        if self.kind == CumulativeKind::Sum {
            let back = Cumulative { reverse: !self.reverse, ..self.clone() };
            let mut gradients = Gradients::from_elem(None, cx.ins.len());
            gradients[0] = Some(cx.push(back, &[g])?);
            return Ok(Vjp::Gradients(gradients));
        }
        // Products of twice as many neighbours at each step, which have gradients where elements are 0.
        let shape = cx.shape(x);
        let axis = normalize_axis(self.axis.known()[0], shape.len()).expect("infer accepted the axis");
        let n = shape[axis] as i64;
        let mut product = x;
        if self.exclusive {
            product = shifted(cx, product, axis, 1, self.reverse)?;
        }
        let mut reach = 1;
        while reach < n {
            let before = shifted(cx, product, axis, reach, self.reverse)?;
            product = cx.map(ScalarFn::Mul, &[product, before])?;
            reach *= 2;
        }
        vjp::through(product)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis.known()[0], 0);
        cx.along(Cumulative { axis: vec![axis].into(), ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        let (dtype, shape) = (ins[0].dtype, ins[0].shape());
        let axis = normalize_axis(self.axis.known()[0], shape.len()).expect("infer accepted the axis");
        let (outer, n, inner) = around(&shape, axis);
        let len = outer * n * inner;
        if len == 0 {
            return Ok(Lowered::Interpret);
        }
        let wide = dtype.accumulator();
        let (f, start) = match self.kind {
            CumulativeKind::Sum => (ScalarFn::Add, Reduction::Sum),
            CumulativeKind::Prod => (ScalarFn::Mul, Reduction::Prod),
        };
        let mut b = KernelBuilder::new(self.name());
        let x = b.buffer("x", dtype, len, Role::In);
        let out = b.buffer("out", dtype, len, Role::Out);
        let acc = b.buffer("acc", wide, 1, Role::Register);
        let only = Index::constant(0);
        let cast = |b: &mut KernelBuilder, val, to| match b.dtype(val) == to {
            true => val,
            false => b.apply(ScalarFn::Cast(to), &[val]),
        };
        b.repeat(LoopKind::Serial, outer, |b, o| {
            b.repeat(LoopKind::Serial, inner, |b, lane| {
                let identity = b.define(wide, Rhs::Const(start.identity(wide)));
                b.store(acc, only.clone(), identity);
                b.repeat(LoopKind::Serial, n, |b, i| {
                    let i = if self.reverse { i.mul(-1).add_const(n as i64 - 1) } else { i };
                    let at = Index::flatten(&[o.clone(), i, lane.clone()], &[outer, n, inner]);
                    let element = b.load(x, at.clone());
                    let element = cast(b, element, wide);
                    let before = b.load(acc, only.clone());
                    let after = b.apply(f, &[before, element]);
                    b.store(acc, only.clone(), after);
                    let total = cast(b, if self.exclusive { before } else { after }, dtype);
                    b.store(out, at, total);
                });
            });
        });
        Ok(Lowered::Kernel(Box::new(b.finish())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: CumulativeKind, axis: i64, exclusive: bool, reverse: bool) -> Vec<i64> {
        let x = Tensor::new(&[2, 3], &[1i32, 2, 3, 4, 5, 6]);
        let op = Cumulative { kind, axis: vec![axis].into(), exclusive, reverse };
        op.eval(&[x]).unwrap()[0].to_ints()
    }

    #[test]
    fn totals() {
        assert_eq!(run(CumulativeKind::Sum, -1, false, false), [1, 3, 6, 4, 9, 15]);
        assert_eq!(run(CumulativeKind::Sum, 0, false, false), [1, 2, 3, 5, 7, 9]);
        assert_eq!(run(CumulativeKind::Sum, 1, true, true), [5, 3, 0, 11, 6, 0]);
        assert_eq!(run(CumulativeKind::Prod, 1, true, false), [1, 1, 2, 1, 4, 20]);
    }

    #[test]
    fn edges() {
        let op = Cumulative::with_name("cumulative_prod");
        let empty = Tensor::zeros(DType::F32, &[0, 2]);
        assert_eq!(op.eval(&[empty.clone()]).unwrap(), [empty]);
        assert_eq!(op.infer(&[&TensorType::fixed(DType::F32, &[])]).unwrap_err().constraint, "C2");
        let wrapping = Tensor::new(&[3], &[100i8, 100, 100]);
        let sum = Cumulative::with_name("cumulative_sum");
        assert_eq!(sum.eval(&[wrapping]).unwrap()[0].to_ints(), [100, -56, 44]);
    }
}
