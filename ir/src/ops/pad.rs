//! `pad`: a border around a tensor, or a crop of it.

use super::movement::{clamped_index, int, late_count, pick, position, unknown};
use super::vjp;
use super::{Gather, Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Late, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Guard, Index, NestBuilder};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};

/// What a border is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadMode {
    /// The fill operand.
    Constant,
    /// The tensor mirrored at its first and last element, which are not repeated.
    Reflect,
    /// The nearest element.
    Edge,
    /// The tensor again from its other end.
    Wrap,
}

impl Keyword for PadMode {
    const ALL: &'static [(&'static str, PadMode)] = &[
        ("constant", PadMode::Constant),
        ("reflect", PadMode::Reflect),
        ("edge", PadMode::Edge),
        ("wrap", PadMode::Wrap),
    ];
}

/// The operand with elements added before and after along axes; negative counts crop, and borders
/// continue what is left after cropping. The second operand is the fill, read in constant mode only.
///
/// - (C1) the fill has one element of the operand's type;
/// - (C2) axes (all if none are given) are distinct, within the rank, and have two counts each: the
///   pads are all counts before, then all counts after;
/// - (C3) no size becomes negative, and only constant mode pads an empty dimension.
///
/// ONNX: `Pad` (1..), whose counts are an operand since 11.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// Counts before along each axis, then counts after.
    pub pads: Late,
    /// Which axes; none given means all.
    pub axes: Late,
    /// What the border is filled with.
    pub mode: PadMode,
}

/// The counts of one dimension, cropping apart from padding.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Border {
    before: i64,
    after: i64,
    /// Where the part that is left starts, and its size.
    start: i64,
    kept: i64,
}

impl Border {
    fn new(n: usize, before: i64, after: i64) -> Border {
        let kept = (n as i64).saturating_add(before.min(0)).saturating_add(after.min(0));
        Border { before: before.max(0), after: after.max(0), start: before.min(0).saturating_neg(), kept }
    }

    /// The size of the result.
    fn size(self) -> Option<usize> {
        usize::try_from(self.kept.checked_add(self.before)?.checked_add(self.after)?).ok()
    }

    /// Whether elements are added.
    fn is_padded(self) -> bool {
        self.before > 0 || self.after > 0
    }
}

impl Pad {
    /// The counts of each dimension; `None` where they are not known yet.
    fn counts(&self, rank: usize) -> Result<Option<Vec<(i64, i64)>>, Violation> {
        let (Some(pads), Some(axes)) = (self.pads.as_known(), self.axes.as_known()) else {
            return Ok(None);
        };
        let axes: Vec<i64> = if axes.is_empty() { (0..rank as i64).collect() } else { axes.to_vec() };
        let (found, expected) = (pads.len(), 2 * axes.len());
        require!(found == expected, "C2", "{expected} counts are needed for {axes:?}, found {found}");
        let mut counts = vec![None; rank];
        for (i, &axis) in axes.iter().enumerate() {
            let at = normalize_axis(axis, rank);
            require!(at.is_some(), "C2", "axis {axis} is outside rank {rank}");
            let slot = &mut counts[at.unwrap_or(0)];
            require!(slot.is_none(), "C2", "axis {axis} is given twice");
            *slot = Some((pads[i], pads[axes.len() + i]));
        }
        Ok(Some(counts.into_iter().map(Option::unwrap_or_default).collect()))
    }

    fn borders(&self, shape: &[usize]) -> Vec<Border> {
        let counts = self.counts(shape.len()).ok().flatten().unwrap_or_default();
        shape.iter().zip(counts).map(|(&n, (before, after))| Border::new(n, before, after)).collect()
    }

    /// The position that position `at`, counted from the part kept and outside of it, repeats.
    fn source(&self, at: i64, kept: i64) -> i64 {
        match self.mode {
            PadMode::Constant => at,
            PadMode::Edge => at.clamp(0, kept - 1),
            PadMode::Wrap => at.rem_euclid(kept),
            PadMode::Reflect => {
                let period = (2 * (kept - 1)).max(1);
                let at = at.rem_euclid(period);
                at.min(period - at).min(kept - 1)
            }
        }
    }
}

