//! `conv`: convolution over any number of spatial dimensions, grouped, strided and dilated.

use super::conv_vjp::{Geometry, channels_first, channels_last};
use super::vmap;
use super::window::Window;
use super::{Gradients, Lowered, OpDef, Pad, PadMode, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder, Reduction};
use crate::ops::movement::{around, position};
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Dims, Shape, TensorType, strides};

/// Convolution (cross-correlation) of `x` `[N, C, spatial..]` with `w` `[M, C/group, kernel..]` and an
/// optional bias `[M]`; the result is `[N, M, spatial..]`.
///
/// With `channels_last`, `x` is `[N, spatial.., C]`, `w` is `[kernel.., C/group, M]` and the result is
/// `[N, spatial.., M]`. Each element is accumulated over the kernel's dimensions, then over the
/// channels of its group; f16 and bf16 in f32, rounded once after the bias.
///
/// - (C1) strides, pads and dilations are empty or have an entry (pads: two) a spatial dimension;
///   strides and dilations are at least 1, pads at least 0;
/// - (C2) the dilated kernel is not empty and fits the padded operand;
/// - (C3) operands are of one numeric type, `x` and `w` of one rank, at least 2;
/// - (C4) the group divides M, and `w` has 1/group of the channels of `x`;
/// - (C5) the bias has M elements.
///
/// ONNX: `Conv` (1..), whose `auto_pad` and `kernel_shape` its importer resolves.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// The step of the window along each spatial dimension; empty means 1.
    pub strides: Vec<i64>,
    /// Zeros before each spatial dimension, then after each; empty means none.
    pub pads: Vec<i64>,
    /// The distance between neighbouring taps; empty means 1.
    pub dilations: Vec<i64>,
    /// Channels are split into this many groups that do not mix.
    pub group: i64,
    /// Whether the channels are the last dimension.
    pub channels_last: bool,
}

/// Where the dimensions of the operands are.
pub(crate) struct Layout {
    pub channels: usize,
    pub spatial: std::ops::Range<usize>,
    /// Of the weight: output channels, channels of a group, kernel.
    pub w_out: usize,
    pub w_in: usize,
    pub kernel: std::ops::Range<usize>,
}

impl Layout {
    pub fn new(rank: usize, channels_last: bool) -> Layout {
        match channels_last {
            false => Layout { channels: 1, spatial: 2..rank, w_out: 0, w_in: 1, kernel: 2..rank },
            true => Layout {
                channels: rank - 1,
                spatial: 1..rank - 1,
                w_out: rank - 1,
                w_in: rank - 2,
                kernel: 0..rank - 2,
            },
        }
    }

    /// Dimensions of `x` or the result, in this layout.
    pub fn assemble<T: Clone>(&self, batch: T, channels: T, spatial: impl IntoIterator<Item = T>) -> Vec<T> {
        let mut dims = vec![batch];
        if self.channels == 1 {
            dims.push(channels.clone());
        }
        dims.extend(spatial);
        if self.channels != 1 || dims.len() == 1 {
            dims.push(channels);
        }
        dims
    }
}

impl Conv {
    /// Without padding, strides, dilation or groups.
    pub fn plain() -> Conv {
        Conv { strides: Vec::new(), pads: Vec::new(), dilations: Vec::new(), group: 1, channels_last: false }
    }

    pub(crate) fn window(&self, spatial: usize) -> Result<Window, Violation> {
        Window::new(spatial, &self.strides, &self.pads, &self.dilations)
    }
}

