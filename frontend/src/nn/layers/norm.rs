//! Normalization over the batch and over features.

use windlass_ir::ops::{self, Reduce, ReduceKind};
use windlass_ir::{Error, ScalarFn, Value};

use super::{Layer, name, setters};
use crate::nn::initializers::Initializer;
use crate::nn::net::Net;
use ScalarFn::{Add, Mul, Sqrt, Sub};

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` for each channel, the last dimension: with the batch's own
/// statistics in training, which running ones follow, and with these afterwards.
#[derive(Clone, Debug)]
pub struct BatchNormalization {
    name: Option<String>,
    momentum: f64,
    epsilon: f64,
    unbiased: bool,
}

setters!(BatchNormalization {
    /// What is kept of the running statistics at each step.
    momentum: f64,
    /// Added to the variance.
    epsilon: f64,
    /// Whether the running variance follows the sum of squares over `n - 1`, as in PyTorch, rather than over `n`.
    unbiased: bool,
});

impl Default for BatchNormalization {
    /// With Keras's momentum of 0.99 and epsilon of 0.001.
    fn default() -> BatchNormalization {
        BatchNormalization { name: None, momentum: 0.99, epsilon: 1e-3, unbiased: false }
    }
}

/// `a x + b y`.
fn blend(net: &mut Net, (a, x): (f64, Value), (b, y): (f64, Value)) -> Result<Value, Error> {
    let (a, b) = (net.builder().scalar_like(x, a), net.builder().scalar_like(y, b));
    let part = net.map(Mul, &[y, b])?;
    net.map(ScalarFn::Fma, &[x, a, part])
}

impl Layer for BatchNormalization {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "batch_normalization");
        let shape = net.ty(x).shape();
        let channels = shape.last().copied().unwrap_or(1);
        let (zeros, ones) = (Initializer::Constant(0.0), Initializer::Constant(1.0));
        let gamma = net.variable(&name, "gamma", &[channels], &ones, true)?;
        let beta = net.variable(&name, "beta", &[channels], &zeros, true)?;
        let running_mean = net.variable(&name, "mean", &[channels], &zeros, false)?;
        let running_variance = net.variable(&name, "var", &[channels], &ones, false)?;
        if !net.is_training() {
            let op = ops::BatchNorm { epsilon: self.epsilon, channels_last: true };
            return net.push(op, &[x, gamma, beta, running_mean, running_variance]);
        }
        let axes: Vec<i64> = (0..shape.len() as i64 - 1).collect();
        let over = Reduce::over(ReduceKind::Mean, &axes, false);
        let mean = net.push(over.clone(), &[x])?;
        let deviation = net.map(Sub, &[x, mean])?;
        let square = net.map(Mul, &[deviation, deviation])?;
        let variance = net.push(over, &[square])?;
        let kept = self.momentum;
        let next = blend(net, (kept, running_mean), (1.0 - kept, mean))?;
        net.update(running_mean, next);
        let count: usize = shape[..shape.len() - 1].iter().product();
        let scale = if self.unbiased && count > 1 { count as f64 / (count as f64 - 1.0) } else { 1.0 };
        let next = blend(net, (kept, running_variance), ((1.0 - kept) * scale, variance))?;
        net.update(running_variance, next);
        let epsilon = net.builder().scalar_like(variance, self.epsilon);
        let shifted = net.map(Add, &[variance, epsilon])?;
        let root = net.map(Sqrt, &[shifted])?;
        let factor = net.map(ScalarFn::Div, &[gamma, root])?;
        let scaled = net.map(Mul, &[deviation, factor])?;
        net.map(Add, &[scaled, beta])
    }
}

/// Each row, along the last dimension, scaled to mean 0 and variance 1 (or with `rms` to mean square 1), times gamma
/// plus beta.
#[derive(Clone, Debug)]
pub struct LayerNormalization {
    name: Option<String>,
    epsilon: f64,
    rms: bool,
}

setters!(LayerNormalization {
    /// Added to the variance.
    epsilon: f64,
    /// Whether means are left in and there is no beta: `RMSNormalization`.
    rms: bool,
});

impl Default for LayerNormalization {
    /// With Keras's epsilon of 0.001.
    fn default() -> LayerNormalization {
        LayerNormalization { name: None, epsilon: 1e-3, rms: false }
    }
}

impl Layer for LayerNormalization {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let kind = if self.rms { "rms_normalization" } else { "layer_normalization" };
        let name = name(&self.name, net, kind);
        let features = net.ty(x).shape().last().copied().unwrap_or(1);
        let mut ins = vec![x, net.variable(&name, "gamma", &[features], &Initializer::Constant(1.0), true)?];
        if !self.rms {
            ins.push(net.variable(&name, "beta", &[features], &Initializer::Constant(0.0), true)?);
        }
        net.push(ops::LayerNorm { rms: self.rms, axis: -1, epsilon: self.epsilon }, &ins)
    }
}
