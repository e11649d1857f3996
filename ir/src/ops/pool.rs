//! `max_pool`, `average_pool`, `lp_pool`: windows reduced to one element.

use super::conv::Layout;
use super::conv_vjp::{channels_first, channels_last};
use super::formula::power;
use super::vjp;
use super::window::Window;
use super::{Col2Im, Lowered, MaxPoolGrad, OpDef, Pad, PadMode, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder, Reduction, Val};
use crate::ops::points::points;
use crate::require;
use crate::scalar::{self, Operand, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{Dim, Dims, Shape, TensorType, strides};

/// What becomes of the elements of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The largest; NaN if any is.
    Max,
    /// Their mean.
    Average,
    /// `(sum |x|^p)^(1/p)`.
    Lp,
}

impl Keyword for PoolKind {
    const ALL: &'static [(&'static str, PoolKind)] =
        &[("max_pool", PoolKind::Max), ("average_pool", PoolKind::Average), ("lp_pool", PoolKind::Lp)];
}

/// Reduces each window of `x` `[N, C, spatial..]`, or `[N, spatial.., C]` with `channels_last`.
///
/// Padding is not part of the operand: `max` and `lp` ignore it, `average` divides by the number of
/// elements that are not padding, or with `count_include_pad` by those of operand and padding. With
/// `ceil_mode` a last window may hang over the end if it does not start there.
///
/// - (C1), (C2) of [`super::Conv`], the kernel being `kernel_shape`, with an entry a spatial dimension;
/// - (C3) `x` has rank 2 or more and is a number (`average`, `lp`: a float);
/// - (C4) p is at least 1.
///
/// ONNX: `MaxPool`, `AveragePool`, `LpPool` (1..), whose `auto_pad` their importer resolves.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// What becomes of a window.
    pub kind: PoolKind,
    /// The size of the window.
    pub kernel: Vec<i64>,
    /// The step of the window along each spatial dimension; empty means 1.
    pub strides: Vec<i64>,
    /// Padding before each spatial dimension, then after each; empty means none.
    pub pads: Vec<i64>,
    /// The distance between neighbouring taps; empty means 1.
    pub dilations: Vec<i64>,
    /// Whether the number of windows is rounded up.
    pub ceil_mode: bool,
    /// Whether an average counts padding.
    pub count_include_pad: bool,
    /// The norm of `lp_pool`.
    pub p: i64,
    /// Whether the channels are the last dimension.
    pub channels_last: bool,
}

impl Pool {
    /// A window without padding that moves by 1.
    pub fn plain(kind: PoolKind, kernel: &[i64]) -> Pool {
        Pool {
            kind,
            kernel: kernel.to_vec(),
            strides: Vec::new(),
            pads: Vec::new(),
            dilations: Vec::new(),
            ceil_mode: false,
            count_include_pad: false,
            p: 2,
            channels_last: false,
        }
    }

    fn window(&self, spatial: usize) -> Result<Window, Violation> {
        Window::new(spatial, &self.strides, &self.pads, &self.dilations)
    }

    pub(crate) fn kernel(&self) -> Shape {
        self.kernel.iter().map(|&n| n as usize).collect()
    }

    /// The result's dimensions for `max_pool` and its indices alike.
    pub(crate) fn result_dims(&self, x: &TensorType) -> Result<Vec<Dim>, Violation> {
        require!(x.rank() >= 2, "C3", "{x} has no channels");
        let layout = Layout::new(x.rank(), self.channels_last);
        let spatial = layout.spatial.len();
        let window = self.window(spatial)?;
        require!(
            self.kernel.len() == spatial && self.kernel.iter().all(|&n| n >= 1),
            "C1",
            "kernel_shape {:?} does not have a positive entry for each of {spatial} spatial dimensions",
            self.kernel
        );
        let mut dims: Dims = Dims::new();
        for (d, (input, &kernel)) in x.dims[layout.spatial.clone()].iter().zip(&self.kernel).enumerate() {
            dims.push(window.output_dim(d, input, &Dim::Fixed(kernel as usize), self.ceil_mode)?);
        }
        Ok(layout.assemble(x.dims[0].clone(), x.dims[layout.channels].clone(), dims))
    }
}

