//! `conv_transpose`: the gradient of a convolution with respect to its operand, as an op.

use super::conv_vjp::{Geometry, channels_last};
use super::vmap;
use super::window::Window;
use super::{Conv, Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Guard, Index, NestBuilder, Reduction};
use crate::ops::movement::position;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, strides};

/// Spreads each element of `x` `[N, C, spatial..]`, times the kernel of `w` `[C, M/group, kernel..]`, over
/// the window a convolution would compute it from, and adds an optional bias `[M]`; the result is
/// `[N, M, spatial..]`, `stride * (n - 1) + dilation * (kernel - 1) + 1 + output_padding - pads` long.
///
/// Each element is accumulated over the kernel's dimensions, then over the channels of its group; f16
/// and bf16 in f32, rounded once after the bias.
///
/// - (C1) strides, pads and dilations as for [`super::Conv`], and so `output_padding`;
/// - (C2) no size becomes negative;
/// - (C3) operands are of one numeric type, `x` and `w` of one rank, at least 2;
/// - (C4) the group divides C, and `w` has C as its first dimension;
/// - (C5) the bias has M elements.
///
/// ONNX: `ConvTranspose` (1..), whose `auto_pad` and `output_shape` its importer resolves to pads.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose {
    /// The step of the window along each spatial dimension; empty means 1.
    pub strides: Vec<i64>,
    /// What is cut off before each spatial dimension, then after each; empty means nothing.
    pub pads: Vec<i64>,
    /// The distance between neighbouring taps; empty means 1.
    pub dilations: Vec<i64>,
    /// What is added after each spatial dimension; empty means nothing.
    pub output_padding: Vec<i64>,
    /// Channels are split into this many groups that do not mix.
    pub group: i64,
}

impl ConvTranspose {
    /// Without padding, strides, dilation or groups.
    pub fn plain() -> ConvTranspose {
        ConvTranspose {
            strides: Vec::new(),
            pads: Vec::new(),
            dilations: Vec::new(),
            output_padding: Vec::new(),
            group: 1,
        }
    }

    fn window(&self, spatial: usize) -> Result<Window, Violation> {
        Window::new(spatial, &self.strides, &self.pads, &self.dilations)
    }

    fn output_dim(&self, window: &Window, d: usize, input: &Dim, kernel: &Dim) -> Result<Dim, Violation> {
        let (Some(input), Some(kernel)) = (input.as_fixed(), kernel.as_fixed()) else {
            return Ok(Dim::Unknown);
        };
        let wide = |n: usize| n as i128;
        let size = wide(window.strides[d]) * (wide(input) - 1)
            + wide(window.dilations[d]) * (wide(kernel) - 1)
            + 1
            + i128::from(self.output_padding.get(d).copied().unwrap_or(0))
            - wide(window.begin[d])
            - wide(window.end[d]);
        match usize::try_from(size) {
            Ok(size) if size < 1 << 62 => Ok(Dim::Fixed(size)),
            _ => Err(Violation::new("C2", format!("dimension {d} of the result would have size {size}"))),
        }
    }
}

