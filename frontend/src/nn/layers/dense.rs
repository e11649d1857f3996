//! Layers without windows or time: dense, activations, shapes, embeddings.

use windlass_ir::ops::{Gather, Gelu, GeluForm, MatMul, Silu, Softmax};
use windlass_ir::{Error, ScalarFn, Value};

use super::{Layer, name, setters};
use crate::nn::initializers::Initializer;
use crate::nn::net::Net;
use crate::nn::regularizers::Regularizer;

/// What is applied to each element of a layer's result, or along its last dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// Nothing.
    #[default]
    Linear,
    /// `max(x, 0)`.
    Relu,
    /// `x`, or `alpha x` below 0.
    LeakyRelu(f64),
    /// `x`, or `e^x - 1` below 0.
    Elu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// `log(1 + e^x)`.
    Softplus,
    /// `x` times the standard normal distribution up to it.
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
    /// Probabilities along the last dimension.
    Softmax,
    /// Their logarithms.
    LogSoftmax,
}

impl Activation {
    /// Adds it to a network.
    pub fn apply(self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let with = |net: &mut Net, f: ScalarFn, x: Value, number: f64| {
            let number = net.builder().scalar_like(x, number);
            net.map(f, &[x, number])
        };
        // One of two values, by the sign of x.
        let below = |net: &mut Net, low: Value| {
            let negative = with(net, ScalarFn::Lt, x, 0.0)?;
            net.map(ScalarFn::Select, &[negative, low, x])
        };
        match self {
            Activation::Linear => Ok(x),
            Activation::Relu => net.map(ScalarFn::Relu, &[x]),
            Activation::LeakyRelu(alpha) => {
                let low = with(net, ScalarFn::Mul, x, alpha)?;
                below(net, low)
            }
            Activation::Elu => {
                // The exponential of what is above 0 must not overflow, for its gradient's sake.
                let capped = with(net, ScalarFn::Min, x, 0.0)?;
                let low = net.map(ScalarFn::Expm1, &[capped])?;
                below(net, low)
            }
            Activation::Sigmoid => net.map(ScalarFn::Sigmoid, &[x]),
            Activation::Tanh => net.map(ScalarFn::Tanh, &[x]),
            Activation::Softplus => {
                let size = net.map(ScalarFn::Abs, &[x])?;
                let negative = net.map(ScalarFn::Neg, &[size])?;
                let exp = net.map(ScalarFn::Exp, &[negative])?;
                let tail = net.map(ScalarFn::Log1p, &[exp])?;
                let positive = net.map(ScalarFn::Relu, &[x])?;
                net.map(ScalarFn::Add, &[positive, tail])
            }
            Activation::Gelu => net.push(Gelu { approximate: GeluForm::None }, &[x]),
            Activation::Silu => net.push(Silu { alpha: 1.0 }, &[x]),
            Activation::Softmax => net.push(Softmax::along(-1), &[x]),
            Activation::LogSoftmax => net.push(Softmax { log: true, ..Softmax::along(-1) }, &[x]),
        }
    }
}

impl Layer for Activation {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&None, net, "activation");
        (*self).apply(net, x)
    }
}

/// `activation(x kernel + bias)`: `x` `[.., inputs]`, `kernel` `[inputs, units]`.
#[derive(Clone, Debug)]
pub struct Dense {
    name: Option<String>,
    units: usize,
    activation: Activation,
    use_bias: bool,
    kernel_initializer: Initializer,
    kernel_regularizer: Regularizer,
}

setters!(Dense {
    /// What is applied to the result.
    activation: Activation,
    /// Whether a bias is added.
    use_bias: bool,
    /// What the kernel holds before training.
    kernel_initializer: Initializer,
    /// What the kernel costs.
    kernel_regularizer: Regularizer,
});

impl Dense {
    /// With so many results for each row, a bias and no activation.
    pub fn new(units: usize) -> Dense {
        Dense {
            name: None,
            units,
            activation: Activation::Linear,
            use_bias: true,
            kernel_initializer: Initializer::GlorotUniform,
            kernel_regularizer: Regularizer::default(),
        }
    }

    /// Adds it to a network.
    pub fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "dense");
        let shape = net.ty(x).shape();
        let inputs = shape.last().copied().unwrap_or(1);
        let kernel = net.variable(&name, "kernel", &[inputs, self.units], &self.kernel_initializer, true)?;
        self.kernel_regularizer.apply(net, kernel)?;
        // Rows of several dimensions are those of one matrix.
        let rows: usize = shape[..shape.len().saturating_sub(1)].iter().product();
        let matrix = net.push(windlass_ir::ops::Reshape::to(&[rows, inputs]), &[x])?;
        let mut y = net.push(MatMul::default(), &[matrix, kernel])?;
        if self.use_bias {
            let bias = net.variable(&name, "bias", &[self.units], &Initializer::Constant(0.0), true)?;
            y = net.map(ScalarFn::Add, &[y, bias])?;
        }
        let result: Vec<usize> =
            shape[..shape.len().saturating_sub(1)].iter().copied().chain([self.units]).collect();
        let y = net.push(windlass_ir::ops::Reshape::to(&result), &[y])?;
        self.activation.apply(net, y)
    }
}

impl Layer for Dense {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        Dense::apply(self, net, x)
    }
}

/// Each example's elements in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flatten;

impl Layer for Flatten {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&None, net, "flatten");
        net.push(windlass_ir::ops::Flatten { axis: 1 }, &[x])
    }
}

/// Each example's elements under another shape.
#[derive(Clone, Debug)]
pub struct Reshape(pub Vec<usize>);

impl Layer for Reshape {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        name(&None, net, "reshape");
        let batch = net.ty(x).shape().first().copied().unwrap_or(1);
        let shape: Vec<usize> = [batch].iter().chain(&self.0).copied().collect();
        net.push(windlass_ir::ops::Reshape::to(&shape), &[x])
    }
}

/// Rows of a table for integers: `x` `[..]`, the result `[.., features]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    name: Option<String>,
    entries: usize,
    features: usize,
    initializer: Initializer,
}

setters!(Embedding {
    /// What the table holds before training.
    initializer: Initializer,
});

impl Embedding {
    /// A table of so many entries.
    pub fn new(entries: usize, features: usize) -> Embedding {
        Embedding { name: None, entries, features, initializer: Initializer::Uniform(0.05) }
    }
}

impl Layer for Embedding {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "embedding");
        let table = net.variable(&name, "table", &[self.entries, self.features], &self.initializer, true)?;
        net.push(Gather { axis: 0 }, &[table, x])
    }
}
