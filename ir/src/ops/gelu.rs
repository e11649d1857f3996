//! `gelu` and `silu`: smooth gates of an element by itself.

use super::formula::with_constant;
use super::vjp;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::error::{Error, Violation};
use crate::loops::NestBuilder;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// How `gelu` computes the normal distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeluForm {
    /// `(1 + erf(x / sqrt 2)) / 2`.
    None,
    /// `(1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    Tanh,
}

impl Keyword for GeluForm {
    const ALL: &'static [(&'static str, GeluForm)] = &[("none", GeluForm::None), ("tanh", GeluForm::Tanh)];
}

/// `x` times the probability that a standard normal variable is below `x`. f16 and bf16 are computed
/// in f32 and rounded once.
///
/// - (C1) the operand is a float.
///
/// ONNX: `Gelu` (20..). Source: Hendrycks and Gimpel, "Gaussian Error Linear Units".
#[derive(Clone, Debug, PartialEq)]
pub struct Gelu {
    /// Exact, or by tanh.
    pub approximate: GeluForm,
}

/// sqrt(2 / pi).
const TANH_SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// The cubic coefficient of the tanh form.
const TANH_CUBIC: f64 = 0.044715;

impl OpDef for Gelu {
    const NAMES: &'static [&'static str] = &["gelu"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Gelu", 20..=u32::MAX)];

    fn with_name(_: &str) -> Gelu {
        Gelu { approximate: GeluForm::None }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("approximate", Slot::Keyword(&mut self.approximate))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype.is_float(), "C1", "{} is not a float", ins[0]);
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let gelu = |x: f64| match self.approximate {
            // erfc keeps the digits of 1 + erf where it is nearly 0.
            GeluForm::None => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            GeluForm::Tanh => 0.5 * x * (1.0 + libm::tanh(TANH_SCALE * (x + TANH_CUBIC * x * x * x))),
        };
        Ok(vec![map(&ins[0], gelu)])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let x = cx.ins[0];
        let inner = match self.approximate {
            GeluForm::None => {
                let scaled = cx.with_constant(ScalarFn::Mul, x, std::f64::consts::FRAC_1_SQRT_2)?;
                cx.map(ScalarFn::Erf, &[scaled])?
            }
            GeluForm::Tanh => {
                let square = cx.map(ScalarFn::Mul, &[x, x])?;
                let scaled = cx.with_constant(ScalarFn::Mul, square, TANH_CUBIC)?;
                let shifted = cx.with_constant(ScalarFn::Add, scaled, 1.0)?;
                let product = cx.map(ScalarFn::Mul, &[x, shifted])?;
                let scaled = cx.with_constant(ScalarFn::Mul, product, TANH_SCALE)?;
                cx.map(ScalarFn::Tanh, &[scaled])?
            }
        };
        let gate = cx.with_constant(ScalarFn::Add, inner, 1.0)?;
        let half = cx.with_constant(ScalarFn::Mul, x, 0.5)?;
        vjp::through(cx.map(ScalarFn::Mul, &[half, gate])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.along(self.clone())
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let dtype = ins[0].dtype;
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(dtype, &ins[0].shape());
        let x = n.load(operand, &n.domain());
        let x = n.cast(x, dtype.accumulator());
        let inner = match self.approximate {
            GeluForm::None => {
                let scaled = with_constant(&mut n, ScalarFn::Mul, x, std::f64::consts::FRAC_1_SQRT_2);
                n.apply(ScalarFn::Erf, &[scaled])
            }
            GeluForm::Tanh => {
                let square = n.apply(ScalarFn::Mul, &[x, x]);
                let scaled = with_constant(&mut n, ScalarFn::Mul, square, TANH_CUBIC);
                let shifted = with_constant(&mut n, ScalarFn::Add, scaled, 1.0);
                let product = n.apply(ScalarFn::Mul, &[x, shifted]);
                let scaled = with_constant(&mut n, ScalarFn::Mul, product, TANH_SCALE);
                n.apply(ScalarFn::Tanh, &[scaled])
            }
        };
        let gate = with_constant(&mut n, ScalarFn::Add, inner, 1.0);
        let half = with_constant(&mut n, ScalarFn::Mul, x, 0.5);
        let result = n.apply(ScalarFn::Mul, &[half, gate]);
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

/// `x * sigmoid(alpha * x)`. f16 and bf16 are computed in f32 and rounded once.
///
/// - (C1) the operand is a float.
///
/// ONNX: `Swish` (24..); SiLU is the case of alpha 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Silu {
    /// The slope of the gate.
    pub alpha: f64,
}

impl OpDef for Silu {
    const NAMES: &'static [&'static str] = &["silu"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Swish", 24..=u32::MAX)];

    fn with_name(_: &str) -> Silu {
        Silu { alpha: 1.0 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("alpha", Slot::Float(&mut self.alpha))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype.is_float(), "C1", "{} is not a float", ins[0]);
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        Ok(vec![map(&ins[0], |x| x / (1.0 + libm::exp(-self.alpha * x)))])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let slope = cx.with_constant(ScalarFn::Mul, cx.ins[0], self.alpha)?;
        let gate = cx.map(ScalarFn::Sigmoid, &[slope])?;
        vjp::through(cx.map(ScalarFn::Mul, &[cx.ins[0], gate])?)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.along(self.clone())
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let dtype = ins[0].dtype;
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(dtype, &ins[0].shape());
        let x = n.load(operand, &n.domain());
        let x = n.cast(x, dtype.accumulator());
        let slope = if self.alpha == 1.0 { x } else { with_constant(&mut n, ScalarFn::Mul, x, self.alpha) };
        let gate = n.apply(ScalarFn::Sigmoid, &[slope]);
        let result = n.apply(ScalarFn::Mul, &[x, gate]);
        let result = n.cast(result, dtype);
        Ok(Lowered::nest(n.finish(&[result])))
    }
}

/// Every element through a function, rounded once.
fn map(x: &Tensor, f: impl Fn(f64) -> f64) -> Tensor {
    let values: Vec<f64> = x.to_f64s().into_iter().map(f).collect();
    Tensor::from_f64s(x.dtype(), x.shape(), &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check, sample};

    #[test]
    fn known_values() {
        let x = Tensor::new(&[3], &[-1f64, 0., 1.]);
        let near = |found: Vec<f64>, expected: [f64; 3]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        let gelu = |approximate| check(Gelu { approximate }, std::slice::from_ref(&x))[0].to_f64s();
        near(gelu(GeluForm::None), [-0.158_655_253_931_457_05, 0.0, 0.841_344_746_068_542_9]);
        near(gelu(GeluForm::Tanh), [-0.158_808_009_391_722_8, 0.0, 0.841_191_990_608_277_2]);
        let silu = check(Silu { alpha: 1.0 }, std::slice::from_ref(&x))[0].to_f64s();
        near(silu, [-0.268_941_421_369_995_1, 0.0, 0.731_058_578_630_004_9]);
    }

    #[test]
    fn every_float_agrees_with_the_formula() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let x = sample(dtype, &[3, 5], 4);
            check(Gelu { approximate: GeluForm::None }, std::slice::from_ref(&x));
            check(Gelu { approximate: GeluForm::Tanh }, std::slice::from_ref(&x));
            check(Silu { alpha: 1.0 }, std::slice::from_ref(&x));
            check(Silu { alpha: 0.7 }, &[x]);
        }
    }
}
