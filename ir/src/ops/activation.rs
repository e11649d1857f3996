//! The activation functions of recurrent cells, by their ONNX names.

use std::convert::Infallible;

use crate::error::{Error, Violation};
use crate::graph::{Builder, Value};
use crate::loops::{KernelBuilder, NestBuilder, Val};
use crate::scalar::ScalarFn;

/// What scalar functions are applied in: a kernel's loops, a formula or a graph.
pub(crate) trait Formulas {
    type Value: Copy;
    /// Why a function cannot be applied.
    type Failure;
    /// A constant of the type of `like`.
    fn constant_like(&mut self, like: Self::Value, value: f64) -> Self::Value;
    fn apply(&mut self, f: ScalarFn, args: &[Self::Value]) -> Result<Self::Value, Self::Failure>;
}

impl Formulas for KernelBuilder {
    type Value = Val;
    type Failure = Infallible;

    fn constant_like(&mut self, like: Val, value: f64) -> Val {
        let dtype = self.dtype(like);
        self.constant(dtype, value)
    }

    fn apply(&mut self, f: ScalarFn, args: &[Val]) -> Result<Val, Infallible> {
        Ok(KernelBuilder::apply(self, f, args))
    }
}

impl Formulas for NestBuilder {
    type Value = Val;
    type Failure = Infallible;

    fn constant_like(&mut self, like: Val, value: f64) -> Val {
        let dtype = self.dtype(like);
        self.constant(dtype, value)
    }

    fn apply(&mut self, f: ScalarFn, args: &[Val]) -> Result<Val, Infallible> {
        Ok(NestBuilder::apply(self, f, args))
    }
}

impl Formulas for Builder {
    type Value = Value;
    type Failure = Error;

    fn constant_like(&mut self, like: Value, value: f64) -> Value {
        self.scalar_like(like, value)
    }

    fn apply(&mut self, f: ScalarFn, args: &[Value]) -> Result<Value, Error> {
        self.map(f, args)
    }
}

/// An activation function with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Relu,
    Tanh,
    Sigmoid,
    Softsign,
    Softplus,
    /// `alpha * x + beta`.
    Affine(f64, f64),
    /// `x` or `alpha * x`.
    LeakyRelu(f64),
    /// `x` above alpha, else 0.
    ThresholdedRelu(f64),
    /// `alpha * tanh(beta * x)`.
    ScaledTanh(f64, f64),
    /// `alpha * x + beta` within 0 and 1.
    HardSigmoid(f64, f64),
    /// `x` or `alpha * (e^x - 1)`.
    Elu(f64),
}

/// Names separated by spaces, parameters taken in order by the functions that have them. Violates
/// `constraint`.
pub(crate) fn parse(
    names: &str,
    alphas: &[f64],
    betas: &[f64],
    constraint: &'static str,
) -> Result<Vec<Activation>, Violation> {
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    let mut parsed = Vec::new();
    for name in names.split_whitespace() {
        let mut alpha = |default: f64| alphas.next().unwrap_or(default);
        let mut beta = |default: f64| betas.next().unwrap_or(default);
        parsed.push(match name.to_ascii_lowercase().as_str() {
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            "affine" => Activation::Affine(alpha(1.0), beta(0.0)),
            "leakyrelu" => Activation::LeakyRelu(alpha(0.01)),
            "thresholdedrelu" => Activation::ThresholdedRelu(alpha(1.0)),
            "scaledtanh" => Activation::ScaledTanh(alpha(1.0), beta(1.0)),
            "hardsigmoid" => Activation::HardSigmoid(alpha(0.2), beta(0.5)),
            "elu" => Activation::Elu(alpha(1.0)),
            _ => return Err(Violation::new(constraint, format!("no activation is called `{name}`"))),
        });
    }
    require_all_taken(alphas.len() + betas.len(), constraint)?;
    Ok(parsed)
}

fn require_all_taken(left: usize, constraint: &'static str) -> Result<(), Violation> {
    match left {
        0 => Ok(()),
        _ => Err(Violation::new(constraint, format!("no activation takes the last {left} parameters"))),
    }
}

