//! A transformer's encoder block, and what joins branches of a network.

use windlass_ir::ops::Concat;
use windlass_ir::{Error, ScalarFn, Value};

use super::attention::part;
use super::{Activation, Dense, Dropout, Layer, LayerNormalization, MultiHeadAttention, name, setters};
use crate::nn::net::Net;

/// The sum of values, of which there is at least one.
pub fn add(net: &mut Net, values: &[Value]) -> Result<Value, Error> {
    let sum = values.iter().copied().map(Ok).reduce(|sum, value| net.map(ScalarFn::Add, &[sum?, value?]));
    sum.unwrap_or_else(|| net.map(ScalarFn::Add, values))
}

/// Values side by side along an axis, which may count from the end.
pub fn concatenate(net: &mut Net, values: &[Value], axis: i64) -> Result<Value, Error> {
    net.push(Concat { axis }, values)
}

/// An encoder block of sequences `[N, S, d]`: attention of several heads and two dense layers, each added to what it reads
/// and normalized (Vaswani et al., "Attention Is All You Need", 2017), with the defaults of KerasHub's layer of this name.
#[derive(Clone, Debug)]
pub struct TransformerEncoder {
    name: Option<String>,
    heads: usize,
    intermediate_dim: usize,
    activation: Activation,
    dropout: f64,
    epsilon: f64,
    normalize_first: bool,
}

setters!(TransformerEncoder {
    /// What is done to the first dense layer's results; ReLU if it is not set.
    activation: Activation,
    /// The probability with which results of attention and of the dense layers are dropped.
    dropout: f64,
    /// What is added to variances.
    epsilon: f64,
    /// Whether what attention and the dense layers read is normalized, in place of the sums.
    normalize_first: bool,
});

impl TransformerEncoder {
    /// With so many heads, which share the features, and so many units between the dense layers.
    pub fn new(heads: usize, intermediate_dim: usize) -> TransformerEncoder {
        TransformerEncoder {
            name: None,
            heads,
            intermediate_dim,
            activation: Activation::Relu,
            dropout: 0.0,
            epsilon: 1e-5,
            normalize_first: false,
        }
    }

    /// `x + f(x)`, with normalization before `f` or after the sum.
    fn beside(
        &self,
        net: &mut Net,
        name: &str,
        x: Value,
        f: &dyn Fn(&mut Net, Value) -> Result<Value, Error>,
    ) -> Result<Value, Error> {
        let norm = LayerNormalization::default().named(&part(name, "norm")).epsilon(self.epsilon);
        let read = if self.normalize_first { norm.apply(net, x)? } else { x };
        let mut y = f(net, read)?;
        if self.dropout > 0.0 {
            y = Dropout::new(self.dropout).named(&part(name, "dropout")).apply(net, y)?;
        }
        let sum = net.map(ScalarFn::Add, &[x, y])?;
        if self.normalize_first { Ok(sum) } else { norm.apply(net, sum) }
    }
}

impl Layer for TransformerEncoder {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "transformer_encoder");
        let width = net.ty(x).shape().last().copied().unwrap_or(1);
        let (attention, dense) = (part(&name, "attention"), part(&name, "feedforward"));
        let heads = MultiHeadAttention::new(self.heads, width / self.heads.max(1)).named(&attention);
        let x = self.beside(net, &attention, x, &|net, x| heads.apply(net, x))?;
        let inner = Dense::new(self.intermediate_dim).named(&part(&dense, "intermediate"));
        let inner = inner.activation(self.activation);
        let outer = Dense::new(width).named(&part(&dense, "output"));
        self.beside(net, &dense, x, &|net, x| {
            let x = inner.apply(net, x)?;
            outer.apply(net, x)
        })
    }
}
