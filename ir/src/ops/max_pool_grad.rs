//! `max_pool_grad`: what flows back into the windows of max pooling goes to their largest elements.

use super::conv::Layout;
use super::window::Window;
use super::{
    Gather, Gradients, Lowered, MaxPoolIndices, OpDef, Pool, PoolKind, Transpose, Vjp, VjpCx, Vmap, VmapCx,
    arity,
};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::loops::{Guard, Index, NestBuilder, Reduction, Val};
use crate::ops::conv_vjp::{channels_first, channels_last};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Shape, TensorType, strides};

/// For `x` `[N, C, spatial..]`, its max pooling `y` and a gradient `g` of that, the gradient of `x`: each element of
/// `g` is added to the first element of its window that equals the one of `y` or is NaN; 0 elsewhere.
/// With `channels_last`, channels are the last dimension of all.
///
/// - (C1), (C2) of [`Pool`];
/// - (C3) the operands are floats of one type, `y` and `g` of the shape that pooling gives.
///
/// No ONNX operator. XLA: `SelectAndScatter`.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPoolGrad {
    /// The windows.
    pub pool: Pool,
}

impl MaxPoolGrad {
    fn window(&self, spatial: usize) -> Result<Window, Violation> {
        Window::new(spatial, &self.pool.strides, &self.pool.pads, &self.pool.dilations)
    }
}

