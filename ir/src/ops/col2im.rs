//! `col2im`: overlapping blocks added into the image they were cut from.

use super::window::Window;
use super::{Gather, Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Guard, Index, NestBuilder, Reduction};
use crate::ops::movement::{late_count, position};
use crate::ops::points::points;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, strides};

/// Adds the columns of `x` `[N, C * taps, blocks]` to the places of an image `[N, C, spatial..]` that a
/// window of shape `block` reads at each of its positions.
///
/// - (C1) strides, pads and dilations as for [`super::Conv`], the window having the shape `block`;
/// - (C2) the window fits the image and has as many positions as `x` has blocks;
/// - (C3) `x` is a number of rank 3, whose second dimension is a multiple of the taps;
/// - (C4) the image and the block have one number of dimensions, which is known.
///
/// ONNX: `Col2Im` (18..).
#[derive(Clone, Debug, PartialEq)]
pub struct Col2Im {
    /// The spatial shape of the image.
    pub image: Late,
    /// The shape of the window.
    pub block: Late,
    /// The step of the window along each spatial dimension; empty means 1.
    pub strides: Vec<i64>,
    /// Padding before each spatial dimension, then after each; empty means none.
    pub pads: Vec<i64>,
    /// The distance between neighbouring taps; empty means 1.
    pub dilations: Vec<i64>,
}

/// The sizes that everything follows from.
struct Sizes {
    window: Window,
    image: Shape,
    block: Shape,
    /// Positions of the window along each dimension.
    counts: Shape,
}

impl Col2Im {
    fn sizes(&self) -> Result<Option<Sizes>, Violation> {
        let (Some(image), Some(block)) = (self.image.as_known(), self.block.as_known()) else {
            return Ok(None);
        };
        require!(image.len() == block.len(), "C4", "an image {image:?} has no blocks {block:?}");
        let window = Window::new(image.len(), &self.strides, &self.pads, &self.dilations)?;
        let sizes = |list: &[i64]| -> Option<Shape> {
            list.iter().map(|&n| usize::try_from(n).ok().filter(|n| *n < 1 << 31)).collect()
        };
        let (Some(image), Some(block)) = (sizes(image), sizes(block)) else {
            return Err(Violation::new("C2", format!("an image {image:?} has no blocks {block:?}")));
        };
        let mut counts = Shape::new();
        for d in 0..image.len() {
            let count = window.output_dim(d, &Dim::Fixed(image[d]), &Dim::Fixed(block[d]), false)?;
            counts.extend(count.as_fixed());
        }
        Ok(Some(Sizes { window, image, block, counts }))
    }
}

