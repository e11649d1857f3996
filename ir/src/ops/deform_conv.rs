//! `deform_conv`: convolution whose taps are moved by what the data says.

use super::formula::with_constant;
use super::movement::clamped_index;
use super::vjp;
use super::window::Window;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder, Reduction, Val};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Dims, TensorType, strides};

/// Convolution of `x` `[N, C, spatial..]` with `w` `[M, C/group, kernel..]`, each tap read at its place plus
/// an offset, between elements by linear interpolation, 0 outside.
///
/// Offsets are `[N, offset_group * taps * D, out..]`, the D coordinates of each tap together; each group of
/// channels has its own. Then, if the attributes say so, a bias `[M]` and a mask `[N, offset_group * taps, out..]`
/// that each tap is multiplied by. f16 and bf16 are computed in f32 and rounded once.
///
/// - (C1), (C2) of [`super::Conv`];
/// - (C3) operands are floats of one type, `x` and `w` of one rank, at least 3;
/// - (C4) the group divides M and fits the channels, the offset group divides C;
/// - (C5) offsets, bias and mask have these shapes.
///
/// ONNX: `DeformConv` (19..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct DeformConv {
    /// The step of the window along each spatial dimension; empty means 1.
    pub strides: Vec<i64>,
    /// Zeros before each spatial dimension, then after each; empty means none.
    pub pads: Vec<i64>,
    /// The distance between neighbouring taps; empty means 1.
    pub dilations: Vec<i64>,
    /// Channels are split into this many groups that do not mix.
    pub group: i64,
    /// Channels are split into this many groups with offsets of their own.
    pub offset_group: i64,
    /// Whether a bias is an operand.
    pub bias: bool,
    /// Whether a mask is an operand.
    pub mask: bool,
}

impl DeformConv {
    fn window(&self, spatial: usize) -> Result<Window, Violation> {
        Window::new(spatial, &self.strides, &self.pads, &self.dilations)
    }

    /// The operands that bias and mask are.
    pub(super) fn places(&self) -> (Option<usize>, Option<usize>, usize) {
        let bias = self.bias.then_some(3);
        let mask = self.mask.then_some(3 + usize::from(self.bias));
        (bias, mask, 3 + usize::from(self.bias) + usize::from(self.mask))
    }
}

