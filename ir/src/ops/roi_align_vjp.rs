//! `roi_align` by smaller ops, which have gradients: elements gathered and weighted.

use super::vjp::VjpCx;
use super::{Gather, Reduce, ReduceKind, RoiAlign, RoiMode, Slice};
use crate::error::Error;
use crate::graph::Value;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::Shape;
use ScalarFn::{Add, And, Cast, Floor, Ge, Le, Max, Min, Mul, Sub};

/// Samples along one side of every region, `[R, samples]`: the elements around each, the weight of the second, and
/// whether the sample counts.
struct Samples {
    near: [Value; 2],
    weight: Value,
    inside: Value,
}

impl RoiAlign {
    /// The result, for a number of samples that is known.
    pub(super) fn as_gathers(&self, cx: &mut VjpCx<'_>) -> Result<Value, Error> {
        let (x, regions, images) = (cx.ins[0], cx.ins[1], cx.ins[2]);
        let (shape, dtype) = (cx.shape(x), cx.dtype(x));
        let (channels, height, width) = (shape[1], shape[2], shape[3]);
        let regions = cx.builder.cast(regions, dtype.accumulator())?;
        let count = cx.shape(regions)[0];
        let rows = self.samples(cx, regions, [1, 3], (self.output_height as usize, height))?;
        let columns = self.samples(cx, regions, [0, 2], (self.output_width as usize, width))?;
        // Elements as rows of channels, over all images.
        let elements = cx.builder.cast(x, dtype.accumulator())?;
        let elements = cx.transpose(elements, &[0, 2, 3, 1])?;
        let elements = cx.reshape(elements, &[shape[0] * height * width, channels])?;
        let images = cx.reshape(images, &[count, 1, 1])?;
        // Rows and columns as [R, rows, 1, 1] and [R, 1, columns, 1].
        let [down, across] = [&rows, &columns].map(|side| cx.shape(side.weight)[1]);
        let as_row = |cx: &mut VjpCx<'_>, value: Value, rank: usize| -> Result<Value, Error> {
            cx.reshape(value, &[count, down, 1, 1][..rank])
        };
        let as_column = |cx: &mut VjpCx<'_>, value: Value, rank: usize| -> Result<Value, Error> {
            cx.reshape(value, &[count, 1, across, 1][..rank])
        };
        let weights = |cx: &mut VjpCx<'_>, weight: Value| -> Result<[Value; 2], Error> {
            let one = cx.builder.scalar_like(weight, 1.0);
            Ok([cx.map(Sub, &[one, weight])?, weight])
        };
        let (y, x) = (weights(cx, rows.weight)?, weights(cx, columns.weight)?);
        let inside = [as_row(cx, rows.inside, 4)?, as_column(cx, columns.inside, 4)?];
        let inside = cx.map(And, &inside)?;
        let mut corners = Vec::new();
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut at = images;
            for (size, part) in
                [(height, as_row(cx, rows.near[row], 3)?), (width, as_column(cx, columns.near[column], 3)?)]
            {
                let size = cx.builder.constant(Tensor::scalar(size as i64));
                let whole = cx.map(Mul, &[at, size])?;
                at = cx.map(Add, &[whole, part])?;
            }
            let value = cx.push(Gather { axis: 0 }, &[elements, at])?;
            let factors = [as_row(cx, y[row], 4)?, as_column(cx, x[column], 4)?];
            let weight = cx.map(Mul, &factors)?;
            let value = cx.map(Mul, &[weight, value])?;
            corners.push(cx.masked(inside, value)?);
        }
        let combine = if self.mode == RoiMode::Avg { Add } else { Max };
        let mut sample = corners[0];
        for &corner in &corners[1..] {
            sample = cx.map(combine, &[sample, corner])?;
        }
        let (bins_down, bins_across) = (self.output_height as usize, self.output_width as usize);
        let apart: Shape = [count, bins_down, down / bins_down, bins_across, across / bins_across, channels]
            .into_iter()
            .collect();
        let sample = cx.reshape(sample, &apart)?;
        let kind = if self.mode == RoiMode::Avg { ReduceKind::Mean } else { ReduceKind::Max };
        let bins = cx.push(Reduce::over(kind, &[2, 4], false), &[sample])?;
        let bins = cx.transpose(bins, &[0, 3, 1, 2])?;
        cx.builder.cast(bins, dtype)
    }

    /// The samples along the side between two of a region's numbers, in so many bins over so many elements.
    fn samples(
        &self,
        cx: &mut VjpCx<'_>,
        regions: Value,
        between: [i64; 2],
        (bins, size): (usize, usize),
    ) -> Result<Samples, Error> {
        let shift = if self.half_pixel { 0.5 } else { 0.0 };
        let mut ends = Vec::new();
        for at in between {
            let end = cx.push(Slice::along(1, at, at + 1), &[regions])?;
            let end = cx.with_constant(Mul, end, self.spatial_scale)?;
            ends.push(cx.with_constant(Sub, end, shift)?);
        }
        let mut length = cx.map(Sub, &[ends[1], ends[0]])?;
        if !self.half_pixel {
            length = cx.with_constant(Max, length, 1.0)?;
        }
        let bin = cx.with_constant(ScalarFn::Div, length, bins as f64)?;
        let grid = self.sampling_ratio as usize;
        let steps: Vec<f64> =
            (0..bins * grid).map(|i| (i / grid) as f64 + ((i % grid) as f64 + 0.5) / grid as f64).collect();
        let steps = cx.builder.constant(Tensor::from_f64s(cx.dtype(bin), &[1, steps.len()], &steps));
        let along = cx.map(Mul, &[bin, steps])?;
        let at = cx.map(Add, &[ends[0], along])?;
        let (above, below) = (cx.with_constant(Ge, at, -1.0)?, cx.with_constant(Le, at, size as f64)?);
        let inside = cx.map(And, &[above, below])?;
        let at = cx.with_constant(Max, at, 0.0)?;
        let low = cx.map(Floor, &[at])?;
        // Between the last element and its end there is that element alone.
        let last = size as f64 - 1.0;
        let between = cx.with_constant(ScalarFn::Lt, low, last)?;
        let rest = cx.map(Sub, &[at, low])?;
        let weight = cx.masked(between, rest)?;
        let near = cx.with_constant(Min, low, last)?;
        let next = cx.with_constant(Add, low, 1.0)?;
        let next = cx.with_constant(Min, next, last)?;
        let whole = Cast(crate::dtype::DType::I64);
        Ok(Samples { near: [cx.map(whole, &[near])?, cx.map(whole, &[next])?], weight, inside })
    }
}
