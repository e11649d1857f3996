//! `resize`: a tensor sampled at other sizes.
//!
//! This file holds the op, its shapes and its meaning; `resize_lower.rs` holds its formula.

use std::borrow::Cow;

use super::movement::{late_count, pick, position, unknown};
use super::{Gradients, Lowered, MatMul, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Late, Slot};
use crate::dtype::Element;
use crate::error::{Error, Violation};
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};
use crate::{require, with_element};

macro_rules! keyword {
    ($(#[$doc:meta])* $name:ident { $($(#[$case:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$case])* $variant,)*
        }

        impl Keyword for $name {
            const ALL: &'static [(&'static str, $name)] = &[$(($word, $name::$variant),)*];
        }
    };
}

keyword! {
    /// How values between elements are found.
    Interpolation {
        /// The nearest element.
        Nearest = "nearest",
        /// A straight line between two elements along each axis.
        Linear = "linear",
        /// A cubic convolution of four elements along each axis.
        Cubic = "cubic",
    }
}

keyword! {
    /// How a position in the result maps to one in the operand, along one axis of size `n` that is scaled
    /// by `s` to a width of `w = s * n`.
    Coordinates {
        /// `(x + 0.5) / s - 0.5`.
        HalfPixel = "half_pixel",
        /// As half pixel, about the middle of the result when its size is not exactly `w`.
        HalfPixelSymmetric = "half_pixel_symmetric",
        /// As half pixel, but -0.5 if the width is 1.
        PytorchHalfPixel = "pytorch_half_pixel",
        /// `x * (n - 1) / (w - 1)`.
        AlignCorners = "align_corners",
        /// `x / s`.
        Asymmetric = "asymmetric",
        /// Positions within the region of interest, and the extrapolation value outside of the operand.
        TfCropAndResize = "tf_crop_and_resize",
    }
}

keyword! {
    /// Which element is nearest.
    NearestMode {
        /// The closer one, the lower of two as close.
        RoundPreferFloor = "round_prefer_floor",
        /// The closer one, the higher of two as close.
        RoundPreferCeil = "round_prefer_ceil",
        /// The lower one.
        Floor = "floor",
        /// The higher one.
        Ceil = "ceil",
    }
}

keyword! {
    /// What becomes of sizes that would change the aspect ratio.
    AspectPolicy {
        /// They are the result's.
        Stretch = "stretch",
        /// All axes scale alike, so that no size exceeds its bound.
        NotLarger = "not_larger",
        /// All axes scale alike, so that no size is below its bound.
        NotSmaller = "not_smaller",
    }
}

/// The operand sampled at other sizes along axes: exactly one of sizes and scales is given.
///
/// - (C1) axes (all, if none are given) are distinct and within the rank;
/// - (C2) there is one size or one scale for each axis, and no or two bounds of a region;
/// - (C3) sizes are not negative, scales are positive and finite;
/// - (C4) an empty dimension stays empty;
/// - (C5) linear and cubic take floats; nearest takes any element type.
///
/// ONNX: `Resize` (10..) and `Upsample` (7..=9), by their own importers. Formulas as in `Resize` 19.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// The sizes along the axes.
    pub sizes: Late,
    /// The factors along the axes; a size is the product rounded down.
    pub scales: Vec<f64>,
    /// The factors if an operand gives them: the bits of each as f32.
    pub scale_bits: Late,
    /// For `tf_crop_and_resize`, the first positions along the axes, then the last, as fractions.
    pub roi: Vec<f64>,
    /// The region if an operand gives it: the bits of each bound as f32.
    pub roi_bits: Late,
    /// Which axes; none given means all.
    pub axes: Vec<i64>,
    /// How values between elements are found.
    pub mode: Interpolation,
    /// Where positions come from.
    pub coordinates: Coordinates,
    /// Which element is nearest.
    pub nearest: NearestMode,
    /// The cubic's parameter.
    pub cubic_coeff_a: f64,
    /// Whether elements outside count for nothing, rather than as the nearest inside.
    pub exclude_outside: bool,
    /// The value outside of the operand for `tf_crop_and_resize`.
    pub extrapolation_value: f64,
    /// Whether a smaller result is made from all elements it covers.
    pub antialias: bool,
    /// What becomes of sizes that would change the aspect ratio.
    pub aspect: AspectPolicy,
}

