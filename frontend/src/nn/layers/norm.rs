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
        let statistics = (self.momentum, self.epsilon, self.unbiased);
        let parts = [gamma, beta, running_mean, running_variance];
        batch_normalized(net, (x, shape.len() - 1), parts, statistics)
    }
}

/// `x` with channels along an axis, scaled by the batch's own statistics, which the running ones follow: for gamma, beta,
/// the running mean and variance; what is kept of these, epsilon, and whether the variance is over `n - 1`.
pub(in crate::nn) fn batch_normalized(
    net: &mut Net,
    (x, axis): (Value, usize),
    [gamma, beta, running_mean, running_variance]: [Value; 4],
    (kept, epsilon, unbiased): (f64, f64, bool),
) -> Result<Value, Error> {
    let shape = net.ty(x).shape();
    let axes: Vec<i64> = (0..shape.len()).filter(|&i| i != axis).map(|i| i as i64).collect();
    let over = Reduce::over(ReduceKind::Mean, &axes, false);
    // Channels before other dimensions need sizes of 1 for those.
    let mut spread = vec![shape[axis]];
    spread.resize(shape.len() - axis, 1);
    let dtype = net.ty(x).dtype;
    let along = |net: &mut Net, part: Value| -> Result<Value, Error> {
        let part = net.builder().cast(part, dtype)?;
        if spread.len() == 1 { Ok(part) } else { net.push(ops::Reshape::to(&spread), &[part]) }
    };
    let mean = net.push(over.clone(), &[x])?;
    let centre = along(net, mean)?;
    let deviation = net.map(Sub, &[x, centre])?;
    let square = net.map(Mul, &[deviation, deviation])?;
    let variance = net.push(over, &[square])?;
    let count: usize = shape.iter().product::<usize>() / shape[axis].max(1);
    let scale = if unbiased && count > 1 { count as f64 / (count as f64 - 1.0) } else { 1.0 };
    for (running, own, share) in
        [(running_mean, mean, 1.0 - kept), (running_variance, variance, (1.0 - kept) * scale)]
    {
        let dtype = net.ty(running).dtype;
        let own = net.builder().cast(own, dtype)?;
        let next = blend(net, (kept, running), (share, own))?;
        net.update(running, next);
    }
    let epsilon = net.builder().scalar_like(variance, epsilon);
    let shifted = net.map(Add, &[variance, epsilon])?;
    let root = net.map(Sqrt, &[shifted])?;
    let gamma = net.builder().cast(gamma, dtype)?;
    let factor = net.map(ScalarFn::Div, &[gamma, root])?;
    let (factor, beta) = (along(net, factor)?, along(net, beta)?);
    let scaled = net.map(Mul, &[deviation, factor])?;
    net.map(Add, &[scaled, beta])
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