impl OpDef for Conv {
    const NAMES: &'static [&'static str] = &["conv"];

    fn with_name(_: &str) -> Conv {
        Conv::plain()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("strides", Slot::Ints(&mut self.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.dilations))?;
        codec.attr("group", Slot::Int(&mut self.group))?;
        codec.attr("channels_last", Slot::Bool(&mut self.channels_last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=3)?;
        let (x, w) = (ins[0], ins[1]);
        let one_type = ins.iter().all(|t| t.dtype == x.dtype) && x.dtype != DType::Bool;
        require!(one_type, "C3", "{x} and {w} are not of one numeric type");
        require!(
            x.rank() >= 2 && x.rank() == w.rank(),
            "C3",
            "{x} and {w} do not have one rank of 2 or more"
        );
        let layout = Layout::new(x.rank(), self.channels_last);
        let window = self.window(layout.spatial.len())?;
        let (out_channels, group_channels) = (&w.dims[layout.w_out], &w.dims[layout.w_in]);
        let group = usize::try_from(self.group).unwrap_or(0);
        let divides = |n: usize| group > 0 && n.is_multiple_of(group);
        require!(divides(0), "C4", "group is {}", self.group);
        if let Dim::Fixed(m) = out_channels {
            require!(divides(*m), "C4", "group {group} does not divide the {m} output channels of {w}");
        }
        if let (Dim::Fixed(c), Dim::Fixed(k)) = (&x.dims[layout.channels], group_channels) {
            let fits = k.checked_mul(group) == Some(*c);
            require!(fits, "C4", "{x} has {c} channels, {w} takes {group} groups of {k}");
        }
        if let Some(bias) = ins.get(2) {
            let fits = bias.rank() == 1 && bias.dims[0].may_equal(out_channels);
            require!(fits, "C5", "the bias {bias} does not have {out_channels} elements");
        }
        let mut spatial: Dims = Dims::new();
        for (d, (input, kernel)) in
            x.dims[layout.spatial.clone()].iter().zip(&w.dims[layout.kernel.clone()]).enumerate()
        {
            spatial.push(window.output_dim(d, input, kernel, false)?);
        }
        let dims = layout.assemble(x.dims[0].clone(), out_channels.clone(), spatial);
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
        let out = self.infer(&types.iter().collect::<Vec<_>>()).map_err(|v| v.to_string())?.remove(0);
        let (dtype, shape) = (out.dtype, out.shape());
        if dtype.is_float() {
            let bias = ins.get(2).map(Tensor::to_f64s);
            let sums = self.sums(
                (&ins[0], &ins[0].to_f64s()),
                (&ins[1], &ins[1].to_f64s()),
                &shape,
                |m| bias.as_ref().map_or(0.0, |b| b[m]),
                |acc, x, w| acc + x * w,
            );
            return Ok(vec![Tensor::from_f64s(dtype, &shape, &sums)]);
        }
        let bias = ins.get(2).map(Tensor::to_i128s);
        let sums = self.sums(
            (&ins[0], &ins[0].to_i128s()),
            (&ins[1], &ins[1].to_i128s()),
            &shape,
            |m| bias.as_ref().map_or(0, |b| b[m]),
            |acc: i128, x, w| acc.wrapping_add(x.wrapping_mul(w)),
        );
        Ok(vec![Tensor::from_i128s(dtype, &shape, &sums)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, w, g) = (cx.ins[0], cx.ins[1], cx.dout(0));
        let (image, kernel) = (cx.shape(x), cx.shape(w));
        let rank = image.len();
        let layout = Layout::new(rank, self.channels_last);
        let geometry = Geometry {
            strides: &self.strides,
            pads: &self.pads,
            dilations: &self.dilations,
            group: self.group,
            image: &image[layout.spatial.clone()],
            kernel: &kernel[layout.kernel.clone()],
        };
        let same: Vec<usize> = (0..rank).collect();
        let (to_first, to_last) = match self.channels_last {
            true => (channels_first(rank), same.clone()),
            false => (same.clone(), channels_last(rank)),
        };
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        if cx.wanted[0] {
            let first = cx.transpose(g, &to_first)?;
            let perm: Vec<usize> =
                [layout.w_out, layout.w_in].into_iter().chain(layout.kernel.clone()).collect();
            let w = cx.transpose(w, &perm)?;
            let dx = geometry.image_gradient(cx, first, w)?;
            let back = if self.channels_last { channels_last(rank) } else { same };
            gradients[0] = Some(cx.transpose(dx, &back)?);
        }
        if cx.wanted[1] {
            let (x, g) = (cx.transpose(x, &to_last)?, cx.transpose(g, &to_last)?);
            let dw = geometry.weight_gradient(cx, x, g)?;
            // From [kernel.., C/group, M].
            let back: Vec<usize> = match self.channels_last {
                true => (0..rank).collect(),
                false => [rank - 1, rank - 2].into_iter().chain(0..rank - 2).collect(),
            };
            gradients[1] = Some(cx.transpose(dw, &back)?);
        }
        if cx.wanted.get(2).copied().unwrap_or(false) {
            gradients[2] = Some(cx.sum_beside(g, layout.channels)?);
        }
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if !cx.batched[1..].contains(&true) {
            return cx.merged(self.clone(), &[Some(0), None, None][..cx.ins.len()], &[0]);
        }
        // Weights of every example's own are those of more groups.
        let layout = Layout::new(cx.rank(0), self.channels_last);
        let (x, w) = (cx.with_batch(0)?, cx.with_batch(1)?);
        let mut ins = vec![cx.merge(x, layout.channels)?, cx.merge(w, layout.w_out)?];
        if cx.ins.len() > 2 {
            let bias = cx.with_batch(2)?;
            ins.push(cx.merge(bias, 0)?);
        }
        let group = self.group * cx.batch as i64;
        let y = cx.builder.push1(Conv { group, ..self.clone() }, &ins)?;
        vmap::one(cx.split(y, layout.channels)?)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        if self.pads.iter().any(|&p| p != 0) {
            return Lowered::graph(ins, |b, ins| self.over_padded(b, ins));
        }
        let (x, w) = (ins[0].shape(), ins[1].shape());
        let dtype = ins[0].dtype;
        let layout = Layout::new(x.len(), self.channels_last);
        let window = self.window(layout.spatial.len()).expect("infer accepted the window");
        let mut n = NestBuilder::new(&outs[0].shape());
        let (op_x, op_w) = (n.operand(dtype, &x), n.operand(dtype, &w));
        let op_bias = ins.get(2).map(|bias| n.operand(dtype, &bias.shape()));
        let at = n.domain();
        let channel = at[layout.channels].clone();
        let group_out = w[layout.w_out] / self.group as usize;
        let first_channel = match self.group {
            1 => Index::constant(0),
            _ => channel.div(group_out.max(1) as i64).mul(w[layout.w_in] as i64),
        };
        let mut extents: Vec<usize> = w[layout.kernel.clone()].to_vec();
        extents.push(w[layout.w_in]);
        let mut result = n.reduce(Reduction::Sum, &extents, |n, k| {
            let (group_channel, tap) = k.split_last().expect("the channels are there");
            let (spatial, guards) =
                window.index(&at[layout.spatial.clone()], tap, &x[layout.spatial.clone()]);
            let index = layout.assemble(at[0].clone(), first_channel.add(group_channel), spatial);
            let x = n.load_guarded(op_x, &index, &guards);
            let mut index = vec![Index::constant(0); w.len()];
            index[layout.w_out] = channel.clone();
            index[layout.w_in] = group_channel.clone();
            index[layout.kernel.clone()].clone_from_slice(tap);
            let w = n.load(op_w, &index);
            let (x, w) = (n.cast(x, dtype.accumulator()), n.cast(w, dtype.accumulator()));
            n.apply(ScalarFn::Mul, &[x, w])
        });
        if let Some(bias) = op_bias {
            let bias = n.load(bias, std::slice::from_ref(&channel));
            let bias = n.cast(bias, dtype.accumulator());
            result = n.apply(ScalarFn::Add, &[result, bias]);
        }
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl Conv {
    /// The padding as an op of its own, so that the loops of the convolution have no conditions.
    fn over_padded(&self, b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
        let layout = Layout::new(b.ty(ins[0]).rank(), self.channels_last);
        let axes: Vec<i64> = layout.spatial.map(|d| d as i64).collect();
        let pad = Pad { pads: self.pads.clone().into(), axes: axes.into(), mode: PadMode::Constant };
        let zero = b.scalar_like(ins[0], 0.0);
        let padded = b.push1(pad, &[ins[0], zero])?;
        let conv = Conv { pads: Vec::new(), ..self.clone() };
        let operands: Values = std::iter::once(padded).chain(ins[1..].iter().copied()).collect();
        Ok(Values::from_slice(&[b.push1(conv, &operands)?]))
    }

    /// The sums of products plus `start(output channel)`, in any arithmetic.
    fn sums<T: Copy>(
        &self,
        (x, xs): (&Tensor, &[T]),
        (w, ws): (&Tensor, &[T]),
        out: &[usize],
        start: impl Fn(usize) -> T,
        mul_add: impl Fn(T, T, T) -> T,
    ) -> Vec<T> {
        let layout = Layout::new(x.rank(), self.channels_last);
        let window = self.window(layout.spatial.len()).expect("infer accepted the window");
        let (x_strides, w_strides, out_strides) = (strides(x.shape()), strides(w.shape()), strides(out));
        let spatial = |shape: &[usize]| -> Shape { shape[layout.spatial.clone()].into() };
        let (_, _, after) = around(out, layout.channels);
        let channels = out[layout.channels];
        let mut acc: Vec<T> = (0..out.iter().product()).map(|i: usize| start(i / after % channels)).collect();
        let (group_out, group_in) = (channels / self.group as usize, w.shape()[layout.w_in]);
        for tap in points(&w.shape()[layout.kernel.clone()]) {
            let pairs = window.pairs(
                &tap,
                (&spatial(out), &spatial(&out_strides)),
                (&spatial(x.shape()), &spatial(&x_strides)),
            );
            let w_tap = position(&tap, &w_strides[layout.kernel.clone()]);
            for at in points(&[out[0], channels, group_in]) {
                let (batch, m, k) = (at[0], at[1], at[2]);
                let weight = ws[w_tap + m * w_strides[layout.w_out] + k * w_strides[layout.w_in]];
                let from = batch * x_strides[0] + (m / group_out * group_in + k) * x_strides[layout.channels];
                let to = batch * out_strides[0] + m * out_strides[layout.channels];
                for &(o, i) in &pairs {
                    acc[to + o] = mul_add(acc[to + o], xs[from + i], weight);
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

    fn ints(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_i128s(DType::F32, shape, &values.iter().map(|&v| i128::from(v)).collect::<Vec<_>>())
    }

    #[test]
    fn a_padded_sum_of_neighbours() {
        let x = ints(&[1, 1, 3, 3], &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let w = ints(&[1, 1, 3, 3], &[1; 9]);
        let conv = Conv { pads: vec![1; 4], ..Conv::plain() };
        let y = check(conv, &[x, w]);
        assert_eq!(y[0].to_f64s(), [8., 15., 12., 21., 36., 27., 20., 33., 24.]);
    }

    #[test]
    fn groups_strides_dilations_and_bias_agree_with_the_formula() {
        for (group, channels_last) in [(1, false), (2, false), (4, false), (1, true), (2, true), (4, true)] {
            let conv = Conv {
                strides: vec![2, 1],
                pads: vec![1, 0, 2, 3],
                dilations: vec![1, 2],
                group,
                channels_last,
            };
            let k = 4 / group as usize;
            let (x, w) = match channels_last {
                false => ([2, 4, 7, 6], [8, k, 3, 2]),
                true => ([2, 7, 6, 4], [3, 2, k, 8]),
            };
            for dtype in [DType::F32, DType::F64, DType::F16, DType::I32] {
                let ins = [sample(dtype, &x, 1), sample(dtype, &w, 2), sample(dtype, &[8], 3)];
                check(conv.clone(), &ins);
            }
        }
    }

    #[test]
    fn layouts_agree() {
        let (x, w) = (sample(DType::F64, &[1, 4, 5], 1), sample(DType::F64, &[6, 2, 3], 2));
        let conv = Conv { group: 2, ..Conv::plain() };
        let first = check(conv.clone(), &[x.clone(), w.clone()]).remove(0);
        let move_axis = |t: &Tensor, perm: &[usize]| {
            crate::ops::Transpose::by(perm).eval(std::slice::from_ref(t)).unwrap().remove(0)
        };
        let last = Conv { channels_last: true, ..conv };
        let last = check(last, &[move_axis(&x, &[0, 2, 1]), move_axis(&w, &[2, 1, 0])]).remove(0);
        assert_eq!(move_axis(&last, &[0, 2, 1]), first);
    }

    #[test]
    fn empty_batches_and_no_spatial_dimensions() {
        check(Conv::plain(), &[sample(DType::F32, &[0, 2, 4], 1), sample(DType::F32, &[3, 2, 2], 2)]);
        check(Conv::plain(), &[sample(DType::F32, &[3, 2], 1), sample(DType::F32, &[5, 2], 2)]);
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |conv: Conv, ins: &[TensorType]| {
            conv.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint
        };
        let (x, w) = (f32(&[1, 4, 5]), f32(&[6, 4, 3]));
        assert_eq!(violated(Conv { strides: vec![0], ..Conv::plain() }, &[x.clone(), w.clone()]), "C1");
        assert_eq!(violated(Conv { pads: vec![0], ..Conv::plain() }, &[x.clone(), w.clone()]), "C1");
        assert_eq!(violated(Conv { dilations: vec![3], ..Conv::plain() }, &[x.clone(), w.clone()]), "C2");
        assert_eq!(violated(Conv::plain(), &[x.clone(), f32(&[6, 4, 3, 3])]), "C3");
        assert_eq!(violated(Conv { group: 0, ..Conv::plain() }, &[x.clone(), w.clone()]), "C4");
        assert_eq!(violated(Conv { group: 2, ..Conv::plain() }, &[x.clone(), w.clone()]), "C4");
        assert_eq!(violated(Conv::plain(), &[x, w, f32(&[5])]), "C5");
    }

    #[test]
    fn named_dimensions_pass_where_the_size_stays() {
        let x = TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(3), Dim::named("t")]);
        let w = TensorType::fixed(DType::F32, &[8, 3, 3]);
        let same = Conv { pads: vec![1, 1], ..Conv::plain() };
        assert_eq!(same.infer(&[&x, &w]).unwrap()[0].to_string(), "f32[n, 8, t]");
        assert_eq!(Conv::plain().infer(&[&x, &w]).unwrap()[0].to_string(), "f32[n, 8, ?]");
    }
}
