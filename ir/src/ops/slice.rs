//! `slice`: every step-th element of ranges along axes.

use super::movement::{late_count, pick, position};
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};

/// Elements `start`, `start + step`, .. before `end` along each axis, as numpy's slices: bounds may
/// count from the end and are clamped, steps may be negative.
///
/// - (C1) there are as many ends, axes (if any are given) and steps (if any) as starts;
/// - (C2) steps are not 0;
/// - (C3) axes are distinct and lie within the operand's rank.
///
/// ONNX: `Slice` (1..), whose bounds are operands since 10; `Split` imports as several of these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// The first position along each axis.
    pub starts: Late,
    /// The position before which (after which, if the step is negative) to stop.
    pub ends: Late,
    /// Which axes; none given means the first ones.
    pub axes: Late,
    /// The steps; none given means 1.
    pub steps: Late,
}

/// What a slice takes of one dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    start: i64,
    step: i64,
    len: usize,
}

impl Range {
    /// The range of a dimension of `n`, bounds clamped.
    fn new(n: usize, start: i64, end: i64, step: i64) -> Range {
        let n = n as i64;
        let wrap = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let (start, end) = (wrap(start).clamp(low, high), wrap(end).clamp(low, high));
        let distance = if step > 0 { end - start } else { start - end };
        let len = match distance > 0 {
            true => (distance as u64).div_ceil(step.unsigned_abs()) as usize,
            false => 0,
        };
        Range { start: if len == 0 { 0 } else { start }, step, len }
    }
}

impl Range {
    /// The `n` elements along an axis that this takes `x` from, 0 where it takes none.
    fn spread(self, cx: &mut VjpCx<'_>, mut x: Value, axis: usize, n: usize) -> Result<Value, Error> {
        let (mut start, step, len) = (self.start, self.step.unsigned_abs() as usize, self.len);
        if self.step < 0 && len > 0 {
            start -= (len as i64 - 1) * step as i64;
            x = cx.push(Slice::backwards(axis), &[x])?;
        }
        let mut end = len;
        if step > 1 && len > 1 {
            // Zeros after each element.
            let shape = cx.shape(x);
            let mut apart = shape.clone();
            apart.insert(axis + 1, 1);
            x = cx.reshape(x, &apart)?;
            x = cx.pad(x, axis + 1, 0, step as i64 - 1)?;
            end = len * step;
            apart.remove(axis + 1);
            apart[axis] = end;
            x = cx.reshape(x, &apart)?;
        }
        cx.pad(x, axis, start, n as i64 - start - end as i64)
    }
}

impl Slice {
    /// From the last to the first along one axis.
    pub fn backwards(axis: usize) -> Slice {
        Slice {
            starts: vec![-1].into(),
            ends: vec![i64::MIN].into(),
            axes: vec![axis as i64].into(),
            steps: vec![-1].into(),
        }
    }

    /// `start..end` along one axis.
    pub fn along(axis: usize, start: i64, end: i64) -> Slice {
        Slice {
            starts: vec![start].into(),
            ends: vec![end].into(),
            axes: vec![axis as i64].into(),
            steps: Late::default(),
        }
    }

    /// Which bound applies to each dimension; `None` where the axes are not known yet.
    fn places(&self, ins: &[&TensorType], rank: usize) -> Result<Option<Vec<Option<usize>>>, Violation> {
        let count = |late: &Late| late_count(late, ins);
        let lists = [("ends", &self.ends), ("axes", &self.axes), ("steps", &self.steps)];
        for (name, list) in lists {
            let omitted = name != "ends" && *list == Late::default();
            if let (Some(expected), Some(found), false) = (count(&self.starts), count(list), omitted) {
                require!(expected == found, "C1", "there are {expected} starts but {found} {name}");
            }
        }
        let axes: Vec<i64> = match (&self.axes, count(&self.starts)) {
            (Late::Known(axes), Some(n)) if axes.is_empty() => (0..n as i64).collect(),
            (Late::Known(axes), None) if axes.is_empty() => return Ok(None),
            (Late::Known(axes), _) => axes.clone(),
            (Late::Operand(_), _) => return Ok(None),
        };
        let mut places = vec![None; rank];
        for (place, axis) in axes.into_iter().enumerate() {
            let found = normalize_axis(axis, rank);
            require!(found.is_some(), "C3", "axis {axis} is outside rank {rank}");
            let slot = &mut places[found.unwrap_or(0)];
            require!(slot.is_none(), "C3", "axis {axis} is given twice");
            *slot = Some(place);
        }
        Ok(Some(places))
    }

    /// Start, end and step of a place, as far as they are known.
    fn bounds(&self, place: usize) -> (Option<i64>, Option<i64>, Option<i64>) {
        let at = |late: &Late| late.as_known().and_then(|ints| ints.get(place).copied());
        let step = if self.steps == Late::default() { Some(1) } else { at(&self.steps) };
        (at(&self.starts), at(&self.ends), step)
    }

    /// The range of each dimension, once everything is known.
    fn ranges(&self, shape: &[usize]) -> Result<Vec<Range>, Violation> {
        let places = self.places(&[], shape.len())?.unwrap_or_default();
        let range = |(place, &n): (&Option<usize>, &usize)| match place {
            None => Range { start: 0, step: 1, len: n },
            Some(place) => {
                let (start, end, step) = self.bounds(*place);
                Range::new(n, start.unwrap_or(0), end.unwrap_or(0), step.unwrap_or(1))
            }
        };
        Ok(places.iter().zip(shape).map(range).collect())
    }
}