impl OpDef for Pad {
    const NAMES: &'static [&'static str] = &["pad"];

    fn with_name(_: &str) -> Pad {
        Pad { pads: Late::default(), axes: Late::default(), mode: PadMode::Constant }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("pads", Slot::Late(&mut self.pads))?;
        codec.attr("axes", Slot::Late(&mut self.axes))?;
        codec.attr("mode", Slot::Keyword(&mut self.mode))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=4)?;
        let (x, fill) = (ins[0], ins[1]);
        let one = fill.dims.iter().all(|d| d.may_equal(&Dim::Fixed(1)));
        require!(fill.dtype == x.dtype && one, "C1", "the fill {fill} is not one element of {}", x.dtype);
        if self.axes == Late::default()
            && let Some(found) = late_count(&self.pads, ins)
        {
            require!(found == 2 * x.rank(), "C2", "{} counts are needed, found {found}", 2 * x.rank());
        }
        let Some(counts) = self.counts(x.rank())? else {
            return Ok(vec![unknown(x.dtype, x.rank())]);
        };
        let mut dims = Vec::with_capacity(x.rank());
        for (dim, (before, after)) in x.dims.iter().zip(counts) {
            dims.push(match dim {
                dim if (before, after) == (0, 0) => dim.clone(),
                Dim::Fixed(n) => {
                    let border = Border::new(*n, before, after);
                    let size = border.size().filter(|_| border.kept >= 0);
                    require!(size.is_some(), "C3", "{n} padded by {before} and {after} has no valid size");
                    let fillable = self.mode == PadMode::Constant || border.kept > 0 || !border.is_padded();
                    require!(fillable, "C3", "{} cannot extend an empty dimension", self.mode.word());
                    Dim::Fixed(size.unwrap_or(0))
                }
                Dim::Named(_) | Dim::Unknown => Dim::Unknown,
            });
        }
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, fill) = (&ins[0], &ins[1]);
        let borders = self.borders(x.shape());
        let shape: Vec<usize> = borders.iter().map(|b| b.size().unwrap_or(0)).collect();
        let stride = strides(x.shape());
        let mut at = stride.clone();
        Ok(vec![pick(&[x, fill], &shape, |index| {
            for ((slot, &i), b) in at.iter_mut().zip(index).zip(&borders) {
                let source = self.source(i as i64 - b.before, b.kept);
                if source < 0 || source >= b.kept {
                    return (1, 0);
                }
                *slot = (source + b.start) as usize;
            }
            (0, position(&at, &stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, g) = (cx.ins[0], cx.dout(0));
        let shape = cx.shape(x);
        let counts = self.counts(shape.len()).ok().flatten().expect("infer accepted the counts");
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        if self.mode == PadMode::Constant {
            let mut inner = g;
            for (axis, &(before, after)) in counts.iter().enumerate() {
                inner = cx.pad(inner, axis, -before, -after)?;
            }
            gradients[0] = Some(inner);
            if cx.wanted.get(1).copied().unwrap_or(false) {
                // Everything that is not the operand's.
                let axes: Vec<usize> = (0..shape.len()).collect();
                let (all, own) = (cx.sum(g, &axes, false)?, cx.sum(inner, &axes, false)?);
                let rest = cx.map(ScalarFn::Sub, &[all, own])?;
                let fill = cx.shape(cx.ins[1]);
                gradients[1] = Some(cx.reshape(rest, &fill)?);
            }
            return Ok(Vjp::Gradients(gradients));
        }
        // Which element each one is, along each axis.
        let mut value = x;
        for (axis, &(before, after)) in counts.iter().enumerate().filter(|(_, c)| **c != (0, 0)) {
            let line = Pad { pads: vec![before, after].into(), axes: vec![0].into(), mode: self.mode };
            let numbers = [Tensor::from_fn::<i64>(&[shape[axis]], |i| i as i64), Tensor::scalar(0i64)];
            let places =
                line.eval(&numbers).map_err(|message| Error::Eval { node: self.name().into(), message })?;
            let places = cx.builder.constant(places.into_iter().next().expect("there is one result"));
            value = cx.push(Gather { axis: axis as i64 }, &[value, places])?;
        }
        vjp::through(value)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axes = match self.axes.known() {
            [] => (1..=cx.rank(0) as i64).collect(),
            axes => axes.iter().map(|&axis| cx.axis(axis, 0)).collect::<Vec<i64>>(),
        };
        match axes.is_empty() {
            true => Ok(Vmap::OneByOne),
            false => cx.along(Pad { axes: axes.into(), ..self.clone() }),
        }
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &shape);
        let fill_operand = n.operand(ins[1].dtype, &ins[1].shape());
        let mut guards = Vec::new();
        let mut index = Vec::new();
        for (i, b) in n.domain().into_iter().zip(self.borders(&shape)) {
            let at = i.add_const(-b.before);
            let kept = b.kept as usize;
            let source = match self.mode {
                _ if !b.is_padded() => at,
                PadMode::Constant => {
                    guards.push(Guard::new(at.clone(), kept));
                    at
                }
                PadMode::Wrap => at.rem(b.kept),
                PadMode::Edge => {
                    let raw = n.index_value(&at);
                    clamped_index(&mut n, raw, kept)
                }
                PadMode::Reflect if kept == 1 => Index::constant(0),
                PadMode::Reflect => {
                    let period = 2 * (b.kept - 1);
                    let there = at.rem(period);
                    let (there, whole) = (n.index_value(&there), int(&mut n, period));
                    let back = n.apply(ScalarFn::Sub, &[whole, there]);
                    Index::value(n.apply(ScalarFn::Min, &[there, back]), kept)
                }
            };
            index.push(source.add_const(b.start));
        }
        let empty = ins[0].as_len() == Some(0) || outs[0].as_len() == Some(0);
        let origin = vec![Index::constant(0); ins[1].rank()];
        let element = match self.mode {
            _ if empty => n.load(fill_operand, &origin),
            PadMode::Constant => {
                let inside = n.inside(&guards);
                let element = n.load_guarded(operand, &index, &guards);
                let fill = n.load(fill_operand, &origin);
                n.apply(ScalarFn::Select, &[inside, element, fill])
            }
            PadMode::Reflect | PadMode::Edge | PadMode::Wrap => n.load(operand, &index),
        };
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let counts = self.counts(b.ty(ins[0]).rank()).ok().flatten();
        let none = counts.is_some_and(|counts| counts.iter().all(|&c| c == (0, 0)));
        Ok(none.then(|| Values::from_slice(&[ins[0]])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mode: PadMode, pads: &[i64]) -> Vec<i64> {
        let x = Tensor::new(&[3], &[1i16, 2, 3]);
        let op = Pad { pads: pads.into(), axes: Late::default(), mode };
        op.eval(&[x, Tensor::scalar(9i16)]).unwrap()[0].to_ints()
    }

    #[test]
    fn modes() {
        assert_eq!(run(PadMode::Constant, &[1, 2]), [9, 1, 2, 3, 9, 9]);
        assert_eq!(run(PadMode::Reflect, &[4, 3]), [1, 2, 3, 2, 1, 2, 3, 2, 1, 2]);
        assert_eq!(run(PadMode::Edge, &[2, 1]), [1, 1, 1, 2, 3, 3]);
        assert_eq!(run(PadMode::Wrap, &[2, 4]), [2, 3, 1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn negative_counts_crop_first() {
        assert_eq!(run(PadMode::Constant, &[-1, 1]), [2, 3, 9]);
        assert_eq!(run(PadMode::Wrap, &[-1, 2]), [2, 3, 2, 3]);
        let op = Pad { pads: vec![-2, -2].into(), axes: Late::default(), mode: PadMode::Constant };
        let (x, fill) = (TensorType::fixed(crate::DType::I8, &[3]), TensorType::fixed(crate::DType::I8, &[]));
        assert_eq!(op.infer(&[&x, &fill]).unwrap_err().constraint, "C3");
    }

    #[test]
    fn only_a_constant_extends_nothing() {
        let (x, fill) = (TensorType::fixed(crate::DType::I8, &[0]), TensorType::fixed(crate::DType::I8, &[]));
        let pad = |mode| Pad { pads: vec![1, 0].into(), axes: Late::default(), mode };
        assert!(pad(PadMode::Constant).infer(&[&x, &fill]).is_ok());
        assert_eq!(pad(PadMode::Edge).infer(&[&x, &fill]).unwrap_err().constraint, "C3");
    }
}
