//! `resize` as a formula: along each axis that changes, elements at computed positions by computed
//! weights; nearest at whole factors is an index map alone.

use super::Lowered;
use super::movement::{clamped_index, int};
use super::resize::{AxisScale, Coordinates, Interpolation, NearestMode, Resize};
use crate::dtype::DType;
use crate::error::Error;
use crate::loops::{Index, NestBuilder, Val};
use crate::scalar::ScalarFn;
use crate::types::TensorType;

/// A formula is written out for at most this many elements per result; beyond, it would not pay.
const MOST_TAPS: usize = 64;

/// The elements along one axis that make up a result, each with its weight (none means 1).
type Taps = Vec<(Index, Option<Val>)>;

pub(super) fn lower(op: &Resize, from: &TensorType, to: &TensorType) -> Result<Lowered, Error> {
    let shape = from.shape();
    let axes = op.axis_scales(&shape).expect("infer accepted the sizes");
    let taps: usize = axes.iter().map(|axis| tap_count(op, axis).max(1)).product();
    if taps > MOST_TAPS || to.as_len() == Some(0) {
        return Ok(Lowered::Interpret);
    }
    let mut n = NestBuilder::new(&to.shape());
    let operand = n.operand(from.dtype, &shape);
    // Positions are computed in f64, as in the definition; weights and sums in the accumulator's type.
    let wide = from.dtype.accumulator();
    let mut outside: Option<Val> = None;
    let mut along: Vec<Taps> = Vec::new();
    for (x, axis) in n.domain().into_iter().zip(&axes) {
        if is_identity(op, axis) {
            along.push(vec![(x, None)]);
            continue;
        }
        if let Some(index) = whole_factor(op, axis, &x) {
            along.push(vec![(index, None)]);
            continue;
        }
        let x = n.index_value(&x);
        let x = n.cast(x, DType::F64);
        let at = source(&mut n, op, axis, x);
        if op.coordinates == Coordinates::TfCropAndResize {
            let (zero, last) = (float(&mut n, 0.0), float(&mut n, axis.from as f64 - 1.0));
            let below = n.apply(ScalarFn::Lt, &[at, zero]);
            let above = n.apply(ScalarFn::Gt, &[at, last]);
            let here = n.apply(ScalarFn::Or, &[below, above]);
            outside = Some(outside.map_or(here, |other| n.apply(ScalarFn::Or, &[other, here])));
        }
        along.push(match op.mode {
            Interpolation::Nearest => vec![(nearest(&mut n, op, axis, at), None)],
            Interpolation::Linear | Interpolation::Cubic => weighted(&mut n, op, axis, at, wide),
        });
    }
    let mut index = Vec::new();
    let mut result = combine(&mut n, operand, &along, &mut index, wide, op.mode == Interpolation::Nearest);
    result = n.cast(result, from.dtype);
    if let Some(outside) = outside {
        let fill = n.constant(from.dtype, op.extrapolation_value);
        result = n.apply(ScalarFn::Select, &[outside, fill, result]);
    }
    Ok(Lowered::nest(n.finish(&[result])))
}

fn float(n: &mut NestBuilder, value: f64) -> Val {
    n.constant(DType::F64, value)
}

/// Applies a function to a value and a constant of f64.
fn with(n: &mut NestBuilder, f: ScalarFn, x: Val, constant: f64) -> Val {
    let constant = float(n, constant);
    n.apply(f, &[x, constant])
}

/// How many elements make up a result along an axis.
fn tap_count(op: &Resize, axis: &AxisScale) -> usize {
    if op.mode == Interpolation::Nearest || is_identity(op, axis) {
        return 1;
    }
    2 * reach(op, axis) as usize
}

fn shrink(op: &Resize, axis: &AxisScale) -> f64 {
    if op.antialias { axis.scale.min(1.0) } else { 1.0 }
}

/// The number of elements on either side of a position that may have a weight.
fn reach(op: &Resize, axis: &AxisScale) -> f64 {
    (op.radius() / shrink(op, axis)).ceil()
}

/// Whether every element stays where it is.
fn is_identity(op: &Resize, axis: &AxisScale) -> bool {
    axis.from == axis.to && (0..axis.to).all(|i| op.source(axis, i) == i as f64)
}

