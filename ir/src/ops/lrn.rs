//! `lrn`: local response normalization across channels.

use super::conv::Layout;
use super::formula::{power, power_of, with_constant};
use super::vjp;
use super::{Lowered, OpDef, Pad, PadMode, Pool, PoolKind, Slice, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Guard, NestBuilder, Reduction};
use crate::ops::movement::around;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// `x / (bias + alpha / size * s)^beta` for `x` `[N, C, spatial..]`, or `[N, spatial.., C]` with `channels_last`, where
/// s sums the squares of the `size` channels around each, `c - (size - 1) / 2` to `c + size / 2`, as far as they exist.
///
/// - (C1) `x` is a float of rank 2 or more;
/// - (C2) `size` is positive.
///
/// ONNX: `LRN` (1..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Lrn {
    /// The factor of the mean square.
    pub alpha: f64,
    /// The exponent.
    pub beta: f64,
    /// Added before the power is taken.
    pub bias: f64,
    /// The number of channels summed over.
    pub size: i64,
    /// Whether the channels are the last dimension.
    pub channels_last: bool,
}

impl OpDef for Lrn {
    const NAMES: &'static [&'static str] = &["lrn"];

    fn with_name(_: &str) -> Lrn {
        Lrn { alpha: 1e-4, beta: 0.75, bias: 1.0, size: 0, channels_last: false }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("alpha", Slot::Float(&mut self.alpha))?;
        codec.attr("beta", Slot::Float(&mut self.beta))?;
        codec.attr("bias", Slot::Float(&mut self.bias))?;
        codec.attr("size", Slot::Int(&mut self.size))?;
        codec.attr("channels_last", Slot::Bool(&mut self.channels_last))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        let x = ins[0];
        require!(x.dtype.is_float() && x.rank() >= 2, "C1", "{x} is not a float with channels");
        require!((1..1 << 31).contains(&self.size), "C2", "size is {}", self.size);
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let (_, channels, after) = around(x.shape(), self.axis(x.shape().len()));
        let size = self.size as usize;
        let values = x.to_f64s();
        let element = |(i, value): (usize, &f64)| {
            let c = i / after % channels;
            let (first, last) = (c.saturating_sub((size - 1) / 2), (c + size / 2).min(channels - 1));
            let squares = (first..=last).map(|k| values[i - c * after + k * after].powi(2));
            let base = self.bias + self.alpha / size as f64 * squares.sum::<f64>();
            value / libm::pow(base, self.beta)
        };
        let result: Vec<f64> = values.iter().enumerate().map(element).collect();
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &result)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let x = cx.ins[0];
        let shape = cx.shape(x);
        let axis = self.axis(shape.len());
        let channels = shape[axis] as i64;
        let square = cx.map(ScalarFn::Mul, &[x, x])?;
        let padded = cx.pad(square, axis, (self.size - 1) / 2, self.size / 2)?;
        let mut sum = cx.push(Slice::along(axis, 0, channels), &[padded])?;
        for shift in 1..self.size {
            let shifted = cx.push(Slice::along(axis, shift, shift + channels), &[padded])?;
            sum = cx.map(ScalarFn::Add, &[sum, shifted])?;
        }
        let mean = cx.with_constant(ScalarFn::Mul, sum, self.alpha / self.size as f64)?;
        let base = cx.with_constant(ScalarFn::Add, mean, self.bias)?;
        let power = cx.with_constant(ScalarFn::Pow, base, self.beta)?;
        vjp::through(cx.map(ScalarFn::Div, &[x, power])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.merged(self.clone(), &[Some(0)], &[0])
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let (shape, dtype) = (outs[0].shape(), ins[0].dtype);
        if self.channels_last && !shape.contains(&0) {
            return Lowered::graph(ins, |b, ins| self.over_padded(b, ins[0]));
        }
        let axis = self.axis(shape.len());
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let sum = n.reduce(Reduction::Sum, &[self.size as usize], |n, k| {
            let mut index = at.clone();
            index[axis] = at[axis].add(&k[0]).add_const(-(self.size - 1) / 2);
            let guard = Guard::new(index[axis].clone(), shape[axis]);
            let x = n.load_guarded(operand, &index, &[guard]);
            let x = n.cast(x, dtype.accumulator());
            n.apply(ScalarFn::Mul, &[x, x])
        });
        let scaled = with_constant(&mut n, ScalarFn::Mul, sum, self.alpha / self.size as f64);
        let base = with_constant(&mut n, ScalarFn::Add, scaled, self.bias);
        let divisor = power(&mut n, base, self.beta);
        let x = n.load(operand, &at);
        let x = n.cast(x, dtype.accumulator());
        let result = n.apply(ScalarFn::Div, &[x, divisor]);
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

impl Lrn {
    /// The dimension of the channels.
    fn axis(&self, rank: usize) -> usize {
        Layout::new(rank, self.channels_last).channels
    }

    /// By means over squares whose border is an op of its own, for channels that are neighbours in memory.
    fn over_padded(&self, b: &mut Builder, x: Value) -> Result<Values, Error> {
        let ty = b.ty(x).clone();
        let (shape, wide) = (ty.shape(), ty.dtype.accumulator());
        let channels = *shape.last().expect("infer checked the rank");
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let x = b.cast(x, wide)?;
        let square = b.map(ScalarFn::Mul, &[x, x])?;
        let square = b.reshape(square, &[rows, 1, channels])?;
        let zero = b.scalar(wide, 0.0);
        let pads = vec![(self.size - 1) / 2, self.size / 2];
        let pad = Pad { pads: pads.into(), axes: vec![2].into(), mode: PadMode::Constant };
        let padded = b.push1(pad, &[square, zero])?;
        let mean = b.push1(Pool::plain(PoolKind::Average, &[self.size]), &[padded])?;
        let mean = b.reshape(mean, &shape)?;
        let alpha = b.scalar(wide, self.alpha);
        let scaled = b.map(ScalarFn::Mul, &[mean, alpha])?;
        let bias = b.scalar(wide, self.bias);
        let base = b.map(ScalarFn::Add, &[scaled, bias])?;
        let divisor = power_of(b, base, self.beta)?;
        let result = b.map(ScalarFn::Div, &[x, divisor])?;
        Ok(Values::from_slice(&[b.cast(result, ty.dtype)?]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn windows_of_odd_and_even_size_agree_with_the_formula() {
        for size in 1..6 {
            for beta in [0.75, 0.5, 1.3] {
                for channels_last in [false, true] {
                    let op = Lrn { alpha: 0.3, beta, bias: 1.5, size, channels_last };
                    for dtype in [DType::F16, DType::F32, DType::F64] {
                        check(op.clone(), &[sample(dtype, &[2, 4, 3], 1)]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_window_by_hand() {
        let x = Tensor::new(&[1, 3], &[1f64, 2., 3.]);
        let y =
            check(Lrn { alpha: 2.0, beta: 1.0, bias: 1.0, size: 2, channels_last: false }, &[x])[0].to_f64s();
        assert_eq!(y, [1.0 / 6.0, 2.0 / 14.0, 3.0 / 10.0]);
    }
}