impl OpDef for Col2Im {
    const NAMES: &'static [&'static str] = &["col2im"];

    fn with_name(_: &str) -> Col2Im {
        Col2Im {
            image: Late::default(),
            block: Late::default(),
            strides: Vec::new(),
            pads: Vec::new(),
            dilations: Vec::new(),
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("image_shape", Slot::Late(&mut self.image))?;
        codec.attr("block_shape", Slot::Late(&mut self.block))?;
        codec.attr("strides", Slot::Ints(&mut self.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.dilations))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=3)?;
        let x = ins[0];
        require!(x.rank() == 3 && x.dtype != DType::Bool, "C3", "{x} does not hold columns");
        let Some(sizes) = self.sizes()? else {
            let count = late_count(&self.image, ins).or(late_count(&self.block, ins));
            let Some(rank) = count else {
                return Err(Violation::new("C4", "the number of dimensions is not known"));
            };
            let dims = std::iter::once(x.dims[0].clone()).chain(std::iter::repeat_n(Dim::Unknown, rank + 1));
            return Ok(vec![TensorType::new(x.dtype, dims)]);
        };
        let blocks: usize = sizes.counts.iter().product();
        let fits = x.dims[2].may_equal(&Dim::Fixed(blocks));
        require!(fits, "C2", "{x} does not hold {blocks} blocks");
        let taps: usize = sizes.block.iter().product();
        let channels = match x.dims[1].as_fixed() {
            Some(n) => {
                require!(n % taps == 0, "C3", "{x} does not hold blocks of {taps}");
                Dim::Fixed(n / taps)
            }
            None => Dim::Unknown,
        };
        let spatial = sizes.image.iter().map(|&n| Dim::Fixed(n));
        Ok(vec![TensorType::new(x.dtype, [x.dims[0].clone(), channels].into_iter().chain(spatial))])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let out = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        let sizes = self.sizes().map_err(|v| v.to_string())?.ok_or("shapes are not known")?;
        if x.dtype().is_float() {
            let values = x.to_f64s();
            let sums = sizes.sums(&out, 0.0, |acc, i| acc + values[i]);
            return Ok(vec![Tensor::from_f64s(x.dtype(), &out, &sums)]);
        }
        let values = x.to_i128s();
        let sums = sizes.sums(&out, 0, |acc: i128, i| acc.wrapping_add(values[i]));
        Ok(vec![Tensor::from_i128s(x.dtype(), &out, &sums)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let g = cx.dout(0);
        let sizes = self.sizes().ok().flatten().expect("infer accepted the sizes");
        let (shape, spatial) = (cx.shape(g), sizes.image.len());
        let mut padded = g;
        let mut around = sizes.image.clone();
        for d in 0..spatial {
            let (begin, end) = (sizes.window.begin[d], sizes.window.end[d]);
            padded = cx.pad(padded, d + 2, begin as i64, end as i64)?;
            around[d] += begin + end;
        }
        let flat = cx.reshape(padded, &[shape[0], shape[1], around.iter().product()])?;
        let steps = strides(&around);
        let mut places: Vec<i64> = Vec::new();
        for tap in points(&sizes.block) {
            for block in points(&sizes.counts) {
                let at = (0..spatial)
                    .map(|d| block[d] * sizes.window.strides[d] + tap[d] * sizes.window.dilations[d]);
                places.push(at.zip(&steps).map(|(at, step)| at * step).sum::<usize>() as i64);
            }
        }
        let places = cx.builder.constant(Tensor::new(&[places.len()], &places));
        let taken = cx.push(Gather { axis: 2 }, &[flat, places])?;
        let columns = cx.shape(cx.ins[0]);
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[0] = Some(cx.reshape(taken, &columns)?);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0)], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let sizes = self.sizes().ok().flatten().expect("infer accepted the sizes");
        let dtype = ins[0].dtype;
        let taps: usize = sizes.block.iter().product();
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(dtype, &ins[0].shape());
        let at = n.domain();
        // Neighbouring taps: only every stride-th of them is in any one place, so blocks are counted instead.
        let window = &sizes.window;
        let by_blocks = |d: usize| window.dilations[d] == 1;
        let extent = |d: usize| match by_blocks(d) {
            true => sizes.block[d].div_ceil(window.strides[d]),
            false => sizes.block[d],
        };
        let extents: Shape = (0..sizes.block.len()).map(extent).collect();
        let sum = n.reduce(Reduction::Sum, &extents, |n, k| {
            let (mut taps_at, mut block, mut guards) = (Vec::new(), Vec::new(), Vec::new());
            for (d, k) in k.iter().enumerate() {
                // place = block * stride + tap * dilation - begin, solved for the block, or for the tap too.
                let stride = window.strides[d] as i64;
                let place = at[d + 2].add_const(window.begin[d] as i64);
                let (tap, at_block) = match by_blocks(d) {
                    true => (place.rem(stride).add(&k.mul(stride)), place.div(stride).sub(k)),
                    false => (k.clone(), place.sub(&k.mul(window.dilations[d] as i64)).div(stride)),
                };
                match by_blocks(d) {
                    true => guards.push(Guard::new(tap.clone(), sizes.block[d])),
                    false => {
                        guards.push(Guard::new(place.sub(&k.mul(window.dilations[d] as i64)).rem(stride), 1));
                    }
                }
                guards.push(Guard::new(at_block.clone(), sizes.counts[d]));
                taps_at.push(tap);
                block.push(at_block);
            }
            let row = at[1].mul(taps as i64).add(&Index::flatten(&taps_at, &sizes.block));
            let index = [at[0].clone(), row, Index::flatten(&block, &sizes.counts)];
            let value = n.load_guarded(operand, &index, &guards);
            n.cast(value, dtype.accumulator())
        });
        let result = n.cast(sum, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl Sizes {
    /// What is added to each element of the image, in any arithmetic.
    fn sums<T: Copy>(&self, out: &[usize], zero: T, add: impl Fn(T, usize) -> T) -> Vec<T> {
        let image_strides = strides(&self.image);
        let (area, blocks): (usize, usize) = (self.image.iter().product(), self.counts.iter().product());
        let taps: usize = self.block.iter().product();
        let mut acc = vec![zero; out.iter().product()];
        for plane in 0..out[0] * out[1] {
            for (t, tap) in points(&self.block).enumerate() {
                for (i, block) in points(&self.counts).enumerate() {
                    let Some(place) = self.window.source(&block, &tap, &self.image) else { continue };
                    let to = plane * area + position(&place, &image_strides);
                    acc[to] = add(acc[to], (plane * taps + t) * blocks + i);
                }
            }
        }
        acc
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    fn plain(image: &[i64], block: &[i64]) -> Col2Im {
        Col2Im { image: image.into(), block: block.into(), ..Col2Im::with_name("col2im") }
    }

    #[test]
    fn blocks_side_by_side_and_overlapping() {
        let x = Tensor::new(&[1, 2, 3], &[1f32, 2., 3., 10., 20., 30.]);
        assert_eq!(check(plain(&[4], &[2]), &[x.clone()])[0].to_f64s(), [1., 12., 23., 30.]);
        let apart = Col2Im { strides: vec![2], ..plain(&[6], &[2]) };
        assert_eq!(check(apart, &[x])[0].to_f64s(), [1., 10., 2., 20., 3., 30.]);
    }

    #[test]
    fn windows_in_several_dimensions_agree_with_the_formula() {
        let op = Col2Im {
            strides: vec![2, 1],
            pads: vec![1, 0, 0, 2],
            dilations: vec![1, 2],
            ..plain(&[5, 6], &[3, 2])
        };
        for dtype in [DType::F16, DType::F32, DType::I32] {
            check(op.clone(), &[sample(dtype, &[2, 12, 12], 1)]);
        }
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |op: Col2Im, x: &TensorType| op.infer(&[x]).unwrap_err().constraint;
        assert_eq!(violated(Col2Im { strides: vec![0], ..plain(&[4], &[2]) }, &f32(&[1, 2, 3])), "C1");
        assert_eq!(violated(plain(&[4], &[2]), &f32(&[1, 2, 2])), "C2");
        assert_eq!(violated(plain(&[4], &[2]), &f32(&[1, 3, 3])), "C3");
        assert_eq!(violated(plain(&[4, 4], &[2]), &f32(&[1, 2, 3])), "C4");
    }
}
