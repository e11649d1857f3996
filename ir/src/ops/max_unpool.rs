//! `max_unpool`: the elements of a pooled image put back where its largest elements were.

use super::movement::late_count;
use super::{Gather, Gradients, Lowered, MaxPoolIndices, OpDef, Pool, PoolKind, Vjp, VjpCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::Value;
use crate::loops::{Guard, Index, NestBuilder, Reduction};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType};

/// An image `[N, C, spatial..]` of zeros to which each element of `x` `[N, C, windows..]` is added at the
/// position that `indices` has for it, as [`MaxPoolIndices`] gives it; -1 is nowhere. This is the gradient
/// of max pooling, and where windows do not overlap, its partial inverse.
///
/// - (C1) `x` is a number of rank 2 or more, and the indices are i64 of its shape;
/// - (C2) max pooling of the image gives the shape of `x`;
/// - (C3) the image has a known number of sizes, none negative.
///
/// A position outside of its window is an error of evaluation; lowered code leaves the element out.
/// No ONNX operator: `MaxUnpool` overwrites where windows overlap.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxUnpool {
    /// The windows.
    pub pool: Pool,
    /// The spatial shape of the image.
    pub image: Late,
}

impl MaxUnpool {
    fn image_dims(&self, x: &TensorType, image: &[i64]) -> Result<Vec<Dim>, Violation> {
        require!(image.iter().all(|&n| (0..1 << 31).contains(&n)), "C3", "an image has no sizes {image:?}");
        let spatial = image.iter().map(|&n| Dim::Fixed(n as usize));
        Ok(x.dims[..2].iter().cloned().chain(spatial).collect())
    }

    /// How many windows an element of the image may lie in along a dimension.
    fn overlap(&self, d: usize) -> usize {
        let of = |list: &[i64]| list.get(d).copied().unwrap_or(1);
        let reach = (self.pool.kernel[d] - 1) * of(&self.pool.dilations) + 1;
        (reach as usize).div_ceil(of(&self.pool.strides) as usize)
    }
}