impl OpDef for DeformConv {
    const NAMES: &'static [&'static str] = &["deform_conv"];

    fn with_name(_: &str) -> DeformConv {
        DeformConv {
            strides: Vec::new(),
            pads: Vec::new(),
            dilations: Vec::new(),
            group: 1,
            offset_group: 1,
            bias: false,
            mask: false,
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("strides", Slot::Ints(&mut self.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.dilations))?;
        codec.attr("group", Slot::Int(&mut self.group))?;
        codec.attr("offset_group", Slot::Int(&mut self.offset_group))?;
        codec.attr("bias", Slot::Bool(&mut self.bias))?;
        codec.attr("mask", Slot::Bool(&mut self.mask))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        let (bias, mask, count) = self.places();
        arity(ins, count..=count)?;
        let (x, w, offset) = (ins[0], ins[1], ins[2]);
        let one_type = ins.iter().all(|t| t.dtype == x.dtype) && x.dtype.is_float();
        let ranks = x.rank() >= 3 && x.rank() == w.rank() && x.rank() == offset.rank();
        require!(one_type && ranks, "C3", "{x}, {w} and {offset} are not floats of one type and rank");
        let spatial = x.rank() - 2;
        let window = self.window(spatial)?;
        let (group, offset_group) =
            (usize::try_from(self.group).unwrap_or(0), usize::try_from(self.offset_group).unwrap_or(0));
        let mut fits = group > 0 && offset_group > 0;
        if let (true, Some(m)) = (fits, w.dims[0].as_fixed()) {
            fits = m % group == 0;
        }
        if let (true, Some(c), Some(k)) = (fits, x.dims[1].as_fixed(), w.dims[1].as_fixed()) {
            fits = k.checked_mul(group) == Some(c) && c % offset_group == 0;
        }
        require!(fits, "C4", "{x} and {w} do not form {} and {} groups", self.group, self.offset_group);
        let mut dims: Dims = [x.dims[0].clone(), w.dims[0].clone()].into_iter().collect();
        let mut taps = Some(offset_group);
        for d in 0..spatial {
            let out = window.output_dim(d, &x.dims[d + 2], &w.dims[d + 2], false)?;
            taps = taps.zip(w.dims[d + 2].as_fixed()).and_then(|(t, k)| t.checked_mul(k));
            dims.push(out.meet(&offset.dims[d + 2]));
        }
        let channels = |each: usize| taps.map_or(Dim::Unknown, |t| Dim::Fixed(t.saturating_mul(each)));
        let placed = |ty: &TensorType, channels: Dim| {
            ty.rank() == x.rank()
                && ty.dims[0].may_equal(&x.dims[0])
                && ty.dims[1].may_equal(&channels)
                && ty.dims[2..].iter().zip(&dims[2..]).all(|(a, b)| a.may_equal(b))
        };
        let mut fits = placed(offset, channels(spatial));
        fits &= mask.is_none_or(|i| placed(ins[i], channels(1)));
        fits &= bias.is_none_or(|i| ins[i].rank() == 1 && ins[i].dims[0].may_equal(&w.dims[0]));
        require!(fits, "C5", "offsets {offset}, or bias or mask, do not fit {x} and {w}");
        Ok(vec![TensorType { dtype: x.dtype, dims }])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
        let out = self.infer(&types.iter().collect::<Vec<_>>()).map_err(|v| v.to_string())?.remove(0).shape();
        let values: Vec<Vec<f64>> = ins.iter().map(Tensor::to_f64s).collect();
        let (bias, mask, _) = self.places();
        let (x, w) = (ins[0].shape(), ins[1].shape());
        let (spatial, kernel) = (&x[2..], &w[2..]);
        let window = self.window(spatial.len()).map_err(|v| v.to_string())?;
        let (volume, area): (usize, usize) = (spatial.iter().product(), out[2..].iter().product());
        let taps: usize = kernel.iter().product();
        let (x_steps, out_steps) = (strides(spatial), strides(&out[2..]));
        let (group_out, group_in) = (w[0] / self.group as usize, w[1]);
        let per_offset = x[1] / self.offset_group as usize;
        let sample = |plane: &[f64], at: &[f64]| -> f64 {
            let sides = vec![2; at.len()];
            let corner = |side: crate::types::Shape| -> f64 {
                let (mut weight, mut from) = (1.0, 0);
                for (d, &x) in at.iter().enumerate() {
                    let place = x.floor() + side[d] as f64;
                    if !(0.0..spatial[d] as f64).contains(&place) {
                        return 0.0;
                    }
                    weight *= 1.0 - (x - place).abs();
                    from += place as usize * x_steps[d];
                }
                weight * plane[from]
            };
            points(&sides).map(corner).sum()
        };
        let mut result = Vec::with_capacity(out.iter().product());
        for at in points(&out) {
            let (n, m, place) = (at[0], at[1], position(&at[2..], &out_steps));
            let mut sum = bias.map_or(0.0, |i| values[i][m]);
            for (t, tap) in points(kernel).enumerate() {
                for k in 0..group_in {
                    let c = m / group_out * group_in + k;
                    let row = (n * self.offset_group as usize + c / per_offset) * taps + t;
                    let coordinate = |d: usize| {
                        let moved = values[2][(row * spatial.len() + d) * area + place];
                        let fixed = at[d + 2] * window.strides[d] + tap[d] * window.dilations[d];
                        fixed as f64 - window.begin[d] as f64 + moved
                    };
                    let at: Vec<f64> = (0..spatial.len()).map(coordinate).collect();
                    let value = sample(&values[0][(n * x[1] + c) * volume..][..volume], &at);
                    let weight = mask.map_or(1.0, |i| values[i][row * area + place]);
                    sum += value * weight * values[1][(m * group_in + k) * taps + t];
                }
            }
            result.push(sum);
        }
        Ok(vec![Tensor::from_f64s(ins[0].dtype(), &out, &result)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, result) = (cx.shape(cx.ins[0]), cx.shape(cx.outs[0]));
        if x.contains(&0) || result.contains(&0) {
            return Ok(Vjp::Undefined);
        }
        let window = self.window(x.len() - 2).expect("infer accepted the window");
        vjp::through(self.as_gathers(cx, &window)?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let (_, mask, count) = self.places();
        let at: Vec<Option<usize>> =
            (0..count).map(|i| (i == 0 || i == 2 || Some(i) == mask).then_some(0)).collect();
        cx.merged(self.clone(), &at, &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, w, dtype) = (ins[0].shape(), ins[1].shape(), ins[0].dtype);
        let wide = dtype.accumulator();
        let (bias, mask, _) = self.places();
        if x[2..].contains(&0) {
            return Ok(Lowered::Interpret);
        }
        let (spatial, kernel) = (&x[2..], &w[2..]);
        let window = self.window(spatial.len()).expect("infer accepted the window");
        let taps: usize = kernel.iter().product();
        let mut n = NestBuilder::new(&outs[0].shape());
        let operands: Vec<u32> = ins.iter().map(|ty| n.operand(dtype, &ty.shape())).collect();
        let at = n.domain();
        let group_out = (w[0] / self.group as usize).max(1) as i64;
        let per_offset = (x[1] / self.offset_group as usize).max(1) as i64;
        let extents: Vec<usize> = kernel.iter().copied().chain([w[1]]).collect();
        let load = |n: &mut NestBuilder, operand: usize, index: &[Index]| {
            let value = n.load(operands[operand], index);
            n.cast(value, wide)
        };
        let mut result = n.reduce(Reduction::Sum, &extents, |n, k| {
            let (inner, tap) = k.split_last().expect("the channels are there");
            let channel = match self.group {
                1 => inner.clone(),
                _ => at[1].div(group_out).mul(w[1] as i64).add(inner),
            };
            let row = channel.div(per_offset).mul(taps as i64).add(&Index::flatten(tap, kernel));
            let mut plane = vec![at[0].clone(), row.clone()];
            plane.extend_from_slice(&at[2..]);
            let sides: Vec<[Side; 2]> = (0..spatial.len())
                .map(|d| {
                    let mut index = plane.clone();
                    index[1] = row.mul(spatial.len() as i64).add_const(d as i64);
                    let moved = load(n, 2, &index);
                    let fixed = at[d + 2]
                        .mul(window.strides[d] as i64)
                        .add(&tap[d].mul(window.dilations[d] as i64))
                        .add_const(-(window.begin[d] as i64));
                    let fixed = n.index_value(&fixed);
                    let fixed = n.cast(fixed, wide);
                    let place = n.apply(ScalarFn::Add, &[fixed, moved]);
                    sides_of(n, place, spatial[d])
                })
                .collect();
            let mut index = vec![at[0].clone(), channel];
            let mut value = bilinear(n, &sides, &mut index, None, &mut |n, index| load(n, 0, index));
            if let Some(mask) = mask {
                let weight = load(n, mask, &plane);
                value = n.apply(ScalarFn::Mul, &[value, weight]);
            }
            let mut index = vec![at[1].clone(), inner.clone()];
            index.extend_from_slice(tap);
            let weight = load(n, 1, &index);
            n.apply(ScalarFn::Mul, &[value, weight])
        });
        if let Some(bias) = bias {
            let bias = load(&mut n, bias, &at[1..2]);
            result = n.apply(ScalarFn::Add, &[result, bias]);
        }
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

/// One of the two elements around a position: its weight, its index, and whether it exists.
struct Side {
    weight: Val,
    index: Index,
    inside: Val,
}

fn sides_of(n: &mut NestBuilder, place: Val, size: usize) -> [Side; 2] {
    let low = n.apply(ScalarFn::Floor, &[place]);
    let t = n.apply(ScalarFn::Sub, &[place, low]);
    let one = n.constant(n.dtype(place), 1.0);
    let rest = n.apply(ScalarFn::Sub, &[one, t]);
    let high = n.apply(ScalarFn::Add, &[low, one]);
    [(low, rest), (high, t)].map(|(at, weight)| {
        let after = with_constant(n, ScalarFn::Ge, at, 0.0);
        let before = with_constant(n, ScalarFn::Lt, at, size as f64);
        let inside = n.apply(ScalarFn::And, &[after, before]);
        let at = n.cast(at, DType::I64);
        Side { weight, index: clamped_index(n, at, size), inside }
    })
}

/// The weighted sum over the corners around a position.
fn bilinear(
    n: &mut NestBuilder,
    sides: &[[Side; 2]],
    index: &mut Vec<Index>,
    inside: Option<Val>,
    load: &mut impl FnMut(&mut NestBuilder, &[Index]) -> Val,
) -> Val {
    let Some((first, rest)) = sides.split_first() else {
        let value = load(n, index);
        let Some(inside) = inside else { return value };
        let zero = n.constant(n.dtype(value), 0.0);
        return n.apply(ScalarFn::Select, &[inside, value, zero]);
    };
    let mut corner = |n: &mut NestBuilder, side: &Side| {
        let both = match inside {
            Some(outer) => n.apply(ScalarFn::And, &[outer, side.inside]),
            None => side.inside,
        };
        index.push(side.index.clone());
        let value = bilinear(n, rest, index, Some(both), load);
        index.pop();
        value
    };
    let (low, high) = (corner(n, &first[0]), corner(n, &first[1]));
    let scaled = n.apply(ScalarFn::Mul, &[first[0].weight, low]);
    n.apply(ScalarFn::Fma, &[first[1].weight, high, scaled])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Conv;
    use crate::ops::testing::{assert_close, check, sample};

    fn plain() -> DeformConv {
        DeformConv::with_name("deform_conv")
    }

    #[test]
    fn without_offsets_it_is_a_convolution() {
        let (x, w) = (sample(DType::F64, &[1, 2, 4, 5], 1), sample(DType::F64, &[3, 2, 2, 3], 2));
        let pads = vec![1, 0, 1, 1];
        let conv = Conv { pads: pads.clone(), ..Conv::plain() };
        let expected = check(conv, &[x.clone(), w.clone()]);
        let out = expected[0].shape();
        let offset = Tensor::zeros(DType::F64, &[1, 12, out[2], out[3]]);
        assert_close(&check(DeformConv { pads, ..plain() }, &[x, w, offset]), &expected, "deform_conv");
    }

    #[test]
    fn offsets_masks_and_groups_agree_with_the_formula() {
        let op = DeformConv {
            strides: vec![1, 2],
            pads: vec![1; 4],
            dilations: vec![2, 1],
            group: 2,
            offset_group: 4,
            bias: true,
            mask: true,
        };
        for dtype in [DType::F32, DType::F64] {
            let ins = [
                sample(dtype, &[2, 4, 5, 4], 1),
                sample(dtype, &[6, 2, 2, 2], 2),
                sample(dtype, &[2, 32, 5, 3], 3),
                sample(dtype, &[6], 4),
                sample(dtype, &[2, 16, 5, 3], 5),
            ];
            check(op.clone(), &ins);
        }
        check(
            plain(),
            &[
                sample(DType::F32, &[1, 1, 4], 1),
                sample(DType::F32, &[1, 1, 2], 2),
                sample(DType::F32, &[1, 2, 3], 3),
            ],
        );
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |op: DeformConv, ins: &[TensorType]| {
            op.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint
        };
        let (x, w) = (f32(&[1, 2, 4, 4]), f32(&[3, 2, 2, 2]));
        assert_eq!(violated(plain(), &[x.clone(), f32(&[3, 2, 2]), f32(&[1, 8, 3, 3])]), "C3");
        assert_eq!(
            violated(DeformConv { offset_group: 3, ..plain() }, &[x.clone(), w.clone(), f32(&[1, 8, 3, 3])]),
            "C4"
        );
        assert_eq!(violated(plain(), &[x, w, f32(&[1, 4, 3, 3])]), "C5");
    }
}