/// The index map of a nearest resize that repeats or skips elements regularly.
fn whole_factor(op: &Resize, axis: &AxisScale, x: &Index) -> Option<Index> {
    if op.mode != Interpolation::Nearest || op.coordinates == Coordinates::TfCropAndResize {
        return None;
    }
    let last = axis.from as i64 - 1;
    let source = |i: usize| (op.nearest_to(op.source(axis, i)) as i64).clamp(0, last);
    let first = source(0);
    let repeat = (axis.to / axis.from).max(1) as i64;
    let skip = (axis.from / axis.to.max(1)).max(1) as i64;
    let fits = |f: &dyn Fn(i64) -> i64| (0..axis.to).all(|i| source(i) == f(i as i64));
    if fits(&|i| i / repeat) {
        Some(x.div(repeat))
    } else if fits(&|i| first + i * skip) {
        Some(x.mul(skip).add_const(first))
    } else {
        None
    }
}

/// The position in the operand, an f64: the same operations in the same order as in the definition.
fn source(n: &mut NestBuilder, op: &Resize, axis: &AxisScale, x: Val) -> Val {
    let (size, w, s) = (axis.from as f64, axis.width, axis.scale);
    match op.coordinates {
        Coordinates::AlignCorners if w == 1.0 => float(n, 0.0),
        Coordinates::AlignCorners => {
            let scaled = with(n, ScalarFn::Mul, x, size - 1.0);
            with(n, ScalarFn::Div, scaled, w - 1.0)
        }
        Coordinates::Asymmetric => with(n, ScalarFn::Div, x, s),
        Coordinates::TfCropAndResize => {
            let (start, end) = axis.roi;
            let along = match w == 1.0 {
                true => float(n, (end - start) * (size - 1.0) / 2.0),
                false => {
                    let part = with(n, ScalarFn::Mul, x, end - start);
                    let scaled = with(n, ScalarFn::Mul, part, size - 1.0);
                    with(n, ScalarFn::Div, scaled, w - 1.0)
                }
            };
            with(n, ScalarFn::Add, along, start * (size - 1.0))
        }
        Coordinates::PytorchHalfPixel if w == 1.0 => float(n, -0.5),
        Coordinates::PytorchHalfPixel | Coordinates::HalfPixel => {
            let middle = with(n, ScalarFn::Add, x, 0.5);
            let scaled = with(n, ScalarFn::Div, middle, s);
            with(n, ScalarFn::Sub, scaled, 0.5)
        }
        Coordinates::HalfPixelSymmetric => {
            let middle = with(n, ScalarFn::Add, x, 0.5);
            let scaled = with(n, ScalarFn::Div, middle, s);
            let offset = float(n, size / 2.0 * (1.0 - axis.to as f64 / w));
            let moved = n.apply(ScalarFn::Add, &[offset, scaled]);
            with(n, ScalarFn::Sub, moved, 0.5)
        }
    }
}

fn nearest(n: &mut NestBuilder, op: &Resize, axis: &AxisScale, at: Val) -> Index {
    let rounded = match op.nearest {
        NearestMode::RoundPreferFloor => {
            let moved = with(n, ScalarFn::Sub, at, 0.5);
            n.apply(ScalarFn::Ceil, &[moved])
        }
        NearestMode::RoundPreferCeil => {
            let moved = with(n, ScalarFn::Add, at, 0.5);
            n.apply(ScalarFn::Floor, &[moved])
        }
        NearestMode::Floor => n.apply(ScalarFn::Floor, &[at]),
        NearestMode::Ceil => n.apply(ScalarFn::Ceil, &[at]),
    };
    let whole = n.cast(rounded, DType::I64);
    clamped_index(n, whole, axis.from)
}