/// The names, alphas and betas that [`parse`] reads back.
pub(crate) fn spell(activations: &[Activation]) -> (String, Vec<f64>, Vec<f64>) {
    let (mut names, mut alphas, mut betas) = (Vec::new(), Vec::new(), Vec::new());
    for activation in activations {
        let (name, parameters): (&str, &[f64]) = match activation {
            Activation::Relu => ("Relu", &[]),
            Activation::Tanh => ("Tanh", &[]),
            Activation::Sigmoid => ("Sigmoid", &[]),
            Activation::Softsign => ("Softsign", &[]),
            Activation::Softplus => ("Softplus", &[]),
            Activation::Affine(alpha, beta) => ("Affine", &[*alpha, *beta]),
            Activation::LeakyRelu(alpha) => ("LeakyRelu", &[*alpha]),
            Activation::ThresholdedRelu(alpha) => ("ThresholdedRelu", &[*alpha]),
            Activation::ScaledTanh(alpha, beta) => ("ScaledTanh", &[*alpha, *beta]),
            Activation::HardSigmoid(alpha, beta) => ("HardSigmoid", &[*alpha, *beta]),
            Activation::Elu(alpha) => ("Elu", &[*alpha]),
        };
        names.push(name);
        alphas.extend(parameters.first());
        betas.extend(parameters.get(1));
    }
    (names.join(" "), alphas, betas)
}

impl Activation {
    /// The value at `x`.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Activation::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Activation::Tanh => libm::tanh(x),
            Activation::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Activation::Softsign => x / (1.0 + x.abs()),
            Activation::Softplus => x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
            Activation::Affine(alpha, beta) => alpha * x + beta,
            Activation::LeakyRelu(alpha) => {
                if x < 0.0 {
                    alpha * x
                } else {
                    x
                }
            }
            Activation::ThresholdedRelu(alpha) => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Activation::ScaledTanh(alpha, beta) => alpha * libm::tanh(beta * x),
            Activation::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
            Activation::Elu(alpha) => {
                if x < 0.0 {
                    alpha * libm::expm1(x)
                } else {
                    x
                }
            }
        }
    }

    /// The value of `x`, in a kernel or a graph.
    pub fn emit<B: Formulas>(self, b: &mut B, x: B::Value) -> Result<B::Value, B::Failure> {
        let with = |b: &mut B, f: ScalarFn, x: B::Value, value: f64| {
            let value = b.constant_like(x, value);
            b.apply(f, &[x, value])
        };
        Ok(match self {
            Activation::Relu => b.apply(ScalarFn::Relu, &[x])?,
            Activation::Tanh => b.apply(ScalarFn::Tanh, &[x])?,
            Activation::Sigmoid => b.apply(ScalarFn::Sigmoid, &[x])?,
            Activation::Softsign => {
                let size = b.apply(ScalarFn::Abs, &[x])?;
                let divisor = with(b, ScalarFn::Add, size, 1.0)?;
                b.apply(ScalarFn::Div, &[x, divisor])?
            }
            Activation::Softplus => {
                let size = b.apply(ScalarFn::Abs, &[x])?;
                let negative = b.apply(ScalarFn::Neg, &[size])?;
                let exp = b.apply(ScalarFn::Exp, &[negative])?;
                let log = b.apply(ScalarFn::Log1p, &[exp])?;
                let positive = b.apply(ScalarFn::Relu, &[x])?;
                b.apply(ScalarFn::Add, &[positive, log])?
            }
            Activation::Affine(alpha, beta) => {
                let (alpha, beta) = (b.constant_like(x, alpha), b.constant_like(x, beta));
                b.apply(ScalarFn::Fma, &[alpha, x, beta])?
            }
            Activation::LeakyRelu(alpha) => {
                let scaled = with(b, ScalarFn::Mul, x, alpha)?;
                let below = with(b, ScalarFn::Lt, x, 0.0)?;
                b.apply(ScalarFn::Select, &[below, scaled, x])?
            }
            Activation::ThresholdedRelu(alpha) => {
                let above = with(b, ScalarFn::Gt, x, alpha)?;
                let zero = b.constant_like(x, 0.0);
                b.apply(ScalarFn::Select, &[above, x, zero])?
            }
            Activation::ScaledTanh(alpha, beta) => {
                let scaled = with(b, ScalarFn::Mul, x, beta)?;
                let tanh = b.apply(ScalarFn::Tanh, &[scaled])?;
                with(b, ScalarFn::Mul, tanh, alpha)?
            }
            Activation::HardSigmoid(alpha, beta) => {
                let line = Activation::Affine(alpha, beta).emit(b, x)?;
                let (zero, one) = (b.constant_like(x, 0.0), b.constant_like(x, 1.0));
                let raised = b.apply(ScalarFn::Max, &[line, zero])?;
                b.apply(ScalarFn::Min, &[raised, one])?
            }
            Activation::Elu(alpha) => {
                let grown = b.apply(ScalarFn::Expm1, &[x])?;
                let scaled = with(b, ScalarFn::Mul, grown, alpha)?;
                let below = with(b, ScalarFn::Lt, x, 0.0)?;
                b.apply(ScalarFn::Select, &[below, scaled, x])?
            }
        })
    }
}
