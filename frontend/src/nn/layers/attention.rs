//! Attention of a sequence to itself or to another.

use windlass_ir::ops::{MatMul, Reshape, Softmax, Transpose};
use windlass_ir::{Error, ScalarFn, Value};

use super::dense::Dense;
use super::{Layer, name, setters};
use crate::nn::net::Net;

/// `softmax(q k' * scale) v`, for `q` `[.., S, d]`, `k` `[.., T, d]` and `v` `[.., T, e]`.
fn attend(net: &mut Net, q: Value, k: Value, v: Value, scale: f64) -> Result<Value, Error> {
    let scores = net.push(MatMul { trans_a: false, trans_b: true }, &[q, k])?;
    let scale = net.builder().scalar_like(scores, scale);
    let scores = net.map(ScalarFn::Mul, &[scores, scale])?;
    let shares = net.push(Softmax::along(-1), &[scores])?;
    net.push(MatMul::default(), &[shares, v])
}

/// One head: `softmax(q k' / sqrt(d)) v` with q, k and v dense functions of `x` `[N, S, d]`.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    name: Option<String>,
    key_dim: usize,
    scale: Option<f64>,
}

setters!(SelfAttention {
    /// What scores are multiplied by; one over the root of the key's size if there is none.
    scale: Option<f64>,
});

impl SelfAttention {
    /// With keys and values of so many features.
    pub fn new(key_dim: usize) -> SelfAttention {
        SelfAttention { name: None, key_dim, scale: None }
    }
}

/// A layer's part: its own name, or that of the layer and the part.
pub(super) fn part(layer: &str, part: &str) -> String {
    if layer.is_empty() { part.to_string() } else { format!("{layer}.{part}") }
}

impl Layer for SelfAttention {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "self_attention");
        let [q, k, v] =
            ["q", "k", "v"].map(|p| Dense::new(self.key_dim).named(&part(&name, p)).apply(net, x));
        attend(net, q?, k?, v?, self.scale.unwrap_or(1.0 / (self.key_dim as f64).sqrt()))
    }
}

/// Several heads side by side, each with its own columns of q, k and v, and a dense function of all of them.
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    name: Option<String>,
    heads: usize,
    key_dim: usize,
}

setters!(MultiHeadAttention {});

impl MultiHeadAttention {
    /// With so many heads of so many features each.
    pub fn new(heads: usize, key_dim: usize) -> MultiHeadAttention {
        MultiHeadAttention { name: None, heads, key_dim }
    }

    /// Attends from one sequence to another.
    pub fn apply_to(&self, net: &mut Net, query: Value, value: Value) -> Result<Value, Error> {
        let name = name(&self.name, net, "multi_head_attention");
        let width = net.ty(query).shape().last().copied().unwrap_or(1);
        let split = |net: &mut Net, p: &str, x: Value| -> Result<Value, Error> {
            let shape = net.ty(x).shape();
            let y = Dense::new(self.heads * self.key_dim).named(&part(&name, p)).apply(net, x)?;
            let y = net.push(Reshape::to(&[shape[0], shape[1], self.heads, self.key_dim]), &[y])?;
            net.push(Transpose::by(&[0, 2, 1, 3]), &[y])
        };
        let (q, k, v) = (split(net, "q", query)?, split(net, "k", value)?, split(net, "v", value)?);
        let y = attend(net, q, k, v, 1.0 / (self.key_dim as f64).sqrt())?;
        let y = net.push(Transpose::by(&[0, 2, 1, 3]), &[y])?;
        let shape = net.ty(y).shape();
        let y = net.push(Reshape::to(&[shape[0], shape[1], self.heads * self.key_dim]), &[y])?;
        Dense::new(width).named(&part(&name, "o")).apply(net, y)
    }
}

impl Layer for MultiHeadAttention {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        self.apply_to(net, x, x)
    }
}
