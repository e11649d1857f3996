//! `lrn`: local response normalization across channels.

use super::formula::{power, with_constant};
use super::vjp;
use super::{Lowered, OpDef, Slice, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::loops::{Guard, NestBuilder, Reduction};
use crate::ops::movement::around;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// `x / (bias + alpha / size * s)^beta` for `x` `[N, C, spatial..]`, where s sums the squares of the
/// `size` channels around each, `c - (size - 1) / 2` to `c + size / 2`, as far as they exist.
///
/// - (C1) `x` is a float of rank 2 or more;
/// - (C2) `size` is positive.
///
/// ONNX: `LRN` (1..).
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
}

impl OpDef for Lrn {
    const NAMES: &'static [&'static str] = &["lrn"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("LRN", 1..=u32::MAX)];

    fn with_name(_: &str) -> Lrn {
        Lrn { alpha: 1e-4, beta: 0.75, bias: 1.0, size: 0 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("alpha", Slot::Float(&mut self.alpha))?;
        codec.attr("beta", Slot::Float(&mut self.beta))?;
        codec.attr("bias", Slot::Float(&mut self.bias))?;
        codec.attr("size", Slot::Int(&mut self.size))
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
        let (_, channels, after) = around(x.shape(), 1);
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
        let channels = cx.shape(x)[1] as i64;
        let square = cx.map(ScalarFn::Mul, &[x, x])?;
        let padded = cx.pad(square, 1, (self.size - 1) / 2, self.size / 2)?;
        let mut sum = cx.push(Slice::along(1, 0, channels), &[padded])?;
        for shift in 1..self.size {
            let shifted = cx.push(Slice::along(1, shift, shift + channels), &[padded])?;
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
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(dtype, &shape);
        let at = n.domain();
        let sum = n.reduce(Reduction::Sum, &[self.size as usize], |n, k| {
            let mut index = at.clone();
            index[1] = at[1].add(&k[0]).add_const(-(self.size - 1) / 2);
            let guard = Guard::new(index[1].clone(), shape[1]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn windows_of_odd_and_even_size_agree_with_the_formula() {
        for size in 1..6 {
            for beta in [0.75, 0.5, 1.3] {
                let op = Lrn { alpha: 0.3, beta, bias: 1.5, size };
                for dtype in [DType::F16, DType::F32, DType::F64] {
                    check(op.clone(), &[sample(dtype, &[2, 4, 3], 1)]);
                }
            }
        }
    }

    #[test]
    fn a_window_by_hand() {
        let x = Tensor::new(&[1, 3], &[1f64, 2., 3.]);
        let y = check(Lrn { alpha: 2.0, beta: 1.0, bias: 1.0, size: 2 }, &[x])[0].to_f64s();
        assert_eq!(y, [1.0 / 6.0, 2.0 / 14.0, 3.0 / 10.0]);
    }
}
