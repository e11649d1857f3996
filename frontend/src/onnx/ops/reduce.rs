//! Reductions, and those that are a reduction between two scalar functions.

use windlass_ir::ops::ReduceKind;
use windlass_ir::{DType, Late, ScalarFn, Value, ops};

use crate::onnx::node::{Imported, NodeCx, late_or_empty};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("ReduceSum", |cx| plain(cx, ReduceKind::Sum)),
    entry("ReduceMean", |cx| plain(cx, ReduceKind::Mean)),
    entry("ReduceProd", |cx| plain(cx, ReduceKind::Prod)),
    entry("ReduceMax", |cx| plain(cx, ReduceKind::Max)),
    entry("ReduceMin", |cx| plain(cx, ReduceKind::Min)),
    entry("ReduceL1", reduce_l1),
    entry("ReduceL2", reduce_l2),
    entry("ReduceSumSquare", reduce_sum_square),
    entry("ReduceLogSum", reduce_log_sum),
    entry("ReduceLogSumExp", reduce_log_sum_exp),
];

/// What all reductions share: the axes, an attribute at first and an operand later.
struct Over {
    axes: Result<Option<Value>, Vec<i64>>,
    keep: bool,
    none_if_empty: bool,
}

impl Over {
    fn read(cx: &mut NodeCx<'_, '_>) -> Imported<Over> {
        let axes = match cx.ints("axes")? {
            Some(axes) => Err(axes),
            None => Ok(cx.optional(1)),
        };
        let (keep, none_if_empty) =
            (cx.bool_or("keepdims", true)?, cx.bool_or("noop_with_empty_axes", false)?);
        Ok(Over { axes, keep, none_if_empty })
    }

    fn reduce(&self, cx: &mut NodeCx<'_, '_>, kind: ReduceKind, x: Value, keep: bool) -> Imported<Value> {
        let mut ins = vec![x];
        let axes = match &self.axes {
            Err(known) => Late::Known(known.clone()),
            Ok(operand) => late_or_empty(&mut ins, *operand),
        };
        cx.push(ops::Reduce { kind, axes, keep, none_if_empty: self.none_if_empty }, &ins)
    }
}

fn plain(cx: &mut NodeCx<'_, '_>, kind: ReduceKind) -> Imported {
    let (x, over) = (cx.input(0)?, Over::read(cx)?);
    // The largest of booleans is their disjunction, the smallest their conjunction.
    let dtype = cx.dtype_of(x);
    let x = if dtype == DType::Bool { cx.cast(x, DType::U8)? } else { x };
    let y = over.reduce(cx, kind, x, over.keep)?;
    Ok(vec![cx.cast(y, dtype)?])
}

/// Reduces in the accumulator type (integers in f64 where the result is a root or logarithm).
fn between(
    cx: &mut NodeCx<'_, '_>,
    real: bool,
    before: fn(&mut NodeCx<'_, '_>, Value) -> Imported<Value>,
    after: fn(&mut NodeCx<'_, '_>, Value) -> Imported<Value>,
) -> Imported {
    let (x, over) = (cx.input(0)?, Over::read(cx)?);
    let dtype = cx.dtype_of(x);
    let wide = if real && !dtype.is_float() { DType::F64 } else { dtype.accumulator() };
    let x = cx.cast(x, wide)?;
    let x = before(cx, x)?;
    let y = over.reduce(cx, ReduceKind::Sum, x, over.keep)?;
    let y = after(cx, y)?;
    Ok(vec![cx.cast(y, dtype)?])
}

fn reduce_l1(cx: &mut NodeCx<'_, '_>) -> Imported {
    between(
        cx,
        false,
        |cx, x| match cx.dtype_of(x).is_unsigned_int() {
            true => Ok(x),
            false => cx.map(ScalarFn::Abs, &[x]),
        },
        |_, y| Ok(y),
    )
}

fn reduce_l2(cx: &mut NodeCx<'_, '_>) -> Imported {
    between(cx, true, |cx, x| cx.map(ScalarFn::Mul, &[x, x]), |cx, y| cx.map(ScalarFn::Sqrt, &[y]))
}

fn reduce_sum_square(cx: &mut NodeCx<'_, '_>) -> Imported {
    between(cx, false, |cx, x| cx.map(ScalarFn::Mul, &[x, x]), |_, y| Ok(y))
}

fn reduce_log_sum(cx: &mut NodeCx<'_, '_>) -> Imported {
    between(cx, true, |_, x| Ok(x), |cx, y| cx.map(ScalarFn::Log, &[y]))
}

/// `log(sum(exp(x - m))) + m`, `m` being the largest element made finite, so that nothing overflows.
fn reduce_log_sum_exp(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (x, over) = (cx.input(0)?, Over::read(cx)?);
    let dtype = cx.dtype_of(x);
    let wide = if dtype.is_float() { dtype.accumulator() } else { DType::F64 };
    let x = cx.cast(x, wide)?;
    let finite = if wide == DType::F64 { f64::MAX } else { f64::from(f32::MAX) };
    let (low, high) = (cx.scalar(wide, -finite), cx.scalar(wide, finite));
    let largest = over.reduce(cx, ReduceKind::Max, x, true)?;
    let largest = cx.map(ScalarFn::Clamp, &[largest, low, high])?;
    let shifted = cx.map(ScalarFn::Sub, &[x, largest])?;
    let grown = cx.map(ScalarFn::Exp, &[shifted])?;
    let sum = over.reduce(cx, ReduceKind::Sum, grown, true)?;
    let log = cx.map(ScalarFn::Log, &[sum])?;
    let mut y = cx.map(ScalarFn::Add, &[log, largest])?;
    if !over.keep {
        // The reduced dimensions have size 1 now: any reduction over them removes them.
        y = over.reduce(cx, ReduceKind::Sum, y, false)?;
    }
    Ok(vec![cx.cast(y, dtype)?])
}