impl OpDef for Slice {
    const NAMES: &'static [&'static str] = &["slice"];

    fn with_name(_: &str) -> Slice {
        Slice::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("starts", Slot::Late(&mut self.starts))?;
        codec.attr("ends", Slot::Late(&mut self.ends))?;
        codec.attr("axes", Slot::Late(&mut self.axes))?;
        codec.attr("steps", Slot::Late(&mut self.steps))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=5)?;
        let x = ins[0];
        if let Some(steps) = self.steps.as_known() {
            require!(!steps.contains(&0), "C2", "{steps:?} has a step of 0");
        }
        let Some(places) = self.places(ins, x.rank())? else {
            return Ok(vec![super::movement::unknown(x.dtype, x.rank())]);
        };
        let dims = x.dims.iter().zip(&places).map(|(dim, place)| {
            let Some(place) = place else { return dim.clone() };
            match (dim, self.bounds(*place)) {
                (Dim::Fixed(n), (Some(start), Some(end), Some(step))) => {
                    Dim::Fixed(Range::new(*n, start, end, step).len)
                }
                // Everything, whatever the size is.
                (dim, (Some(0), Some(end), Some(1))) if end >= i64::from(i32::MAX) => dim.clone(),
                _ => Dim::Unknown,
            }
        });
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let ranges = self.ranges(x.shape()).map_err(|v| v.to_string())?;
        let shape: Vec<usize> = ranges.iter().map(|r| r.len).collect();
        let stride = strides(x.shape());
        let mut at = stride.clone();
        Ok(vec![pick(&[x], &shape, |index| {
            for ((slot, &i), r) in at.iter_mut().zip(index).zip(&ranges) {
                *slot = (r.start + i as i64 * r.step) as usize;
            }
            (0, position(&at, &stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let shape = cx.shape(cx.ins[0]);
        let ranges = self.ranges(&shape).expect("infer accepted the bounds");
        let mut g = cx.dout(0);
        for (axis, (range, &n)) in ranges.iter().zip(&shape).enumerate() {
            g = range.spread(cx, g, axis, n)?;
        }
        vjp::one(g)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axes = match self.axes.known() {
            [] => (1..=self.starts.known().len() as i64).collect(),
            axes => axes.iter().map(|&axis| cx.axis(axis, 0)).collect::<Vec<i64>>(),
        };
        cx.along(Slice { axes: axes.into(), ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &shape);
        let ranges = self.ranges(&shape).expect("infer accepted the bounds");
        // Along an empty dimension nothing is ever read; an offset of 0 keeps the index in range.
        let part = |(i, r): (Index, &Range)| i.mul(r.step).add_const(r.start);
        let index: Vec<Index> = n.domain().into_iter().zip(&ranges).map(part).collect();
        let element = match outs[0].as_len() {
            Some(0) => n.constant_bits(ins[0].dtype, 0),
            _ => n.load(operand, &index),
        };
        Ok(Lowered::nest(n.finish(&[element])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let Some(shape) = b.ty(ins[0]).as_shape().filter(|_| ins.len() == 1) else {
            return Ok(None);
        };
        let whole = |(r, &n): (&Range, &usize)| *r == Range { start: 0, step: 1, len: n } || n == 0;
        let all = self.ranges(&shape).is_ok_and(|ranges| ranges.iter().zip(&shape).all(whole));
        Ok(all.then(|| Values::from_slice(&[ins[0]])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(x: &Tensor, starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) -> Vec<i64> {
        let op = Slice { starts: starts.into(), ends: ends.into(), axes: axes.into(), steps: steps.into() };
        op.eval(&[x.clone()]).unwrap()[0].to_ints()
    }

    #[test]
    fn bounds_are_numpys() {
        let x = Tensor::new(&[5], &[0u8, 1, 2, 3, 4]);
        assert_eq!(run(&x, &[1], &[3], &[], &[]), [1, 2]);
        assert_eq!(run(&x, &[-2], &[i64::MAX], &[0], &[1]), [3, 4]);
        assert_eq!(run(&x, &[i64::MAX], &[i64::MIN], &[-1], &[-2]), [4, 2, 0]);
        assert_eq!(run(&x, &[-1], &[-1], &[0], &[-1]), [0i64; 0]);
        assert_eq!(run(&x, &[4], &[2], &[0], &[1]), [0i64; 0]);
        assert_eq!(run(&x, &[i64::MIN], &[i64::MAX], &[0], &[i64::MAX]), [0]);
        let empty = Tensor::zeros(crate::DType::F64, &[0]);
        assert_eq!(run(&empty, &[-1], &[i64::MIN], &[0], &[-1]), [0i64; 0]);
    }

    #[test]
    fn names_survive_what_does_not_touch_them() {
        let x = TensorType::new(crate::DType::F32, [Dim::named("n"), Dim::Fixed(4)]);
        let op = Slice::along(1, 0, -1);
        assert_eq!(op.infer(&[&x]).unwrap()[0].to_string(), "f32[n, 3]");
        assert_eq!(Slice::along(0, 0, i64::MAX).infer(&[&x]).unwrap()[0].to_string(), "f32[n, 4]");
        assert_eq!(Slice::along(0, 1, 3).infer(&[&x]).unwrap()[0].to_string(), "f32[?, 4]");
        let late = Slice { starts: Late::Operand(1), ..Slice::along(1, 0, 2) };
        let one = TensorType::fixed(crate::DType::I64, &[1]);
        assert_eq!(late.infer(&[&x, &one]).unwrap()[0].to_string(), "f32[n, ?]");
    }
}