impl OpDef for MaxUnpool {
    const NAMES: &'static [&'static str] = &["max_unpool"];

    fn with_name(_: &str) -> MaxUnpool {
        MaxUnpool { pool: Pool::plain(PoolKind::Max, &[]), image: Late::default() }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("image_shape", Slot::Late(&mut self.image))?;
        codec.attr("kernel_shape", Slot::Ints(&mut self.pool.kernel))?;
        codec.attr("strides", Slot::Ints(&mut self.pool.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pool.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.pool.dilations))?;
        codec.attr("ceil_mode", Slot::Bool(&mut self.pool.ceil_mode))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=3)?;
        let (x, indices) = (ins[0], ins[1]);
        let fits = x.rank() >= 2
            && x.dtype != DType::Bool
            && indices.dtype == DType::I64
            && indices.rank() == x.rank()
            && indices.dims.iter().zip(&x.dims).all(|(a, b)| a.may_equal(b));
        require!(fits, "C1", "{indices} are not the positions of {x}");
        let Some(image) = self.image.as_known() else {
            let count = late_count(&self.image, ins);
            require!(count == Some(x.rank() - 2), "C3", "the image does not have the rank of {x}");
            let dims = x.dims[..2].iter().cloned().chain(std::iter::repeat_n(Dim::Unknown, x.rank() - 2));
            return Ok(vec![TensorType::new(x.dtype, dims)]);
        };
        let image = TensorType::new(x.dtype, self.image_dims(x, image)?);
        let pooled = self.pool.result_dims(&image)?;
        let fits = pooled.len() == x.rank() && pooled.iter().zip(&x.dims).all(|(a, b)| a.may_equal(b));
        require!(fits, "C2", "{x} is not {image} pooled");
        Ok(vec![image])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, indices) = (&ins[0], ins[1].to_ints());
        let types = [x.ty(), ins[1].ty()];
        let out = self.infer(&[&types[0], &types[1]]).map_err(|v| v.to_string())?.remove(0);
        let plane: usize = out.shape()[2..].iter().product();
        let window: usize = x.shape()[2..].iter().product();
        let place = |(i, &index): (usize, &i64)| match usize::try_from(index) {
            Ok(at) if at.checked_div(plane) == Some(i / window) => Ok(Some(at)),
            _ if index == -1 => Ok(None),
            _ => Err(format!("position {index} is outside its plane of {plane}")),
        };
        let places = indices.iter().enumerate().map(place).collect::<Result<Vec<_>, String>>()?;
        let each = || places.iter().enumerate().filter_map(|(i, at)| Some((i, (*at)?)));
        if x.dtype().is_float() {
            let mut image = vec![0.0; out.shape().iter().product()];
            let values = x.to_f64s();
            each().for_each(|(i, at)| image[at] += values[i]);
            return Ok(vec![Tensor::from_f64s(x.dtype(), &out.shape(), &image)]);
        }
        let mut image = vec![0i128; out.shape().iter().product()];
        let values = x.to_i128s();
        each().for_each(|(i, at)| image[at] += values[i]);
        Ok(vec![Tensor::from_i128s(x.dtype(), &out.shape(), &image)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        // Element after element of the flat image, where there is a position.
        let (g, indices) = (cx.dout(0), cx.ins[1]);
        let count: usize = cx.shape(g).iter().product();
        let flat = cx.reshape(g, &[count])?;
        let zero = cx.builder.constant(Tensor::new(&[], &[0i64]));
        let somewhere = cx.map(ScalarFn::Ge, &[indices, zero])?;
        let inside = cx.map(ScalarFn::Max, &[indices, zero])?;
        let taken = cx.push(Gather { axis: 0 }, &[flat, inside])?;
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[0] = Some(cx.masked(somewhere, taken)?);
        Ok(Vjp::Gradients(gradients))
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, image, dtype) = (ins[0].shape(), outs[0].shape(), ins[0].dtype);
        let mut n = NestBuilder::new(&image);
        let operands = [n.operand(dtype, &x), n.operand(DType::I64, &x)];
        let at = n.domain();
        let here = n.index_value(&Index::flatten(&at, &image));
        let extents: Shape = (0..image.len() - 2).map(|d| self.overlap(d)).collect();
        let of = |list: &[i64], d: usize, least: i64| list.get(d).copied().unwrap_or(least);
        let sum = n.reduce(Reduction::Sum, &extents, |n, back| {
            // The last window that starts at the element or before it, and those before that one.
            let (mut index, mut guards) = (vec![at[0].clone(), at[1].clone()], Vec::new());
            for (d, back) in back.iter().enumerate() {
                let start = at[d + 2].add_const(of(&self.pool.pads, d, 0));
                let window = start.div(of(&self.pool.strides, d, 1)).sub(back);
                guards.push(Guard::new(window.clone(), x[d + 2]));
                index.push(window);
            }
            let [value, place] = operands.map(|operand| n.load_guarded(operand, &index, &guards));
            let inside = n.inside(&guards);
            let mut hit = n.apply(ScalarFn::Eq, &[place, here]);
            hit = n.apply(ScalarFn::And, &[hit, inside]);
            let value = n.cast(value, dtype.accumulator());
            let zero = n.constant(dtype.accumulator(), 0.0);
            n.apply(ScalarFn::Select, &[hit, value, zero])
        });
        let result = n.cast(sum, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

/// The gradient of max pooling of `x` `[N, C, spatial..]`, given that of its result.
pub(super) fn pool_gradient(cx: &mut VjpCx<'_>, pool: &Pool, x: Value, g: Value) -> Result<Value, Error> {
    let image: Vec<i64> = cx.shape(x)[2..].iter().map(|&n| n as i64).collect();
    let pool = Pool { channels_last: false, ..pool.clone() };
    let indices = cx.push(MaxPoolIndices { pool: pool.clone(), storage_order: false }, &[x])?;
    cx.push(MaxUnpool { pool, image: image.into() }, &[g, indices])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn elements_return_to_where_the_largest_were() {
        let pool = Pool::plain(PoolKind::Max, &[2, 2]);
        let x = Tensor::new(&[1, 1, 1, 2], &[3f32, 4.]);
        let indices = Tensor::new(&[1, 1, 1, 2], &[1i64, 5]);
        let op = MaxUnpool { pool, image: vec![2, 3].into() };
        // Windows overlap by a column.
        assert_eq!(check(op, &[x, indices])[0].to_f64s(), [0., 3., 0., 0., 0., 4.]);
    }

    #[test]
    fn elements_that_share_a_place_are_added() {
        let pool = Pool { strides: vec![1], pads: vec![1, 0], ..Pool::plain(PoolKind::Max, &[2]) };
        let x = Tensor::new(&[1, 1, 3], &[1f32, 2., 4.]);
        let indices = Tensor::new(&[1, 1, 3], &[-1i64, 1, 1]);
        let op = MaxUnpool { pool, image: vec![3].into() };
        assert_eq!(check(op.clone(), &[x.clone(), indices])[0].to_f64s(), [0., 6., 0.]);
        assert!(op.eval(&[x, Tensor::new(&[1, 1, 3], &[0i64, 1, 3])]).is_err());
    }
}