impl OpDef for ConvTranspose {
    const NAMES: &'static [&'static str] = &["conv_transpose"];

    fn with_name(_: &str) -> ConvTranspose {
        ConvTranspose::plain()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("strides", Slot::Ints(&mut self.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.dilations))?;
        codec.attr("output_padding", Slot::Ints(&mut self.output_padding))?;
        codec.attr("group", Slot::Int(&mut self.group))
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
        let spatial = x.rank() - 2;
        let window = self.window(spatial)?;
        let padding = &self.output_padding;
        let fits = (padding.is_empty() || padding.len() == spatial)
            && padding.iter().all(|n| (0..1 << 31).contains(n));
        require!(fits, "C1", "output_padding {padding:?} does not fit {spatial} spatial dimensions");
        let group = usize::try_from(self.group).unwrap_or(0);
        let divides = group > 0 && x.dims[1].as_fixed().is_none_or(|c| c % group == 0);
        let same = x.dims[1].may_equal(&w.dims[0]);
        require!(divides && same, "C4", "{x} and {w} do not form {} groups", self.group);
        let channels = match w.dims[1].as_fixed() {
            Some(m) => Dim::Fixed(m.saturating_mul(group)),
            None if group == 1 => w.dims[1].clone(),
            None => Dim::Unknown,
        };
        if let Some(bias) = ins.get(2) {
            let fits = bias.rank() == 1 && bias.dims[0].may_equal(&channels);
            require!(fits, "C5", "the bias {bias} does not have {channels} elements");
        }
        let mut dims = vec![x.dims[0].clone(), channels];
        for d in 0..spatial {
            dims.push(self.output_dim(&window, d, &x.dims[d + 2], &w.dims[d + 2])?);
        }
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
        let out = self.infer(&types.iter().collect::<Vec<_>>()).map_err(|v| v.to_string())?.remove(0);
        let (dtype, shape) = (out.dtype, out.shape());
        let operands = (ins[0].shape(), ins[1].shape());
        if dtype.is_float() {
            let (x, w) = (ins[0].to_f64s(), ins[1].to_f64s());
            let bias = ins.get(2).map(Tensor::to_f64s);
            let start = |m: usize| bias.as_ref().map_or(0.0, |b| b[m]);
            let sums = self.spread(operands, &shape, start, |acc, i, k| acc + x[i] * w[k]);
            return Ok(vec![Tensor::from_f64s(dtype, &shape, &sums)]);
        }
        let (x, w) = (ins[0].to_i128s(), ins[1].to_i128s());
        let bias = ins.get(2).map(Tensor::to_i128s);
        let start = |m: usize| bias.as_ref().map_or(0, |b| b[m]);
        let sums =
            self.spread(operands, &shape, start, |acc: i128, i, k| acc.wrapping_add(x[i].wrapping_mul(w[k])));
        Ok(vec![Tensor::from_i128s(dtype, &shape, &sums)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, w, g) = (cx.ins[0], cx.ins[1], cx.dout(0));
        let (out, kernel) = (cx.shape(g), cx.shape(w));
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        if cx.wanted[0] {
            let conv = Conv {
                strides: self.strides.clone(),
                pads: self.pads.clone(),
                dilations: self.dilations.clone(),
                group: self.group,
                channels_last: false,
            };
            let mut dx = cx.push(conv, &[g, w])?;
            // Windows that begin in the output padding.
            let own = cx.shape(x);
            for d in 2..own.len() {
                dx = cx.pad(dx, d, 0, own[d] as i64 - cx.shape(dx)[d] as i64)?;
            }
            gradients[0] = Some(dx);
        }
        if cx.wanted[1] {
            let geometry = Geometry {
                strides: &self.strides,
                pads: &self.pads,
                dilations: &self.dilations,
                group: self.group,
                image: &out[2..],
                kernel: &kernel[2..],
            };
            let to_last = channels_last(out.len());
            let (g, x) = (cx.transpose(g, &to_last)?, cx.transpose(x, &to_last)?);
            let dw = geometry.weight_gradient(cx, g, x)?;
            let rank = out.len();
            let back: Vec<usize> = [rank - 1, rank - 2].into_iter().chain(0..rank - 2).collect();
            gradients[1] = Some(cx.transpose(dw, &back)?);
        }
        if cx.wanted.get(2).copied().unwrap_or(false) {
            gradients[2] = Some(cx.sum_beside(g, 1)?);
        }
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        if !cx.batched[1..].contains(&true) {
            return cx.merged(self.clone(), &[Some(0), None, None][..cx.ins.len()], &[0]);
        }
        // Weights of every example's own are those of more groups.
        let (x, w) = (cx.with_batch(0)?, cx.with_batch(1)?);
        let mut ins = vec![cx.merge(x, 1)?, cx.merge(w, 0)?];
        if cx.ins.len() > 2 {
            let bias = cx.with_batch(2)?;
            ins.push(cx.merge(bias, 0)?);
        }
        let group = self.group * cx.batch as i64;
        let y = cx.builder.push1(ConvTranspose { group, ..self.clone() }, &ins)?;
        vmap::one(cx.split(y, 1)?)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, w, dtype) = (ins[0].shape(), ins[1].shape(), ins[0].dtype);
        let window = self.window(x.len() - 2).expect("infer accepted the window");
        let mut n = NestBuilder::new(&outs[0].shape());
        let (op_x, op_w) = (n.operand(dtype, &x), n.operand(dtype, &w));
        let op_bias = ins.get(2).map(|bias| n.operand(dtype, &bias.shape()));
        let at = n.domain();
        let (group_out, group_in) = (w[1].max(1) as i64, x[1] / self.group as usize);
        let first_channel = match self.group {
            1 => Index::constant(0),
            _ => at[1].div(group_out).mul(group_in as i64),
        };
        let group_channel = if self.group == 1 { at[1].clone() } else { at[1].rem(group_out) };
        let extents: Vec<usize> = w[2..].iter().copied().chain([group_in]).collect();
        let mut result = n.reduce(Reduction::Sum, &extents, |n, k| {
            let (channel, tap) = k.split_last().expect("the channels are there");
            let channel = first_channel.add(channel);
            let mut x_index = vec![at[0].clone(), channel.clone()];
            let mut w_index = vec![channel, group_channel.clone()];
            let mut guards = Vec::new();
            for (d, tap) in tap.iter().enumerate() {
                // o = i * stride + tap * dilation - begin, solved for i.
                let stride = window.strides[d] as i64;
                let scaled =
                    at[d + 2].sub(&tap.mul(window.dilations[d] as i64)).add_const(window.begin[d] as i64);
                let source = scaled.div(stride);
                guards.push(Guard::new(scaled.rem(stride), 1));
                guards.push(Guard::new(source.clone(), x[d + 2]));
                x_index.push(source);
                w_index.push(tap.clone());
            }
            let x = n.load_guarded(op_x, &x_index, &guards);
            let w = n.load(op_w, &w_index);
            let (x, w) = (n.cast(x, dtype.accumulator()), n.cast(w, dtype.accumulator()));
            n.apply(ScalarFn::Mul, &[x, w])
        });
        if let Some(bias) = op_bias {
            let bias = n.load(bias, &at[1..2]);
            let bias = n.cast(bias, dtype.accumulator());
            result = n.apply(ScalarFn::Add, &[result, bias]);
        }
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl ConvTranspose {
    /// The sums, in any arithmetic: `mul_add` gets a sum and the positions of its factors in x and w.
    fn spread<T: Copy>(
        &self,
        (x, w): (&[usize], &[usize]),
        out: &[usize],
        start: impl Fn(usize) -> T,
        mul_add: impl Fn(T, usize, usize) -> T,
    ) -> Vec<T> {
        let window = self.window(x.len() - 2).expect("infer accepted the window");
        let (x_strides, w_strides, out_strides) = (strides(x), strides(w), strides(out));
        let spatial = |shape: &Shape| -> Shape { shape[2..].into() };
        let volume: usize = out[2..].iter().product();
        let mut acc: Vec<T> = (0..out.iter().product()).map(|i: usize| start(i / volume % out[1])).collect();
        let (group_out, group_in) = (w[1], x[1] / self.group as usize);
        for tap in points(&w[2..]) {
            // The convolution this is the transpose of reads `out` and writes `x`.
            let pairs =
                window.pairs(&tap, (&x[2..], &spatial(&x_strides)), (&out[2..], &spatial(&out_strides)));
            for at in points(&[out[0], out[1], group_in]) {
                let (batch, m) = (at[0], at[1]);
                let c = m / group_out * group_in + at[2];
                let weight =
                    c * w_strides[0] + m % group_out * w_strides[1] + position(&tap, &w_strides[2..]);
                let from = batch * x_strides[0] + c * x_strides[1];
                let to = batch * out_strides[0] + m * out_strides[1];
                for &(i, o) in &pairs {
                    acc[to + o] = mul_add(acc[to + o], from + i, weight);
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

    #[test]
    fn windows_overlap_where_they_meet() {
        let x = Tensor::new(&[1, 1, 3], &[0f32, 1., 2.]);
        let w = Tensor::new(&[1, 2, 3], &[1f32; 6]);
        let y = check(ConvTranspose::plain(), &[x.clone(), w.clone()]);
        assert_eq!(y[0].to_f64s(), [0., 1., 3., 3., 2., 0., 1., 3., 3., 2.]);
        let strided = ConvTranspose { strides: vec![2], output_padding: vec![1], ..ConvTranspose::plain() };
        let y = check(strided, &[x, w]);
        assert_eq!(y[0].to_f64s()[..8], [0., 0., 1., 1., 3., 2., 2., 0.]);
    }

    #[test]
    fn groups_strides_dilations_and_pads_agree_with_the_formula() {
        for group in [1, 2, 4] {
            let op = ConvTranspose {
                strides: vec![2, 3],
                pads: vec![1, 0, 2, 1],
                dilations: vec![2, 1],
                output_padding: vec![1, 0],
                group,
            };
            for dtype in [DType::F32, DType::F16, DType::F64, DType::I32] {
                let (x, w) = (sample(dtype, &[2, 4, 3, 4], 1), sample(dtype, &[4, 3, 2, 3], 2));
                check(op.clone(), &[x, w, sample(dtype, &[3 * group as usize], 3)]);
            }
        }
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated = |op: ConvTranspose, ins: &[TensorType]| {
            op.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint
        };
        let (x, w) = (f32(&[1, 4, 5]), f32(&[4, 2, 3]));
        let plain = ConvTranspose::plain;
        assert_eq!(
            violated(ConvTranspose { output_padding: vec![-1], ..plain() }, &[x.clone(), w.clone()]),
            "C1"
        );
        assert_eq!(violated(ConvTranspose { pads: vec![9, 9], ..plain() }, &[x.clone(), w.clone()]), "C2");
        assert_eq!(violated(plain(), &[x.clone(), f32(&[4, 2])]), "C3");
        assert_eq!(violated(plain(), &[x.clone(), f32(&[3, 2, 3])]), "C4");
        assert_eq!(violated(ConvTranspose { group: 3, ..plain() }, &[x.clone(), w.clone()]), "C4");
        assert_eq!(violated(plain(), &[x, w, f32(&[3])]), "C5");
    }
}
