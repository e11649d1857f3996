//! `roi_align`: regions of a feature map pooled to one size.

use super::vjp;
use super::{OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// What becomes of the samples of a bin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoiMode {
    /// Their mean.
    Avg,
    /// The largest of their weighted corners.
    Max,
}

impl Keyword for RoiMode {
    const ALL: &'static [(&'static str, RoiMode)] = &[("avg", RoiMode::Avg), ("max", RoiMode::Max)];
}

/// Regions of `x` `[N, C, H, W]`, given as corners `[R, 4]` (x, y, x, y) and the image each lies in `[R]`,
/// each cut into `output_height` by `output_width` bins; the result is `[R, C, bins]`.
///
/// A bin is sampled at a grid of `sampling_ratio` points a side (0: as many as it is wide) between elements;
/// points more than 1 outside the map give 0. Corners are scaled by `spatial_scale`, and with `half_pixel`
/// moved by half an element; without, regions are at least 1 by 1.
///
/// - (C1) `x` is a float of rank 4, and the regions are of its type;
/// - (C2) regions are `[R, 4]`, images i64 `[R]`;
/// - (C3) sizes and the sampling ratio are not negative, sizes not 0.
///
/// ONNX: `RoiAlign` (10..), whose importer reads `coordinate_transformation_mode`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoiAlign {
    /// What becomes of samples.
    pub mode: RoiMode,
    /// Rows of bins.
    pub output_height: i64,
    /// Columns of bins.
    pub output_width: i64,
    /// Samples along each side of a bin.
    pub sampling_ratio: i64,
    /// From region coordinates to elements.
    pub spatial_scale: f64,
    /// Whether elements' coordinates are those of their middle.
    pub half_pixel: bool,
}

/// A region sampled along one dimension: where its bins start, how long they are, points in each.
struct Side {
    start: f64,
    bin: f64,
    grid: usize,
}

/// The most samples along one side of a bin.
const LARGEST_GRID: f64 = 4096.0;

impl RoiAlign {
    fn side(&self, low: f64, high: f64, bins: usize) -> Side {
        let shift = if self.half_pixel { 0.5 } else { 0.0 };
        let start = low * self.spatial_scale - shift;
        let mut size = high * self.spatial_scale - shift - start;
        if !self.half_pixel {
            size = size.max(1.0);
        }
        let bin = size / bins as f64;
        let grid = match self.sampling_ratio {
            0 => bin.ceil().clamp(0.0, LARGEST_GRID) as usize,
            ratio => ratio as usize,
        };
        Side { start, bin, grid }
    }
}

/// The two elements around a position and the weight of the second; `None` outside.
fn around(at: f64, size: usize) -> Option<(usize, usize, f64)> {
    if !(-1.0..=size as f64).contains(&at) {
        return None;
    }
    let at = at.max(0.0);
    let low = at as usize;
    match low + 1 >= size {
        true => Some((size - 1, size - 1, 0.0)),
        false => Some((low, low + 1, at - low as f64)),
    }
}