/// Elements around a position with the kernel's weights.
fn weighted(n: &mut NestBuilder, op: &Resize, axis: &AxisScale, at: Val, wide: DType) -> Taps {
    let below = n.apply(ScalarFn::Floor, &[at]);
    let fraction = n.apply(ScalarFn::Sub, &[at, below]);
    let whole = n.cast(below, DType::I64);
    let reach = reach(op, axis) as i64;
    let mut taps: Vec<(Index, Val)> = Vec::new();
    for i in 1 - reach..=reach {
        let step = int(n, i);
        let place = n.apply(ScalarFn::Add, &[whole, step]);
        let here = float(n, i as f64);
        let distance = n.apply(ScalarFn::Sub, &[here, fraction]);
        let distance = with(n, ScalarFn::Mul, distance, shrink(op, axis));
        let mut weight = kernel(n, op, distance);
        if op.exclude_outside {
            let (zero, size, none) = (int(n, 0), int(n, axis.from as i64), float(n, 0.0));
            let low = n.apply(ScalarFn::Ge, &[place, zero]);
            let high = n.apply(ScalarFn::Lt, &[place, size]);
            let inside = n.apply(ScalarFn::And, &[low, high]);
            weight = n.apply(ScalarFn::Select, &[inside, weight, none]);
        }
        taps.push((clamped_index(n, place, axis.from), weight));
    }
    if op.antialias || op.exclude_outside {
        let weights: Vec<Val> = taps.iter().map(|(_, weight)| *weight).collect();
        let total = weights[1..].iter().fold(weights[0], |sum, &w| n.apply(ScalarFn::Add, &[sum, w]));
        for (_, weight) in &mut taps {
            *weight = n.apply(ScalarFn::Div, &[*weight, total]);
        }
    }
    taps.into_iter().map(|(index, weight)| (index, Some(n.cast(weight, wide)))).collect()
}

/// The kernel's weight at a distance.
fn kernel(n: &mut NestBuilder, op: &Resize, distance: Val) -> Val {
    let x = n.apply(ScalarFn::Abs, &[distance]);
    let (zero, one, a) = (float(n, 0.0), float(n, 1.0), op.cubic_coeff_a);
    match op.mode {
        Interpolation::Nearest | Interpolation::Linear => {
            let rest = n.apply(ScalarFn::Sub, &[one, x]);
            n.apply(ScalarFn::Max, &[rest, zero])
        }
        Interpolation::Cubic => {
            let near = with(n, ScalarFn::Mul, x, a + 2.0);
            let near = with(n, ScalarFn::Sub, near, a + 3.0);
            let near = n.apply(ScalarFn::Mul, &[near, x]);
            let near = n.apply(ScalarFn::Mul, &[near, x]);
            let near = n.apply(ScalarFn::Add, &[near, one]);
            let far = with(n, ScalarFn::Mul, x, a);
            let far = with(n, ScalarFn::Sub, far, 5.0 * a);
            let far = n.apply(ScalarFn::Mul, &[far, x]);
            let far = with(n, ScalarFn::Add, far, 8.0 * a);
            let far = n.apply(ScalarFn::Mul, &[far, x]);
            let far = with(n, ScalarFn::Sub, far, 4.0 * a);
            let two = float(n, 2.0);
            let (is_near, is_far) = (n.apply(ScalarFn::Le, &[x, one]), n.apply(ScalarFn::Lt, &[x, two]));
            let outer = n.apply(ScalarFn::Select, &[is_far, far, zero]);
            n.apply(ScalarFn::Select, &[is_near, near, outer])
        }
    }
}

/// The weighted sum over the remaining axes of elements whose first indices are given.
fn combine(
    n: &mut NestBuilder,
    operand: u32,
    along: &[Taps],
    index: &mut Vec<Index>,
    wide: DType,
    exact: bool,
) -> Val {
    let Some((taps, rest)) = along.split_first() else {
        let element = n.load(operand, index);
        return if exact { element } else { n.cast(element, wide) };
    };
    let mut sum: Option<Val> = None;
    for (at, weight) in taps {
        index.push(at.clone());
        let mut part = combine(n, operand, rest, index, wide, exact);
        index.pop();
        if let Some(weight) = weight {
            part = n.apply(ScalarFn::Mul, &[*weight, part]);
        }
        sum = Some(sum.map_or(part, |sum| n.apply(ScalarFn::Add, &[sum, part])));
    }
    sum.expect("every axis has at least one element")
}
