//! `deform_conv` by smaller ops, which have gradients: taps gathered, then a product with the weights.

use super::grid_sample::Place;
use super::grid_sample_vjp::Gathers;
use super::points::points;
use super::vjp::VjpCx;
use super::window::Window;
use super::{DeformConv, MatMul, Slice};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Value;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::Shape;

impl DeformConv {
    /// The result, of operands that are not empty.
    pub(super) fn as_gathers(&self, cx: &mut VjpCx<'_>, window: &Window) -> Result<Value, Error> {
        let (bias, mask, _) = self.places();
        let (x, w, result) = (cx.shape(cx.ins[0]), cx.shape(cx.ins[1]), cx.shape(cx.outs[0]));
        let (spatial, kernel, out) = (&x[2..], &w[2..], &result[2..]);
        let (taps, area): (usize, usize) = (kernel.iter().product(), out.iter().product());
        let (groups, offset_groups) = (self.group as usize, self.offset_group as usize);
        let dtype = cx.dtype(cx.ins[0]);
        let wide = dtype.accumulator();
        // Where each tap of each result is without an offset: [D, taps, area].
        let mut fixed = Vec::new();
        for d in 0..spatial.len() {
            for tap in points(kernel) {
                let place = |at: Shape| at[d] * window.strides[d] + tap[d] * window.dilations[d];
                fixed.extend(points(out).map(|at| place(at) as f64 - window.begin[d] as f64));
            }
        }
        let fixed = Tensor::from_f64s(wide, &[spatial.len(), taps, area], &fixed);
        let fixed = cx.builder.constant(fixed);
        let moved = cx.builder.cast(cx.ins[2], wide)?;
        let moved = cx.reshape(moved, &[x[0], offset_groups, taps, spatial.len(), area])?;
        let mut along = Vec::new();
        for (d, &size) in spatial.iter().enumerate() {
            let d = d as i64;
            let moved = cx.push(Slice::along(3, d, d + 1), &[moved])?;
            let moved = cx.reshape(moved, &[x[0], offset_groups, 1, taps, area])?;
            let fixed = cx.push(Slice::along(0, d, d + 1), &[fixed])?;
            let place = cx.map(ScalarFn::Add, &[moved, fixed])?;
            let place = cx.reshape(place, &[x[0], offset_groups, 1, taps * area])?;
            along.push(sides(cx, place, size)?);
        }
        let own = x[1] / offset_groups;
        let elements = cx.builder.cast(cx.ins[0], wide)?;
        let elements = cx.reshape(elements, &[x[0], offset_groups, own, spatial.iter().product()])?;
        let gathered = Shape::from_slice(&[x[0], offset_groups, own, taps * area]);
        let mut columns = Gathers { spatial, taps: along, elements, gathered }.sum(cx)?;
        if let Some(mask) = mask {
            let mask = cx.builder.cast(cx.ins[mask], wide)?;
            let mask = cx.reshape(mask, &[x[0], offset_groups, 1, taps * area])?;
            columns = cx.map(ScalarFn::Mul, &[columns, mask])?;
        }
        let columns = cx.reshape(columns, &[x[0], groups, w[1] * taps, area])?;
        let weights = cx.builder.cast(cx.ins[1], wide)?;
        let weights = cx.reshape(weights, &[1, groups, w[0] / groups, w[1] * taps])?;
        let product = cx.push(MatMul::default(), &[weights, columns])?;
        let mut sum = cx.reshape(product, &result)?;
        if let Some(bias) = bias {
            let bias = cx.builder.cast(cx.ins[bias], wide)?;
            let bias = cx.per_channel(bias, 1, result.len())?;
            sum = cx.map(ScalarFn::Add, &[sum, bias])?;
        }
        cx.builder.cast(sum, dtype)
    }
}

/// The two elements around places along a dimension.
fn sides(cx: &mut VjpCx<'_>, place: Value, size: usize) -> Result<Vec<Place<Value>>, Error> {
    let low = cx.map(ScalarFn::Floor, &[place])?;
    let after = cx.map(ScalarFn::Sub, &[place, low])?;
    let one = cx.builder.scalar_like(place, 1.0);
    let before = cx.map(ScalarFn::Sub, &[one, after])?;
    let high = cx.map(ScalarFn::Add, &[low, one])?;
    let mut sides = Vec::new();
    for (at, weight) in [(low, before), (high, after)] {
        let first = cx.with_constant(ScalarFn::Ge, at, 0.0)?;
        let last = cx.with_constant(ScalarFn::Lt, at, size as f64)?;
        let inside = Some(cx.map(ScalarFn::And, &[first, last])?);
        sides.push(Place { weight: Some(weight), at: cx.map(ScalarFn::Cast(DType::I64), &[at])?, inside });
    }
    Ok(sides)
}
