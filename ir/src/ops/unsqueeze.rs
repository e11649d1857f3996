//! `unsqueeze`, `squeeze` and `flatten`: the same elements with dimensions of 1 added, removed, or
//! dimensions merged.

use smallvec::SmallVec;

use super::movement::{late_count, product, unknown};
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis};

/// The operand with dimensions of 1 inserted.
///
/// - (C1) axes are distinct and lie within the result's rank, and how many there are is known.
///
/// ONNX: `Unsqueeze` (1..), whose axes are an operand since 13.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unsqueeze {
    /// Where the dimensions of 1 are in the result.
    pub axes: Late,
}

/// The operand without some of its dimensions of 1.
///
/// - (C1) axes are distinct and lie within the operand's rank, and how many there are is known;
/// - (C2) the dimensions removed have size 1; without axes every size is known.
///
/// ONNX: `Squeeze` (1..), whose axes are an operand since 13.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Squeeze {
    /// Which dimensions go; none given means all of size 1.
    pub axes: Late,
}

/// The operand as a matrix: dimensions before the axis merged to rows, the others to columns.
///
/// - (C1) the axis lies in `-rank..=rank`.
///
/// ONNX: `Flatten` (1..).
#[derive(Clone, Debug, PartialEq)]
pub struct Flatten {
    /// The first dimension of the columns; the rank means that there is one column.
    pub axis: i64,
}

/// Which of `rank` dimensions the axes name.
fn marked(axes: &[i64], rank: usize) -> Result<SmallVec<[bool; 8]>, Violation> {
    let mut marked: SmallVec<[bool; 8]> = (0..rank).map(|_| false).collect();
    for &axis in axes {
        let found = normalize_axis(axis, rank);
        require!(found.is_some(), "C1", "axis {axis} is outside rank {rank}");
        let slot = &mut marked[found.unwrap_or(0)];
        require!(!*slot, "C1", "axis {axis} is given twice");
        *slot = true;
    }
    Ok(marked)
}

/// The same bytes under the inferred shape.
fn reshaped(x: &Tensor, inferred: Result<Vec<TensorType>, Violation>) -> Result<Vec<Tensor>, String> {
    let shape = inferred.map_err(|v| v.to_string())?.remove(0).shape();
    Ok(vec![x.reshaped(&shape)])
}

/// The operand itself if its known shape stays.
fn unchanged(
    b: &Builder,
    x: Value,
    inferred: Result<Vec<TensorType>, Violation>,
) -> Result<Option<Values>, Error> {
    let same = inferred.is_ok_and(|to| to[0] == *b.ty(x) && !to[0].dims.contains(&Dim::Unknown));
    Ok(same.then(|| Values::from_slice(&[x])))
}

impl OpDef for Unsqueeze {
    const NAMES: &'static [&'static str] = &["unsqueeze"];

    fn with_name(_: &str) -> Unsqueeze {
        Unsqueeze::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axes", Slot::Late(&mut self.axes))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        let count = late_count(&self.axes, ins);
        require!(count.is_some(), "C1", "the number of axes is not known");
        let rank = x.rank() + count.unwrap_or(0);
        let Some(axes) = self.axes.as_known() else {
            return Ok(vec![unknown(x.dtype, rank)]);
        };
        let mut rest = x.dims.iter().cloned();
        let inserted = marked(axes, rank)?;
        let dims = inserted.iter().map(|&new| if new { Some(Dim::Fixed(1)) } else { rest.next() });
        Ok(vec![TensorType::new(x.dtype, dims.flatten())])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        reshaped(&ins[0], self.infer(&[&ins[0].ty()]))
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, shape) = (cx.dout(0), cx.shape(cx.ins[0]));
        vjp::one(cx.reshape(g, &shape)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.reshaped()
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        let inserted = marked(self.axes.known(), outs[0].rank()).expect("infer accepted the axes");
        let kept = n.domain().into_iter().zip(inserted).filter(|(_, new)| !new);
        let index: Vec<Index> = kept.map(|(i, _)| i).collect();
        let element = n.load(operand, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, _: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        Ok(self.axes.as_known().is_some_and(<[i64]>::is_empty).then(|| Values::from_slice(&[ins[0]])))
    }
}

impl Squeeze {
    fn removed(&self, axes: &[i64], x: &TensorType) -> Result<SmallVec<[bool; 8]>, Violation> {
        if axes.is_empty() {
            require!(x.as_shape().is_some(), "C2", "which dimensions of {x} are 1 is not known");
            return Ok(x.dims.iter().map(|d| *d == Dim::Fixed(1)).collect());
        }
        let removed = marked(axes, x.rank())?;
        for (dim, _) in x.dims.iter().zip(&removed).filter(|(_, r)| **r) {
            require!(dim.may_equal(&Dim::Fixed(1)), "C2", "a dimension of {dim} cannot be removed from {x}");
        }
        Ok(removed)
    }
}