/// One axis of the operand, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AxisScale {
    /// The operand's size and the result's.
    pub(super) from: usize,
    pub(super) to: usize,
    /// The factor, and the size before it was rounded.
    pub(super) scale: f64,
    pub(super) width: f64,
    /// The region of interest.
    pub(super) roi: (f64, f64),
}

impl AxisScale {
    fn unchanged(n: usize) -> AxisScale {
        AxisScale { from: n, to: n, scale: 1.0, width: n as f64, roi: (0.0, 1.0) }
    }
}

/// Floats that are attributes, or the bits that an operand gave.
fn floats<'a>(known: &'a [f64], bits: &Late) -> Cow<'a, [f64]> {
    match bits.as_known() {
        Some(bits) if !bits.is_empty() => {
            bits.iter().map(|&bits| f64::from(f32::from_bits(bits as u32))).collect()
        }
        _ => Cow::Borrowed(known),
    }
}

impl Resize {
    /// Which dimensions the axes are.
    fn places(&self, rank: usize) -> Result<Vec<usize>, Violation> {
        if self.axes.is_empty() {
            return Ok((0..rank).collect());
        }
        let mut places = Vec::with_capacity(self.axes.len());
        for &axis in &self.axes {
            let place = normalize_axis(axis, rank).filter(|p| !places.contains(p));
            require!(place.is_some(), "C1", "axis {axis} is outside rank {rank}, or given twice");
            places.push(place.unwrap_or(0));
        }
        Ok(places)
    }

    /// Every axis of an operand of this shape. The sizes are known.
    pub(super) fn axis_scales(&self, shape: &[usize]) -> Result<Vec<AxisScale>, Violation> {
        let places = self.places(shape.len())?;
        let mut axes: Vec<AxisScale> = shape.iter().map(|&n| AxisScale::unchanged(n)).collect();
        let sizes = self.sizes.as_known().unwrap_or(&[]);
        let (scales, roi) = (floats(&self.scales, &self.scale_bits), floats(&self.roi, &self.roi_bits));
        for (i, &place) in places.iter().enumerate() {
            let axis = &mut axes[place];
            let n = axis.from as f64;
            if let Some(&scale) = scales.get(i) {
                (axis.to, axis.scale, axis.width) = ((n * scale) as usize, scale, n * scale);
            } else if let Some(&size) = sizes.get(i) {
                require!(size >= 0, "C3", "the size {size} is negative");
                (axis.to, axis.scale, axis.width) = (size as usize, size as f64 / n, size as f64);
            }
            if !roi.is_empty() {
                axis.roi = (roi[i], roi[places.len() + i]);
            }
        }
        if scales.is_empty() && self.aspect != AspectPolicy::Stretch {
            let factors = places.iter().map(|&place| axes[place].scale);
            let scale = match self.aspect {
                AspectPolicy::NotSmaller => factors.fold(f64::NEG_INFINITY, f64::max),
                AspectPolicy::NotLarger | AspectPolicy::Stretch => factors.fold(f64::INFINITY, f64::min),
            };
            for &place in &places {
                let axis = &mut axes[place];
                axis.width = scale * axis.from as f64;
                (axis.to, axis.scale) = ((axis.width + 0.5) as usize, scale);
            }
        }
        for axis in &axes {
            let fits = axis.from > 0 || axis.to == 0;
            require!(fits, "C4", "an empty dimension cannot be resized to {}", axis.to);
        }
        Ok(axes)
    }

