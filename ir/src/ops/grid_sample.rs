//! `grid_sample`: a tensor read at positions that another tensor gives.

use super::activation::Formulas;
use super::movement::clamped_index;
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder, Val};
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};
use crate::with_element;

/// How values between elements are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleMode {
    /// From the two elements around the position, along each dimension.
    Linear,
    /// The nearest element, ties to even.
    Nearest,
    /// From four elements along each dimension.
    Cubic,
}

impl Keyword for SampleMode {
    const ALL: &'static [(&'static str, SampleMode)] =
        &[("linear", SampleMode::Linear), ("nearest", SampleMode::Nearest), ("cubic", SampleMode::Cubic)];
}

/// What lies outside the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplePadding {
    /// Zeros.
    Zeros,
    /// The nearest element.
    Border,
    /// The tensor mirrored at its border, again and again.
    Reflection,
}

impl Keyword for SamplePadding {
    const ALL: &'static [(&'static str, SamplePadding)] = &[
        ("zeros", SamplePadding::Zeros),
        ("border", SamplePadding::Border),
        ("reflection", SamplePadding::Reflection),
    ];
}

/// `x` `[N, C, spatial..]` at the positions in `grid` `[N, out.., D]`; the result is `[N, C, out..]`.
///
/// A position has a coordinate for each of the D spatial dimensions, the last one first, from -1 to 1 over
/// the tensor: between the centres of its outer elements with `align_corners`, else between its edges.
/// Coordinates are computed in f32 (f64 if an operand is f64), and so are the results of f16 and bf16.
///
/// - (C1) both operands are floats;
/// - (C2) `x` has at least one spatial dimension, none empty;
/// - (C3) the grid has the rank and the N of `x`, and D coordinates.
///
/// ONNX: `GridSample` (16..), whose modes were called `bilinear` and `bicubic` before 20.
#[derive(Clone, Debug, PartialEq)]
pub struct GridSample {
    /// How values between elements are found.
    pub mode: SampleMode,
    /// What lies outside.
    pub padding_mode: SamplePadding,
    /// What -1 and 1 mean.
    pub align_corners: bool,
}

/// Keys' cubic convolution with this parameter, as in PyTorch.
const CUBIC: f64 = -0.75;