impl OpDef for MaxPoolGrad {
    const NAMES: &'static [&'static str] = &["max_pool_grad"];

    fn with_name(_: &str) -> MaxPoolGrad {
        MaxPoolGrad { pool: Pool::plain(PoolKind::Max, &[]) }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("kernel_shape", Slot::Ints(&mut self.pool.kernel))?;
        codec.attr("strides", Slot::Ints(&mut self.pool.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pool.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.pool.dilations))?;
        codec.attr("ceil_mode", Slot::Bool(&mut self.pool.ceil_mode))?;
        codec.attr("channels_last", Slot::Bool(&mut self.pool.channels_last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 3..=3)?;
        let (x, y, g) = (ins[0], ins[1], ins[2]);
        let floats = x.dtype.is_float() && y.dtype == x.dtype && g.dtype == x.dtype;
        require!(floats, "C3", "{x}, {y} and {g} are not of one float type");
        let pooled = self.pool.result_dims(x)?;
        for ty in [y, g] {
            let fits = ty.rank() == pooled.len() && ty.dims.iter().zip(&pooled).all(|(a, b)| a.may_equal(b));
            require!(fits, "C3", "{ty} is not {x} pooled");
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, y, g) = (&ins[0], &ins[1], &ins[2]);
        let [values, best, flows] = [x, y, g].map(Tensor::to_f64s);
        let layout = Layout::new(x.rank(), self.pool.channels_last);
        let window = self.window(layout.spatial.len()).map_err(|v| v.to_string())?;
        let steps = strides(x.shape());
        let spatial = &x.shape()[layout.spatial.clone()];
        let mut image = vec![0.0; values.len()];
        for (i, out) in points(y.shape()).enumerate() {
            let base = out[0] * steps[0] + out[layout.channels] * steps[layout.channels];
            let first = points(&self.pool.kernel()).find_map(|tap| {
                let source = window.source(&out[layout.spatial.clone()], &tap, spatial)?;
                let at = base + position(&source, &steps[layout.spatial.clone()]);
                (values[at] == best[i] || values[at].is_nan()).then_some(at)
            });
            if let Some(at) = first {
                image[at] += flows[i];
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &image)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        // What flows back is taken from where the largest elements are, by their flat positions.
        let (x, rank) = (cx.ins[0], cx.shape(cx.ins[0]).len());
        let flow = cx.dout(0);
        let (mut first, mut flow) = (x, flow);
        if self.pool.channels_last {
            first = cx.push(Transpose::by(&channels_first(rank)), &[first])?;
            flow = cx.push(Transpose::by(&channels_first(rank)), &[flow])?;
        }
        let pool = Pool { channels_last: false, ..self.pool.clone() };
        let indices = cx.push(MaxPoolIndices { pool, storage_order: false }, &[first])?;
        let count: usize = cx.shape(flow).iter().product();
        let flat = cx.reshape(flow, &[count])?;
        let zero = cx.builder.constant(Tensor::scalar(0i64));
        let somewhere = cx.map(ScalarFn::Ge, &[indices, zero])?;
        let inside = cx.map(ScalarFn::Max, &[indices, zero])?;
        let taken = cx.push(Gather { axis: 0 }, &[flat, inside])?;
        let mut taken = cx.masked(somewhere, taken)?;
        if self.pool.channels_last {
            taken = cx.push(Transpose::by(&channels_last(rank)), &[taken])?;
        }
        Ok(Vjp::Gradients(Gradients::from_iter([None, None, Some(taken)])))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0); 3], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, pooled, dtype) = (ins[0].shape(), ins[1].shape(), ins[0].dtype);
        let layout = Layout::new(x.len(), self.pool.channels_last);
        let spatial = layout.spatial.clone();
        let window = self.window(spatial.len()).expect("infer accepted the window");
        let (image, kernel) = (&x[spatial.clone()], self.pool.kernel());
        let mut n = NestBuilder::new(&outs[0].shape());
        let [op_x, op_y, op_g] =
            [(&x, 0), (&pooled, 1), (&pooled, 2)].map(|(shape, _)| n.operand(dtype, shape));
        let at = n.domain();
        let own = n.load(op_x, &at);
        // How many windows an element may lie in.
        let overlap = |d: usize| ((kernel[d] - 1) * window.dilations[d] + 1).div_ceil(window.strides[d]);
        let extents: Shape = (0..image.len()).map(overlap).collect();
        let matches = |n: &mut NestBuilder, value: Val, best: Val| {
            let (equal, nan) = (n.apply(ScalarFn::Eq, &[value, best]), n.apply(ScalarFn::IsNan, &[value]));
            n.apply(ScalarFn::Or, &[equal, nan])
        };
        let sum = n.reduce(Reduction::Sum, &extents, |n, back| {
            // The last window that starts at the element or before it, and those before that one.
            let (mut place, mut tap, mut guards) = (Vec::new(), Vec::new(), Vec::new());
            for (d, back) in back.iter().enumerate() {
                let (stride, dilation) = (window.strides[d] as i64, window.dilations[d] as i64);
                let start = at[spatial.start + d].add_const(window.begin[d] as i64);
                let along = start.rem(stride).add(&back.mul(stride));
                place.push(start.div(stride).sub(back));
                guards.push(Guard::new(place[d].clone(), pooled[spatial.start + d]));
                tap.push(along.div(dilation));
                guards.push(Guard::new(tap[d].clone(), kernel[d]));
                if dilation > 1 {
                    guards.push(Guard::new(along.rem(dilation), 1));
                }
            }
            let index = layout.assemble(at[0].clone(), at[layout.channels].clone(), place.clone());
            let (best, flow) = (n.load_guarded(op_y, &index, &guards), n.load_guarded(op_g, &index, &guards));
            let inside = n.inside(&guards);
            let hit = matches(n, own, best);
            let mut hit = n.apply(ScalarFn::And, &[hit, inside]);
            if kernel.iter().product::<usize>() > 1 {
                // Whether an element of the window before this one is the largest too.
                let number = n.index_value(&Index::flatten(&tap, &kernel));
                let earlier = n.reduce(Reduction::Max, &kernel, |n, other| {
                    let (source, guards) = window.index(&place, other, image);
                    let index = layout.assemble(at[0].clone(), at[layout.channels].clone(), source);
                    let value = n.load_guarded(op_x, &index, &guards);
                    let found = matches(n, value, best);
                    let inside = n.inside(&guards);
                    let other = n.index_value(&Index::flatten(other, &kernel));
                    let before = n.apply(ScalarFn::Lt, &[other, number]);
                    let counts = n.apply(ScalarFn::And, &[before, inside]);
                    let found = n.apply(ScalarFn::And, &[found, counts]);
                    let (one, zero) = (n.constant(dtype, 1.0), n.constant(dtype, 0.0));
                    n.apply(ScalarFn::Select, &[found, one, zero])
                });
                let zero = n.constant(dtype, 0.0);
                let first = n.apply(ScalarFn::Le, &[earlier, zero]);
                hit = n.apply(ScalarFn::And, &[hit, first]);
            }
            let flow = n.cast(flow, dtype.accumulator());
            let zero = n.constant(dtype.accumulator(), 0.0);
            n.apply(ScalarFn::Select, &[hit, flow, zero])
        });
        let result = n.cast(sum, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn the_first_of_equal_elements_gets_what_flows_back() {
        let x = Tensor::new(&[1, 1, 2, 4], &[0f32, 3., 5., 5., 3., 0., 5., 0.]);
        let y = Tensor::new(&[1, 1, 1, 2], &[3f32, 5.]);
        let g = Tensor::new(&[1, 1, 1, 2], &[1f32, 2.]);
        let pool = Pool { strides: vec![2, 2], ..Pool::plain(PoolKind::Max, &[2, 2]) };
        let found = check(MaxPoolGrad { pool }, &[x, y, g]);
        assert_eq!(found[0].to_f64s(), [0., 1., 2., 0., 0., 0., 0., 0.]);
    }

    #[test]
    fn windows_that_overlap_add_up() {
        let x = Tensor::new(&[1, 3, 1], &[1f32, 4., 2.]);
        let y = Tensor::new(&[1, 3, 1], &[4f32, 4., 4.]);
        let g = Tensor::new(&[1, 3, 1], &[1f32, 2., 4.]);
        let pool = Pool { pads: vec![1, 1], channels_last: true, ..Pool::plain(PoolKind::Max, &[3]) };
        assert_eq!(check(MaxPoolGrad { pool }, &[x, y, g])[0].to_f64s(), [0., 7., 0.]);
    }
}