impl OpDef for Squeeze {
    const NAMES: &'static [&'static str] = &["squeeze"];

    fn with_name(_: &str) -> Squeeze {
        Squeeze::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axes", Slot::Late(&mut self.axes))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        let x = ins[0];
        let Some(axes) = self.axes.as_known() else {
            let rank = late_count(&self.axes, ins).filter(|&n| n > 0).and_then(|n| x.rank().checked_sub(n));
            require!(rank.is_some(), "C1", "the number of axes is not known, or exceeds the rank of {x}");
            return Ok(vec![unknown(x.dtype, rank.unwrap_or(0))]);
        };
        let removed = self.removed(axes, x)?;
        let kept = x.dims.iter().zip(&removed).filter(|(_, r)| !**r).map(|(d, _)| d.clone());
        Ok(vec![TensorType::new(x.dtype, kept)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        reshaped(&ins[0], self.infer(&[&ins[0].ty()]))
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, shape) = (cx.dout(0), cx.shape(cx.ins[0]));
        vjp::one(cx.reshape(g, &shape)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.reshaped()
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        let removed = self.removed(self.axes.known(), &ins[0]).expect("infer accepted the axes");
        let mut kept = n.domain().into_iter();
        let part = |&gone: &bool| if gone { None } else { kept.next() }.unwrap_or_default();
        let index: Vec<Index> = removed.iter().map(part).collect();
        let element = n.load(operand, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        unchanged(b, ins[0], self.infer(&[b.ty(ins[0])]))
    }
}

impl OpDef for Flatten {
    const NAMES: &'static [&'static str] = &["flatten"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Flatten", 1..=u32::MAX)];

    fn with_name(_: &str) -> Flatten {
        Flatten { axis: 1 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        let (x, rank) = (ins[0], ins[0].rank() as i64);
        let axis = self.axis;
        require!((-rank..=rank).contains(&axis), "C1", "axis {axis} is outside -{rank}..={rank}");
        let (rows, columns) = x.dims.split_at(if axis < 0 { axis + rank } else { axis } as usize);
        Ok(vec![TensorType::new(x.dtype, [product(rows), product(columns)])])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        reshaped(&ins[0], self.infer(&[&ins[0].ty()]))
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, shape) = (cx.dout(0), cx.shape(cx.ins[0]));
        vjp::one(cx.reshape(g, &shape)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.reshaped()
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let to = outs[0].shape();
        let mut n = NestBuilder::new(&to);
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        let flat = Index::flatten(&n.domain(), &to);
        let element = n.load(operand, &Index::unflatten(&flat, &ins[0].shape()));
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        unchanged(b, ins[0], self.infer(&[b.ty(ins[0])]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn named() -> TensorType {
        TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(1), Dim::Fixed(3)])
    }

    #[test]
    fn dimensions_come_and_go() {
        let up = Unsqueeze { axes: vec![0, -1].into() };
        assert_eq!(up.infer(&[&named()]).unwrap()[0].to_string(), "f32[1, n, 1, 3, 1]");
        let down = Squeeze { axes: vec![-2].into() };
        assert_eq!(down.infer(&[&named()]).unwrap()[0].to_string(), "f32[n, 3]");
        assert_eq!(Squeeze { axes: vec![2].into() }.infer(&[&named()]).unwrap_err().constraint, "C2");
        assert_eq!(Squeeze::default().infer(&[&named()]).unwrap_err().constraint, "C2");
        assert_eq!(Unsqueeze { axes: vec![0, -5].into() }.infer(&[&named()]).unwrap_err().constraint, "C1");
    }

    #[test]
    fn flatten_keeps_names_where_it_can() {
        assert_eq!(Flatten { axis: 1 }.infer(&[&named()]).unwrap()[0].to_string(), "f32[n, 3]");
        assert_eq!(Flatten { axis: -1 }.infer(&[&named()]).unwrap()[0].to_string(), "f32[n, 3]");
        assert_eq!(Flatten { axis: 3 }.infer(&[&named()]).unwrap()[0].to_string(), "f32[?, 1]");
        assert_eq!(Flatten { axis: 0 }.eval(&[Tensor::scalar(7i8)]).unwrap()[0].shape(), [1, 1]);
    }
}