    /// The position in the operand that position `x` of the result is at.
    pub(super) fn source(&self, axis: &AxisScale, x: usize) -> f64 {
        let (x, n, w, s) = (x as f64, axis.from as f64, axis.width, axis.scale);
        match self.coordinates {
            Coordinates::AlignCorners if w == 1.0 => 0.0,
            Coordinates::AlignCorners => x * (n - 1.0) / (w - 1.0),
            Coordinates::Asymmetric => x / s,
            Coordinates::TfCropAndResize => {
                let (start, end) = axis.roi;
                let along = match w == 1.0 {
                    true => (end - start) * (n - 1.0) / 2.0,
                    false => x * (end - start) * (n - 1.0) / (w - 1.0),
                };
                along + start * (n - 1.0)
            }
            Coordinates::PytorchHalfPixel if w == 1.0 => -0.5,
            Coordinates::PytorchHalfPixel | Coordinates::HalfPixel => (x + 0.5) / s - 0.5,
            Coordinates::HalfPixelSymmetric => n / 2.0 * (1.0 - axis.to as f64 / w) + (x + 0.5) / s - 0.5,
        }
    }

    /// The element nearest to a position, which may lie outside.
    pub(super) fn nearest_to(&self, at: f64) -> f64 {
        match self.nearest {
            NearestMode::RoundPreferFloor => (at - 0.5).ceil(),
            NearestMode::RoundPreferCeil => (at + 0.5).floor(),
            NearestMode::Floor => at.floor(),
            NearestMode::Ceil => at.ceil(),
        }
    }

    /// The elements along an axis that position `x` of the result is made from, with their weights, or
    /// `None` where it is extrapolated.
    fn taps(&self, axis: &AxisScale, x: usize) -> Option<Vec<(usize, f64)>> {
        let at = self.source(axis, x);
        let last = axis.from as f64 - 1.0;
        if self.coordinates == Coordinates::TfCropAndResize && !(0.0..=last).contains(&at) {
            return None;
        }
        let inside = |i: f64| i.clamp(0.0, last) as usize;
        if self.mode == Interpolation::Nearest {
            return Some(vec![(inside(self.nearest_to(at)), 1.0)]);
        }
        let shrink = if self.antialias { axis.scale.min(1.0) } else { 1.0 };
        let radius = self.radius() / shrink;
        let first = (at - radius).floor() + 1.0;
        let mut taps = Vec::new();
        let mut i = first;
        while i < at + radius {
            let excluded = self.exclude_outside && !(0.0..=last).contains(&i);
            let weight = if excluded { 0.0 } else { self.kernel((i - at) * shrink) };
            taps.push((inside(i), weight));
            i += 1.0;
        }
        if self.antialias || self.exclude_outside {
            let total: f64 = taps.iter().map(|(_, weight)| weight).sum();
            taps.iter_mut().for_each(|(_, weight)| *weight /= total);
        }
        Some(taps)
    }

    /// How far from a position elements have a weight.
    pub(super) fn radius(&self) -> f64 {
        if self.mode == Interpolation::Cubic { 2.0 } else { 1.0 }
    }

    /// The weight of an element at a distance. Cubic: Keys, "Cubic Convolution Interpolation for
    /// Digital Image Processing", 1981.
    fn kernel(&self, distance: f64) -> f64 {
        let (x, a) = (distance.abs(), self.cubic_coeff_a);
        match self.mode {
            Interpolation::Nearest | Interpolation::Linear => (1.0 - x).max(0.0),
            Interpolation::Cubic if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Interpolation::Cubic if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            Interpolation::Cubic => 0.0,
        }
    }
}