impl OpDef for GridSample {
    const NAMES: &'static [&'static str] = &["grid_sample"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("GridSample", 20..=u32::MAX)];

    fn with_name(_: &str) -> GridSample {
        GridSample { mode: SampleMode::Linear, padding_mode: SamplePadding::Zeros, align_corners: false }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("mode", Slot::Keyword(&mut self.mode))?;
        codec.attr("padding_mode", Slot::Keyword(&mut self.padding_mode))?;
        codec.attr("align_corners", Slot::Bool(&mut self.align_corners))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (x, grid) = (ins[0], ins[1]);
        require!(x.dtype.is_float() && grid.dtype.is_float(), "C1", "{x} at {grid} are not floats");
        let spatial = x.dims.get(2..).unwrap_or_default();
        let empty = spatial.is_empty() || spatial.contains(&Dim::Fixed(0));
        require!(!empty, "C2", "{x} has no elements to sample");
        let fits = grid.rank() == x.rank()
            && grid.dims[0].may_equal(&x.dims[0])
            && grid.dims[x.rank() - 1].may_equal(&Dim::Fixed(spatial.len()));
        require!(fits, "C3", "{grid} does not hold positions in {x}");
        let dims = [x.dims[0].meet(&grid.dims[0]), x.dims[1].clone()];
        let out = &grid.dims[1..grid.rank() - 1];
        Ok(vec![TensorType::new(x.dtype, dims.into_iter().chain(out.iter().cloned()))])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, grid) = (&ins[0], &ins[1]);
        let wide = coordinate_type(x.dtype(), grid.dtype());
        let spatial = &x.shape()[2..];
        let volume: usize = spatial.iter().product();
        let out = &grid.shape()[1..grid.rank() - 1];
        let area: usize = out.iter().product();
        let (values, positions) = (x.to_f64s(), grid.to_f64s());
        let (batch, channels) = (x.shape()[0], x.shape()[1]);
        let mut result = Vec::with_capacity(batch * channels * area);
        for plane in points(&[batch, channels, area]) {
            let (n, c, place) = (plane[0], plane[1], plane[2]);
            let row = &positions[(n * area + place) * spatial.len()..][..spatial.len()];
            let plane = &values[(n * channels + c) * volume..][..volume];
            let taps: Vec<Vec<(f64, Option<usize>)>> =
                spatial.iter().zip(row.iter().rev()).map(|(&size, &g)| self.taps(wide, g, size)).collect();
            let mut sum = 0.0;
            for chosen in points(&taps.iter().map(Vec::len).collect::<Vec<_>>()) {
                let (mut weight, mut at) = (1.0, Some(0));
                for ((taps, &tap), &size) in taps.iter().zip(&chosen).zip(spatial) {
                    weight *= taps[tap].0;
                    at = at.zip(taps[tap].1).map(|(at, i)| at * size + i);
                }
                sum += at.map_or(0.0, |at| weight * plane[at]);
            }
            result.push(sum);
        }
        let shape: Vec<usize> = [batch, channels].iter().chain(out).copied().collect();
        Ok(vec![Tensor::from_f64s(x.dtype(), &shape, &result)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let wide = coordinate_type(cx.dtype(cx.ins[0]), cx.dtype(cx.ins[1]));
        vjp::through(self.as_gathers(cx, wide)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0); 2], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, grid) = (&ins[0], &ins[1]);
        let shape = x.shape();
        let spatial = &shape[2..];
        let wide = coordinate_type(x.dtype, grid.dtype);
        let mut n = NestBuilder::new(&outs[0].shape());
        let (op_x, op_grid) = (n.operand(x.dtype, &shape), n.operand(grid.dtype, &grid.shape()));
        let at = n.domain();
        let taps: Vec<Vec<Tap>> = spatial
            .iter()
            .enumerate()
            .map(|(d, &size)| {
                let mut index = vec![at[0].clone()];
                index.extend_from_slice(&at[2..]);
                index.push(Index::constant((spatial.len() - 1 - d) as i64));
                let g = n.load(op_grid, &index);
                let g = n.cast(g, wide);
                let Ok(places) = self.emit_taps(&mut n, g, size);
                let tap = |Place { weight, at, inside }| Tap {
                    weight,
                    index: clamped_index(&mut n, at, size),
                    inside,
                };
                places.into_iter().map(tap).collect()
            })
            .collect();
        let sum = interpolate(&mut n, &taps, &mut at[..2].to_vec(), None, &mut |n, index| {
            let value = n.load(op_x, index);
            n.cast(value, wide)
        });
        let result = n.cast(sum, x.dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

fn coordinate_type(x: DType, grid: DType) -> DType {
    if x == DType::F64 || grid == DType::F64 { DType::F64 } else { DType::F32 }
}

/// An element that a result is made of: its weight (1 if not given), its index along one dimension, and
/// whether it lies inside, where that is not sure.
struct Tap {
    weight: Option<Val>,
    index: Index,
    inside: Option<Val>,
}

/// A tap, its place along a dimension not yet within it.
pub(super) struct Place<V> {
    pub weight: Option<V>,
    pub at: V,
    pub inside: Option<V>,
}

/// `f(value, constant)`.
fn with<F: Formulas>(
    f: &mut F,
    function: ScalarFn,
    value: F::Value,
    constant: f64,
) -> Result<F::Value, F::Failure> {
    let constant = f.constant_like(value, constant);
    f.apply(function, &[value, constant])
}

/// The weighted sum over the taps of all dimensions.
fn interpolate(
    n: &mut NestBuilder,
    taps: &[Vec<Tap>],
    index: &mut Vec<Index>,
    inside: Option<Val>,
    load: &mut impl FnMut(&mut NestBuilder, &[Index]) -> Val,
) -> Val {
    let Some((first, rest)) = taps.split_first() else {
        let value = load(n, index);
        let Some(inside) = inside else { return value };
        let zero = n.constant(n.dtype(value), 0.0);
        return n.apply(ScalarFn::Select, &[inside, value, zero]);
    };
    let mut sum: Option<Val> = None;
    for tap in first {
        let both = match (inside, tap.inside) {
            (Some(a), Some(b)) => Some(n.apply(ScalarFn::And, &[a, b])),
            (a, b) => a.or(b),
        };
        index.push(tap.index.clone());
        let value = interpolate(n, rest, index, both, load);
        index.pop();
        sum = Some(match (tap.weight, sum) {
            (None, _) => value,
            (Some(weight), None) => n.apply(ScalarFn::Mul, &[weight, value]),
            (Some(weight), Some(sum)) => n.apply(ScalarFn::Fma, &[weight, value, sum]),
        });
    }
    sum.expect("every dimension has a tap")
}

impl GridSample {
    /// The bounds that positions are reflected at.
    fn borders(&self, size: usize) -> (f64, f64) {
        if self.align_corners { (0.0, size as f64 - 1.0) } else { (-0.5, size as f64 - 0.5) }
    }

    /// The weights and the elements along a dimension; `None` for zeros outside.
    fn taps(&self, wide: DType, g: f64, size: usize) -> Vec<(f64, Option<usize>)> {
        let r = |x: f64| with_element!(wide, T => T::from_f64(x).to_f64());
        let n = size as f64;
        let mut v = match self.align_corners {
            true => r(r(r(g + 1.0) / 2.0) * (n - 1.0)),
            false => r(r(r(r(g + 1.0) * n) - 1.0) / 2.0),
        };
        if self.mode == SampleMode::Nearest {
            v = v.round_ties_even();
        }
        let (low, high) = self.borders(size);
        let reflect = |v: f64| {
            let span = high - low;
            if span == 0.0 {
                return low;
            }
            let distance = r(v - low).abs();
            let rest = r(distance % (2.0 * span));
            low + if rest > span { 2.0 * span - rest } else { rest }
        };
        match self.padding_mode {
            SamplePadding::Zeros => {}
            SamplePadding::Border => v = v.max(0.0).min(n - 1.0),
            SamplePadding::Reflection => {
                if !(low..=high).contains(&v) {
                    v = reflect(v);
                }
            }
        }
        let first = v.floor();
        let t = v - first;
        let (start, weights) = match self.mode {
            SampleMode::Nearest => (v, vec![1.0]),
            SampleMode::Linear => (first, vec![1.0 - t, t]),
            SampleMode::Cubic => {
                let near = |x: f64| ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0;
                let far = |x: f64| ((CUBIC * x - 5.0 * CUBIC) * x + 8.0 * CUBIC) * x - 4.0 * CUBIC;
                (first - 1.0, vec![far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])
            }
        };
        let place = |i: f64| match self.padding_mode {
            SamplePadding::Zeros => (0.0..n).contains(&i).then_some(i as usize),
            SamplePadding::Border => Some(i.max(0.0).min(n - 1.0) as usize),
            SamplePadding::Reflection => {
                let i = if (low..=high).contains(&i) { i } else { reflect(i) };
                Some((i.max(0.0) as usize).min(size - 1))
            }
        };
        weights.into_iter().enumerate().map(|(k, weight)| (weight, place(start + k as f64))).collect()
    }

    fn emit_reflect<F: Formulas>(&self, f: &mut F, v: F::Value, size: usize) -> Result<F::Value, F::Failure> {
        let (low, high) = self.borders(size);
        let span = high - low;
        if span == 0.0 {
            return Ok(f.constant_like(v, low));
        }
        let distance = with(f, ScalarFn::Sub, v, low)?;
        let distance = f.apply(ScalarFn::Abs, &[distance])?;
        let rest = with(f, ScalarFn::Rem, distance, 2.0 * span)?;
        let period = f.constant_like(v, 2.0 * span);
        let back = f.apply(ScalarFn::Sub, &[period, rest])?;
        let beyond = with(f, ScalarFn::Gt, rest, span)?;
        let folded = f.apply(ScalarFn::Select, &[beyond, back, rest])?;
        let reflected = with(f, ScalarFn::Add, folded, low)?;
        let below = with(f, ScalarFn::Lt, v, low)?;
        let above = with(f, ScalarFn::Gt, v, high)?;
        let outside = f.apply(ScalarFn::Or, &[below, above])?;
        f.apply(ScalarFn::Select, &[outside, reflected, v])
    }

    /// What the taps along a dimension are, for a coordinate.
    pub(super) fn emit_taps<F: Formulas>(
        &self,
        f: &mut F,
        g: F::Value,
        size: usize,
    ) -> Result<Vec<Place<F::Value>>, F::Failure> {
        let shifted = with(f, ScalarFn::Add, g, 1.0)?;
        let mut v = match self.align_corners {
            true => {
                let half = with(f, ScalarFn::Div, shifted, 2.0)?;
                with(f, ScalarFn::Mul, half, size as f64 - 1.0)?
            }
            false => {
                let scaled = with(f, ScalarFn::Mul, shifted, size as f64)?;
                let less = with(f, ScalarFn::Sub, scaled, 1.0)?;
                with(f, ScalarFn::Div, less, 2.0)?
            }
        };
        if self.mode == SampleMode::Nearest {
            v = f.apply(ScalarFn::Round, &[v])?;
        }
        match self.padding_mode {
            SamplePadding::Zeros => {}
            SamplePadding::Border => {
                let raised = with(f, ScalarFn::Max, v, 0.0)?;
                v = with(f, ScalarFn::Min, raised, size as f64 - 1.0)?;
            }
            SamplePadding::Reflection => v = self.emit_reflect(f, v, size)?,
        }
        let first = f.apply(ScalarFn::Floor, &[v])?;
        let t = f.apply(ScalarFn::Sub, &[v, first])?;
        let one = f.constant_like(v, 1.0);
        let rest = f.apply(ScalarFn::Sub, &[one, t])?;
        let (start, weights) = match self.mode {
            SampleMode::Nearest => (v, vec![None]),
            SampleMode::Linear => (first, vec![Some(rest), Some(t)]),
            SampleMode::Cubic => {
                let near = |f: &mut F, x: F::Value| {
                    let line = with(f, ScalarFn::Mul, x, CUBIC + 2.0)?;
                    let line = with(f, ScalarFn::Sub, line, CUBIC + 3.0)?;
                    let square = f.apply(ScalarFn::Mul, &[x, x])?;
                    let product = f.apply(ScalarFn::Mul, &[line, square])?;
                    with(f, ScalarFn::Add, product, 1.0)
                };
                let far = |f: &mut F, x: F::Value| {
                    let line = with(f, ScalarFn::Mul, x, CUBIC)?;
                    let line = with(f, ScalarFn::Sub, line, 5.0 * CUBIC)?;
                    let square = f.apply(ScalarFn::Mul, &[line, x])?;
                    let square = with(f, ScalarFn::Add, square, 8.0 * CUBIC)?;
                    let cube = f.apply(ScalarFn::Mul, &[square, x])?;
                    with(f, ScalarFn::Sub, cube, 4.0 * CUBIC)
                };
                let (before, after) =
                    (f.apply(ScalarFn::Add, &[t, one])?, f.apply(ScalarFn::Add, &[rest, one])?);
                let weights = [far(f, before)?, near(f, t)?, near(f, rest)?, far(f, after)?];
                (f.apply(ScalarFn::Sub, &[first, one])?, weights.map(Some).to_vec())
            }
        };
        let mut places = Vec::new();
        for (k, weight) in weights.into_iter().enumerate() {
            let mut at = if k == 0 { start } else { with(f, ScalarFn::Add, start, k as f64)? };
            let mut inside = None;
            if self.padding_mode == SamplePadding::Zeros {
                let after = with(f, ScalarFn::Ge, at, 0.0)?;
                let before = with(f, ScalarFn::Lt, at, size as f64)?;
                inside = Some(f.apply(ScalarFn::And, &[after, before])?);
            }
            if self.padding_mode == SamplePadding::Reflection {
                at = self.emit_reflect(f, at, size)?;
            }
            places.push(Place { weight, at: f.apply(ScalarFn::Cast(DType::I64), &[at])?, inside });
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    #[test]
    fn the_corners_and_the_middle() {
        let x = Tensor::new(&[1, 1, 2, 2], &[0f32, 1., 2., 3.]);
        let grid = Tensor::new(&[1, 1, 3, 2], &[-1f32, -1., 1., -1., 0., 0.]);
        let op = GridSample { align_corners: true, ..GridSample::with_name("grid_sample") };
        assert_eq!(check(op.clone(), &[x.clone(), grid.clone()])[0].to_f64s(), [0., 1., 1.5]);
        let edges = GridSample { align_corners: false, ..op };
        assert_eq!(check(edges, &[x, grid])[0].to_f64s(), [0., 0.25, 1.5]);
    }

    #[test]
    fn modes_and_paddings_agree_with_the_formula() {
        for (_, mode) in SampleMode::ALL {
            for (_, padding_mode) in SamplePadding::ALL {
                for align_corners in [false, true] {
                    let op = GridSample { mode: *mode, padding_mode: *padding_mode, align_corners };
                    for dtype in [DType::F32, DType::F64, DType::F16] {
                        check(
                            op.clone(),
                            &[sample(dtype, &[2, 2, 3, 4], 1), sample(dtype, &[2, 3, 2, 2], 2)],
                        );
                        check(op.clone(), &[sample(dtype, &[1, 2, 5], 1), sample(dtype, &[1, 4, 1], 2)]);
                        check(
                            op.clone(),
                            &[sample(dtype, &[1, 1, 1, 2, 3], 1), sample(dtype, &[1, 2, 2, 1, 3], 2)],
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |x: &TensorType, grid: &TensorType| {
            GridSample::with_name("grid_sample").infer(&[x, grid]).unwrap_err().constraint
        };
        assert_eq!(violated(&TensorType::fixed(DType::I32, &[1, 1, 2]), &f32(&[1, 1, 1])), "C1");
        assert_eq!(violated(&f32(&[1, 1]), &f32(&[1, 1])), "C2");
        assert_eq!(violated(&f32(&[1, 1, 2]), &f32(&[1, 1, 2])), "C3");
    }
}