impl OpDef for Pool {
    const NAMES: &'static [&'static str] = &["max_pool", "average_pool", "lp_pool"];

    fn with_name(name: &str) -> Pool {
        let kind = PoolKind::ALL.iter().find(|(word, _)| *word == name).map_or(PoolKind::Max, |(_, k)| *k);
        Pool::plain(kind, &[])
    }

    fn name(&self) -> &'static str {
        self.kind.word()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("kernel_shape", Slot::Ints(&mut self.kernel))?;
        codec.attr("strides", Slot::Ints(&mut self.strides))?;
        codec.attr("pads", Slot::Ints(&mut self.pads))?;
        codec.attr("dilations", Slot::Ints(&mut self.dilations))?;
        codec.attr("ceil_mode", Slot::Bool(&mut self.ceil_mode))?;
        match self.kind {
            PoolKind::Max => {}
            PoolKind::Average => codec.attr("count_include_pad", Slot::Bool(&mut self.count_include_pad))?,
            PoolKind::Lp => codec.attr("p", Slot::Int(&mut self.p))?,
        }
        codec.attr("channels_last", Slot::Bool(&mut self.channels_last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        let x = ins[0];
        let fits = match self.kind {
            PoolKind::Max => x.dtype != DType::Bool,
            PoolKind::Average | PoolKind::Lp => x.dtype.is_float(),
        };
        require!(fits, "C3", "{} does not take {x}", self.name());
        require!(self.p >= 1, "C4", "p is {}", self.p);
        Ok(vec![TensorType::new(x.dtype, self.result_dims(x)?)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let shape = self.infer(&[&x.ty()]).map_err(|v| v.to_string())?.remove(0).shape();
        if !x.dtype().is_float() {
            let (low, _) = x.dtype().int_range();
            let values = x.to_i128s();
            let results = self.reduced(x.shape(), &shape, low, |acc, at| acc.max(values[at]));
            return Ok(vec![Tensor::from_i128s(x.dtype(), &shape, &results)]);
        }
        let values = x.to_f64s();
        let p = self.p as f64;
        let results = match self.kind {
            PoolKind::Max => self.reduced(x.shape(), &shape, f64::NEG_INFINITY, |acc, at| {
                let pair = [Operand::Float(acc), Operand::Float(values[at])];
                match scalar::eval(ScalarFn::Max, DType::F64, &pair) {
                    Operand::Float(larger) => larger,
                    Operand::Int(_) => unreachable!("floats give floats"),
                }
            }),
            PoolKind::Average => {
                let mut sums = self.reduced(x.shape(), &shape, 0.0, |acc, at| acc + values[at]);
                let counts = self.counts(x.shape(), &shape);
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum /= count as f64);
                sums
            }
            PoolKind::Lp => {
                let sum = |acc: f64, at: usize| acc + libm::pow(values[at].abs(), p);
                let mut sums = self.reduced(x.shape(), &shape, 0.0, sum);
                sums.iter_mut().for_each(|sum| *sum = libm::pow(*sum, 1.0 / p));
                sums
            }
        };
        Ok(vec![Tensor::from_f64s(x.dtype(), &shape, &results)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (x, y, mut g) = (cx.ins[0], cx.outs[0], cx.dout(0));
        match self.kind {
            PoolKind::Max => vjp::one(cx.push(MaxPoolGrad { pool: self.clone() }, &[x, y, g])?),
            PoolKind::Average => {
                // The counts of one plane.
                let layout = Layout::new(cx.shape(x).len(), self.channels_last);
                let [from, to] = [x, y].map(|value| {
                    let mut shape = cx.shape(value);
                    (shape[0], shape[layout.channels]) = (1, 1);
                    shape
                });
                let counts: Vec<f64> = self.counts(&from, &to).into_iter().map(|n| n as f64).collect();
                let counts = cx.builder.constant(Tensor::from_f64s(cx.dtype(g), &to, &counts));
                g = cx.map(ScalarFn::Div, &[g, counts])?;
                vjp::one(self.spread(cx, x, g)?)
            }
            PoolKind::Lp => {
                // |x|^(p - 1) sign(x) y^(1 - p), the last factor being of the window.
                let p = self.p as f64;
                let size = cx.with_constant(ScalarFn::Pow, y, 1.0 - p)?;
                let filled = cx.with_constant(ScalarFn::Ne, y, 0.0)?;
                let size = cx.masked(filled, size)?;
                g = cx.map(ScalarFn::Mul, &[g, size])?;
                let spread = self.spread(cx, x, g)?;
                let (magnitude, sign) = (cx.map(ScalarFn::Abs, &[x])?, cx.map(ScalarFn::Sign, &[x])?);
                let power = cx.with_constant(ScalarFn::Pow, magnitude, p - 1.0)?;
                let slope = cx.map(ScalarFn::Mul, &[power, sign])?;
                vjp::one(cx.map(ScalarFn::Mul, &[spread, slope])?)
            }
        }
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0)], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (x, dtype) = (ins[0].shape(), ins[0].dtype);
        if self.kind == PoolKind::Max
            && let Some(border) = self.border(&x, &outs[0].shape())
        {
            return Lowered::graph(ins, |b, ins| self.over_padded(b, ins[0], border));
        }
        let layout = Layout::new(x.len(), self.channels_last);
        let window = self.window(layout.spatial.len()).expect("infer accepted the window");
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(dtype, &x);
        let at = n.domain();
        let spatial_at = &at[layout.spatial.clone()];
        let accumulator = match self.kind {
            PoolKind::Max => dtype,
            PoolKind::Average | PoolKind::Lp => dtype.accumulator(),
        };
        let kind = match self.kind {
            PoolKind::Max => Reduction::Max,
            PoolKind::Average | PoolKind::Lp => Reduction::Sum,
        };
        let reduced = n.reduce(kind, &self.kernel(), |n, tap| {
            let (spatial, guards) = window.index(spatial_at, tap, &x[layout.spatial.clone()]);
            let index = layout.assemble(at[0].clone(), at[layout.channels].clone(), spatial);
            let value = n.load_guarded(operand, &index, &guards);
            let value = n.cast(value, accumulator);
            match self.kind {
                PoolKind::Max | PoolKind::Average => value,
                PoolKind::Lp => {
                    let size = n.apply(ScalarFn::Abs, &[value]);
                    power(n, size, self.p as f64)
                }
            }
        });
        let result = match self.kind {
            PoolKind::Max => reduced,
            PoolKind::Average => {
                let count = self.count(&mut n, &window, spatial_at, &x[layout.spatial.clone()]);
                let count = n.cast(count, accumulator);
                n.apply(ScalarFn::Div, &[reduced, count])
            }
            PoolKind::Lp => power(&mut n, reduced, 1.0 / self.p as f64),
        };
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl Pool {
    /// What windows read before and after each spatial dimension, if anything.
    fn border(&self, x: &[usize], out: &[usize]) -> Option<Vec<i64>> {
        let layout = Layout::new(x.len(), self.channels_last);
        let window = self.window(layout.spatial.len()).expect("infer accepted the window");
        let (x, out) = (&x[layout.spatial.clone()], &out[layout.spatial]);
        let end = |d: usize| {
            let reach = (self.kernel[d] as usize - 1) * window.dilations[d] + 1;
            let last = out[d].saturating_sub(1) * window.strides[d] + reach;
            last.saturating_sub(x[d] + window.begin[d])
        };
        let border: Vec<i64> =
            window.begin.iter().copied().chain((0..x.len()).map(end)).map(|n| n as i64).collect();
        border.iter().any(|&n| n != 0).then_some(border)
    }

    /// The border as an op of its own, of what no maximum is below.
    fn over_padded(&self, b: &mut Builder, x: Value, border: Vec<i64>) -> Result<Values, Error> {
        let ty = b.ty(x);
        let (dtype, layout) = (ty.dtype, Layout::new(ty.rank(), self.channels_last));
        let lowest = b.constant(match dtype.is_float() {
            true => Tensor::from_f64s(dtype, &[], &[f64::NEG_INFINITY]),
            false => Tensor::from_i128s(dtype, &[], &[dtype.int_range().0]),
        });
        let axes: Vec<i64> = layout.spatial.map(|d| d as i64).collect();
        let pad = Pad { pads: border.into(), axes: axes.into(), mode: PadMode::Constant };
        let padded = b.push1(pad, &[x, lowest])?;
        let pool = Pool { pads: Vec::new(), ceil_mode: false, ..self.clone() };
        Ok(Values::from_slice(&[b.push1(pool, &[padded])?]))
    }

    /// For each element of `x` the sum of `g` over the windows it lies in.
    fn spread(&self, cx: &mut VjpCx<'_>, x: Value, g: Value) -> Result<Value, Error> {
        let rank = cx.shape(x).len();
        let (mut image, mut g) = (cx.shape(x), g);
        if self.channels_last {
            g = cx.transpose(g, &channels_first(rank))?;
            image[1..].rotate_right(1);
        }
        let windows = cx.shape(g);
        let window = self.window(image.len() - 2).expect("infer accepted the window");
        let taps: usize = self.kernel().iter().product();
        let count: usize = windows[2..].iter().product();
        let one = cx.reshape(g, &[image[0], image[1], 1, count])?;
        let each = cx.broadcast(one, &[image[0], image[1], taps, count])?;
        let columns = cx.reshape(each, &[image[0], image[1] * taps, count])?;
        // As much padding at the end as the last windows reach.
        let end = |d: usize| {
            let reach = (self.kernel[d] as usize - 1) * window.dilations[d] + 1;
            let last = windows[d + 2].saturating_sub(1) * window.strides[d] + reach;
            last.saturating_sub(image[d + 2] + window.begin[d])
        };
        let pads = window.begin.iter().copied().chain((0..image.len() - 2).map(end));
        let ints = |sizes: &[usize]| sizes.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        let spread = Col2Im {
            image: ints(&image[2..]).into(),
            block: self.kernel.clone().into(),
            strides: self.strides.clone(),
            pads: pads.map(|n| n as i64).collect(),
            dilations: self.dilations.clone(),
        };
        let sum = cx.push(spread, &[columns])?;
        if self.channels_last { cx.transpose(sum, &channels_last(rank)) } else { Ok(sum) }
    }

    /// Folds every window's elements that lie inside the operand.
    fn reduced<T: Copy>(&self, x: &[usize], out: &[usize], start: T, fold: impl Fn(T, usize) -> T) -> Vec<T> {
        let layout = Layout::new(x.len(), self.channels_last);
        let window = self.window(layout.spatial.len()).expect("infer accepted the window");
        let (x_strides, out_strides) = (strides(x), strides(out));
        let spatial = |shape: &[usize]| -> Shape { shape[layout.spatial.clone()].into() };
        let mut acc = vec![start; out.iter().product()];
        for tap in points(&self.kernel()) {
            let pairs = window.pairs(
                &tap,
                (&spatial(out), &spatial(&out_strides)),
                (&spatial(x), &spatial(&x_strides)),
            );
            for at in points(&[out[0], out[layout.channels]]) {
                let from = at[0] * x_strides[0] + at[1] * x_strides[layout.channels];
                let to = at[0] * out_strides[0] + at[1] * out_strides[layout.channels];
                for &(o, i) in &pairs {
                    acc[to + o] = fold(acc[to + o], from + i);
                }
            }
        }
        acc
    }

    /// What each average divides by.
    fn counts(&self, x: &[usize], out: &[usize]) -> Vec<usize> {
        if !self.count_include_pad {
            return self.reduced(x, out, 0, |count, _| count + 1);
        }
        let layout = Layout::new(x.len(), self.channels_last);
        let window = self.window(layout.spatial.len()).expect("infer accepted the window");
        // The padding as part of a larger operand.
        let padded: Vec<usize> = x[layout.spatial.clone()]
            .iter()
            .enumerate()
            .map(|(d, n)| n + window.begin[d] + window.end[d])
            .collect();
        let padded = layout.assemble(x[0], x[layout.channels], padded);
        Pool { pads: Vec::new(), ..self.clone() }.reduced(&padded, out, 0, |count, _| count + 1)
    }

    /// The number of elements of the window at `at` that an average counts, as an integer: along each
    /// dimension, the taps `t` with `0 <= at * stride + t * dilation - begin < size`.
    fn count(&self, n: &mut NestBuilder, window: &Window, at: &[Index], x: &[usize]) -> Val {
        // The first tap inside and the one after the last, in each dimension.
        let ends: Vec<[Index; 2]> = (0..at.len())
            .map(|d| {
                let (begin, end, dilation) =
                    (window.begin[d] as i64, window.end[d] as i64, window.dilations[d] as i64);
                let size = x[d] as i64 + if self.count_include_pad { begin + end } else { 0 };
                let begin = if self.count_include_pad { 0 } else { begin };
                // The first position of the window, as a distance before the operand and before its end.
                let start = at[d].mul(window.strides[d] as i64).add_const(-begin);
                let ceil = |distance: Index| distance.add_const(dilation - 1).div(dilation);
                [ceil(start.mul(-1)), ceil(start.mul(-1).add_const(size))]
            })
            .collect();
        let taps = self.kernel.iter().fold(1, |product: i64, &size| product.saturating_mul(size));
        let is_short = |n: i64| i32::try_from(n).is_ok();
        let all_short =
            ends.iter().flatten().all(|index| is_short(index.range().0) && is_short(index.range().1));
        let ty = if all_short && is_short(taps) { DType::I32 } else { DType::I64 };
        let mut product = n.constant(ty, 1.0);
        for ([first, last], &kernel) in ends.iter().zip(&self.kernel) {
            let count = if first.range().1 <= 0 && last.range().0 >= kernel {
                n.constant(ty, kernel as f64)
            } else {
                let [first, last] = [first, last].map(|index| {
                    let number = n.index_value(index);
                    n.cast(number, ty)
                });
                let (zero, kernel) = (n.constant(ty, 0.0), n.constant(ty, kernel as f64));
                let first = n.apply(ScalarFn::Max, &[first, zero]);
                let last = n.apply(ScalarFn::Min, &[last, kernel]);
                let count = n.apply(ScalarFn::Sub, &[last, first]);
                n.apply(ScalarFn::Max, &[count, zero])
            };
            product = n.apply(ScalarFn::Mul, &[product, count]);
        }
        product
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    const KINDS: [PoolKind; 3] = [PoolKind::Max, PoolKind::Average, PoolKind::Lp];

    #[test]
    fn averages_count_what_is_not_padding() {
        let x = Tensor::new(&[1, 1, 2, 2], &[1f32, 2., 3., 4.]);
        let pool = Pool { pads: vec![1; 4], ..Pool::plain(PoolKind::Average, &[3, 3]) };
        assert_eq!(check(pool.clone(), std::slice::from_ref(&x))[0].to_f64s(), [2.5; 4]);
        let with_padding = Pool { count_include_pad: true, ..pool };
        assert_eq!(check(with_padding, &[x])[0].to_f64s(), [f64::from(10f32 / 9.); 4]);
    }

    #[test]
    fn every_kind_agrees_with_its_formula() {
        for kind in KINDS {
            for (ceil_mode, channels_last, count_include_pad) in
                [(false, false, false), (true, false, true), (true, true, false), (false, true, true)]
            {
                let pool = Pool {
                    strides: vec![2, 3],
                    pads: vec![1, 0, 2, 1],
                    dilations: vec![2, 1],
                    ceil_mode,
                    count_include_pad,
                    channels_last,
                    p: 3,
                    ..Pool::plain(kind, &[2, 3])
                };
                let shape = if channels_last { [2, 7, 8, 3] } else { [2, 3, 7, 8] };
                for dtype in [DType::F32, DType::F64, DType::F16] {
                    check(pool.clone(), &[sample(dtype, &shape, 7)]);
                }
                if kind == PoolKind::Max {
                    check(pool.clone(), &[sample(DType::U8, &shape, 7)]);
                    check(pool, &[sample(DType::I8, &shape, 7)]);
                }
            }
        }
    }

    #[test]
    fn a_rounded_up_count_drops_windows_that_start_past_the_end() {
        let x = TensorType::fixed(DType::F32, &[1, 1, 2, 4]);
        let pool = |ceil_mode| Pool { strides: vec![2, 2], ceil_mode, ..Pool::plain(PoolKind::Max, &[1, 1]) };
        assert_eq!(pool(true).infer(&[&x]).unwrap()[0].shape().as_slice(), [1, 1, 1, 2]);
        assert_eq!(pool(false).infer(&[&x]).unwrap()[0].shape().as_slice(), [1, 1, 1, 2]);
        let wide = Pool { strides: vec![2, 2], ceil_mode: true, ..Pool::plain(PoolKind::Max, &[1, 3]) };
        assert_eq!(wide.infer(&[&x]).unwrap()[0].shape().as_slice(), [1, 1, 1, 2]);
    }

    #[test]
    fn constraints_are_named() {
        let x = TensorType::fixed(DType::F32, &[1, 1, 4]);
        let violated = |pool: Pool, x: &TensorType| pool.infer(&[x]).unwrap_err().constraint;
        assert_eq!(violated(Pool::plain(PoolKind::Max, &[2, 2]), &x), "C1");
        assert_eq!(violated(Pool::plain(PoolKind::Max, &[0]), &x), "C1");
        assert_eq!(violated(Pool::plain(PoolKind::Max, &[5]), &x), "C2");
        let ints = TensorType::fixed(DType::I32, &[1, 1, 4]);
        assert_eq!(violated(Pool::plain(PoolKind::Average, &[2]), &ints), "C3");
        assert_eq!(violated(Pool { p: 0, ..Pool::plain(PoolKind::Lp, &[2]) }, &x), "C4");
    }
}