impl OpDef for Resize {
    const NAMES: &'static [&'static str] = &["resize"];

    fn with_name(_: &str) -> Resize {
        Resize {
            sizes: Late::default(),
            scales: Vec::new(),
            scale_bits: Late::default(),
            roi: Vec::new(),
            roi_bits: Late::default(),
            axes: Vec::new(),
            mode: Interpolation::Nearest,
            coordinates: Coordinates::HalfPixel,
            nearest: NearestMode::RoundPreferFloor,
            cubic_coeff_a: -0.75,
            exclude_outside: false,
            extrapolation_value: 0.0,
            antialias: false,
            aspect: AspectPolicy::Stretch,
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("sizes", Slot::Late(&mut self.sizes))?;
        codec.attr("scales", Slot::Floats(&mut self.scales))?;
        codec.attr("scale_bits", Slot::Late(&mut self.scale_bits))?;
        codec.attr("roi", Slot::Floats(&mut self.roi))?;
        codec.attr("roi_bits", Slot::Late(&mut self.roi_bits))?;
        codec.attr("axes", Slot::Ints(&mut self.axes))?;
        codec.attr("mode", Slot::Keyword(&mut self.mode))?;
        codec.attr("coordinate_transformation_mode", Slot::Keyword(&mut self.coordinates))?;
        codec.attr("nearest_mode", Slot::Keyword(&mut self.nearest))?;
        codec.attr("cubic_coeff_a", Slot::Float(&mut self.cubic_coeff_a))?;
        codec.attr("exclude_outside", Slot::Bool(&mut self.exclude_outside))?;
        codec.attr("extrapolation_value", Slot::Float(&mut self.extrapolation_value))?;
        codec.attr("antialias", Slot::Bool(&mut self.antialias))?;
        codec.attr("keep_aspect_ratio_policy", Slot::Keyword(&mut self.aspect))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=3)?;
        let x = ins[0];
        let any = self.mode == Interpolation::Nearest || x.dtype.is_float();
        require!(any, "C5", "{} does not interpolate {x}", self.mode.word());
        let places = self.places(x.rank())?;
        let count = places.len();
        let (scales, roi) = (floats(&self.scales, &self.scale_bits), floats(&self.roi, &self.roi_bits));
        let later = self.scale_bits.as_known().is_none();
        let by_size = scales.is_empty() && !later;
        let given = match (by_size, later) {
            (true, _) => late_count(&self.sizes, ins),
            (false, true) => late_count(&self.scale_bits, ins),
            (false, false) => Some(scales.len()),
        };
        require!(
            given.is_none_or(|n| n == count),
            "C2",
            "{count} sizes or scales are needed, found {given:?}"
        );
        let sizes_too = !by_size && self.sizes != Late::default();
        require!(!sizes_too, "C2", "both sizes and scales are given");
        let bounds = roi.is_empty() || roi.len() == 2 * count;
        require!(bounds, "C2", "a region of {count} axes has not {} bounds", roi.len());
        let positive = scales.iter().all(|s| s.is_finite() && *s > 0.0);
        require!(positive, "C3", "the scales {scales:?} are not positive and finite");
        if later || (by_size && self.sizes.as_known().is_none()) {
            let mut dims = unknown(x.dtype, x.rank()).dims;
            for (d, dim) in dims.iter_mut().enumerate().filter(|(d, _)| !places.contains(d)) {
                *dim = x.dims[d].clone();
            }
            return Ok(vec![TensorType { dtype: x.dtype, dims }]);
        }
        // Where sizes depend on others only through the aspect ratio, one unknown makes all unknown.
        let shape: Vec<usize> = x.dims.iter().map(|d| d.as_fixed().unwrap_or(1)).collect();
        let axes = self.axis_scales(&shape)?;
        let all_known = places.iter().all(|&p| x.dims[p].as_fixed().is_some());
        let dims = x.dims.iter().zip(&axes).enumerate().map(|(d, (dim, axis))| match dim {
            dim if !places.contains(&d) => dim.clone(),
            dim if !by_size && axis.scale == 1.0 => dim.clone(),
            _ if by_size && self.aspect == AspectPolicy::Stretch => Dim::Fixed(axis.to),
            Dim::Fixed(_) if all_known || !by_size => Dim::Fixed(axis.to),
            _ => Dim::Unknown,
        });
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let axes = self.axis_scales(x.shape()).map_err(|v| v.to_string())?;
        let shape: Vec<usize> = axes.iter().map(|axis| axis.to).collect();
        let taps: Vec<Vec<Option<Vec<(usize, f64)>>>> =
            axes.iter().map(|axis| (0..axis.to).map(|i| self.taps(axis, i)).collect()).collect();
        let stride = strides(x.shape());
        if self.mode == Interpolation::Nearest {
            let fill = Tensor::from_f64s(x.dtype(), &[], &[self.extrapolation_value]);
            let mut at = shape.clone();
            return Ok(vec![pick(&[x, &fill], &shape, |index| {
                for ((slot, &i), taps) in at.iter_mut().zip(index).zip(&taps) {
                    let Some(taps) = &taps[i] else { return (1, 0) };
                    *slot = taps[0].0;
                }
                (0, position(&at, &stride))
            })]);
        }
        // One axis after another, the last first.
        let mut values = x.to_f64s();
        let mut sizes = x.shape().to_vec();
        for d in (0..sizes.len()).rev() {
            let (outer, n, inner) = super::movement::around(&sizes, d);
            let mut next = Vec::with_capacity(outer * axes[d].to * inner);
            for o in 0..outer {
                for taps in &taps[d] {
                    for i in 0..inner {
                        let at = |k: usize| values[(o * n + k) * inner + i];
                        next.push(match taps {
                            None => self.extrapolation_value,
                            Some(taps) => taps.iter().map(|&(k, weight)| weight * at(k)).sum(),
                        });
                    }
                }
            }
            values = next;
            sizes[d] = axes[d].to;
        }
        Ok(vec![with_element!(x.dtype(), T => Tensor::from_fn::<T>(&shape, |i| T::from_f64(values[i])))])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let x = cx.ins[0];
        let shape = cx.shape(x);
        let axes = self.axis_scales(&shape).expect("infer accepted the sizes");
        let mut flow = cx.dout(0);
        for (axis, scale) in
            axes.iter().enumerate().filter(|(_, scale)| **scale != AxisScale::unchanged(scale.from))
        {
            // What each element along the axis counts in each result; nothing where that is extrapolated.
            let n = shape[axis];
            let mut weights = vec![0.0; n * scale.to];
            for to in 0..scale.to {
                for (from, weight) in self.taps(scale, to).unwrap_or_default() {
                    weights[from * scale.to + to] += weight;
                }
            }
            let weights = cx.builder.constant(Tensor::from_f64s(cx.dtype(x), &[n, scale.to], &weights));
            let mut perm: Vec<usize> = (0..shape.len()).filter(|&d| d != axis).collect();
            perm.push(axis);
            let last = cx.transpose(flow, &perm)?;
            let rows = cx.shape(last);
            let (&columns, before) = rows.split_last().expect("there is an axis");
            let matrix = cx.reshape(last, &[before.iter().product(), columns])?;
            let product = cx.push(MatMul { trans_a: false, trans_b: true }, &[matrix, weights])?;
            let before: Vec<usize> = before.iter().copied().chain([n]).collect();
            let last = cx.reshape(product, &before)?;
            let mut back: Vec<usize> = (0..shape.len() - 1).collect();
            back.insert(axis, shape.len() - 1);
            flow = cx.transpose(last, &back)?;
        }
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[0] = Some(flow);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axes = self.places(cx.rank(0)).expect("infer accepted the axes");
        cx.along(Resize { axes: axes.into_iter().map(|axis| axis as i64 + 1).collect(), ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        super::resize_lower::lower(self, &ins[0], &outs[0])
    }
}

#[cfg(test)]
mod tests;