impl OpDef for RoiAlign {
    const NAMES: &'static [&'static str] = &["roi_align"];

    fn with_name(_: &str) -> RoiAlign {
        RoiAlign {
            mode: RoiMode::Avg,
            output_height: 1,
            output_width: 1,
            sampling_ratio: 0,
            spatial_scale: 1.0,
            half_pixel: true,
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("mode", Slot::Keyword(&mut self.mode))?;
        codec.attr("output_height", Slot::Int(&mut self.output_height))?;
        codec.attr("output_width", Slot::Int(&mut self.output_width))?;
        codec.attr("sampling_ratio", Slot::Int(&mut self.sampling_ratio))?;
        codec.attr("spatial_scale", Slot::Float(&mut self.spatial_scale))?;
        codec.attr("half_pixel", Slot::Bool(&mut self.half_pixel))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 3..=3)?;
        let (x, regions, images) = (ins[0], ins[1], ins[2]);
        let fits = x.dtype.is_float() && x.rank() == 4 && regions.dtype == x.dtype;
        require!(fits, "C1", "{x} has no regions {regions}");
        let shaped = regions.rank() == 2
            && regions.dims[1].may_equal(&Dim::Fixed(4))
            && images.rank() == 1
            && images.dtype == DType::I64
            && images.dims[0].may_equal(&regions.dims[0]);
        require!(shaped, "C2", "{regions} do not lie in images {images}");
        let sizes = [self.output_height, self.output_width].iter().all(|n| (1..1 << 20).contains(n));
        let sampled = (0..1 << 12).contains(&self.sampling_ratio);
        require!(sizes && sampled, "C3", "{} by {} bins", self.output_height, self.output_width);
        let (height, width) =
            (Dim::Fixed(self.output_height as usize), Dim::Fixed(self.output_width as usize));
        Ok(vec![TensorType::new(
            x.dtype,
            [regions.dims[0].meet(&images.dims[0]), x.dims[1].clone(), height, width],
        )])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, regions) = (ins[0].to_f64s(), ins[1].to_f64s());
        let images = ins[2].to_ints();
        let shape = ins[0].shape();
        let (batch, channels, height, width) = (shape[0], shape[1], shape[2], shape[3]);
        let bins = [self.output_height as usize, self.output_width as usize];
        let mut result = Vec::new();
        for (region, &image) in regions.chunks_exact(4).zip(&images) {
            let image = usize::try_from(image).ok().filter(|&i| i < batch);
            let image = image.ok_or("a region lies in an image that does not exist")?;
            let sides = [self.side(region[1], region[3], bins[0]), self.side(region[0], region[2], bins[1])];
            for at in points(&[channels, bins[0], bins[1]]) {
                let plane = &x[(image * channels + at[0]) * height * width..][..height * width];
                let place = |d: usize, sample: usize| {
                    let side = &sides[d];
                    side.start + side.bin * (at[d + 1] as f64 + (sample as f64 + 0.5) / side.grid as f64)
                };
                let (mut sum, mut largest): (f64, Option<f64>) = (0.0, None);
                for sample in points(&[sides[0].grid, sides[1].grid]) {
                    let rows = around(place(0, sample[0]), height);
                    let columns = around(place(1, sample[1]), width);
                    let Some(((top, bottom, y), (left, right, x))) = rows.zip(columns) else {
                        largest = Some(largest.map_or(0.0, |m| m.max(0.0)));
                        continue;
                    };
                    for (row, column, weight) in [
                        (top, left, (1.0 - y) * (1.0 - x)),
                        (top, right, (1.0 - y) * x),
                        (bottom, left, y * (1.0 - x)),
                        (bottom, right, y * x),
                    ] {
                        let value = weight * plane[row * width + column];
                        sum += value;
                        largest = Some(largest.map_or(value, |m| m.max(value)));
                    }
                }
                result.push(match self.mode {
                    RoiMode::Avg => sum / (sides[0].grid * sides[1].grid).max(1) as f64,
                    RoiMode::Max => largest.unwrap_or(0.0),
                });
            }
        }
        let out = [images.len(), channels, bins[0], bins[1]];
        Ok(vec![Tensor::from_f64s(ins[0].dtype(), &out, &result)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        // How many samples there are would depend on data.
        match self.sampling_ratio {
            0 => Ok(Vjp::Undefined),
            _ => vjp::through(self.as_gathers(cx)?),
        }
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let at = [cx.batched[0].then_some(0), Some(0), Some(0)];
        if !cx.batched[0] {
            return cx.merged(self.clone(), &at, &[0]);
        }
        // Images are counted over all examples.
        let images = cx.with_batch(2)?;
        let (before, count) = (cx.numbers(DType::I64, 2)?, cx.ty(0).shape()[0] as i64);
        let count = cx.builder.constant(Tensor::scalar(count));
        let before = cx.builder.map(ScalarFn::Mul, &[before, count])?;
        let images = cx.builder.map(ScalarFn::Add, &[images, before])?;
        let ins = [cx.ins[0], cx.with_batch(1)?, images];
        cx.merged_values(self.clone(), &ins.map(|value| (value, Some(0))), &[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::eval_op;

    #[test]
    fn a_region_on_a_ramp_averages_to_its_middle() {
        let x = Tensor::from_fn::<f32>(&[1, 1, 4, 4], |i| (i % 4) as f32);
        let ins = [x, Tensor::new(&[1, 4], &[0.5f32, 0.5, 2.5, 2.5]), Tensor::new(&[1], &[0i64])];
        let op =
            RoiAlign { output_width: 2, sampling_ratio: 2, half_pixel: false, ..RoiAlign::with_name("") };
        assert_eq!(eval_op(&op.into(), &ins).unwrap()[0].to_f64s(), [1.0, 2.0]);
    }

    #[test]
    fn images_that_do_not_exist_are_errors() {
        let x = Tensor::zeros(DType::F32, &[1, 1, 2, 2]);
        let ins = [x, Tensor::zeros(DType::F32, &[1, 4]), Tensor::new(&[1], &[1i64])];
        assert!(eval_op(&RoiAlign::with_name("").into(), &ins).is_err());
    }
}
