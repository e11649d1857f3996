//! Recurrent layers: `x` `[N, T, features]`, states `[N, units]`.

use windlass_ir::ops::{self, CellKind, Concat, Reshape, Slice, Transpose};
use windlass_ir::{Error, Tensor, Value};

use super::{Layer, name};
use crate::nn::initializers::Initializer;
use crate::nn::net::Net;

/// One cell over the steps of a sequence.
#[derive(Clone, Debug)]
struct Recurrent {
    name: Option<String>,
    units: usize,
    kind: CellKind,
    return_sequences: bool,
    reversed: bool,
    forget_bias: bool,
}

macro_rules! recurrent {
    ($(#[$doc:meta])* $layer:ident $kind:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $layer(Recurrent);

        impl $layer {
            /// With so many units; the result is that of the last step.
            pub fn new(units: usize) -> $layer {
                $layer(Recurrent {
                    name: None,
                    units,
                    kind: CellKind::$kind,
                    return_sequences: false,
                    reversed: false,
                    forget_bias: CellKind::$kind == CellKind::Lstm,
                })
            }

            /// With a name, which its variables begin with.
            pub fn named(mut self, name: &str) -> $layer {
                self.0.name = Some(name.to_string());
                self
            }

            /// Whether the result has every step, `[N, T, units]`.
            pub fn return_sequences(mut self, every: bool) -> $layer {
                self.0.return_sequences = every;
                self
            }

            /// Whether sequences are run from their end.
            pub fn go_backwards(mut self, reversed: bool) -> $layer {
                self.0.reversed = reversed;
                self
            }
        }

        impl From<$layer> for Bidirectional {
            fn from(layer: $layer) -> Bidirectional {
                Bidirectional(layer.0)
            }
        }

        impl Layer for $layer {
            fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
                self.0.apply(net, x)
            }
        }
    };
}

/// A recurrent layer in both directions, each with weights of its own, the results side by side.
#[derive(Clone, Debug)]
pub struct Bidirectional(Recurrent);

impl Bidirectional {
    /// A layer and its reverse.
    pub fn new(layer: impl Into<Bidirectional>) -> Bidirectional {
        layer.into()
    }
}

impl Layer for Bidirectional {
    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let name = name(&self.0.name, net, "bidirectional");
        let mut parts = Vec::new();
        for (direction, reversed) in [("forward", false), ("backward", true)] {
            let layer = Recurrent { name: Some(format!("{name}.{direction}")), reversed, ..self.0.clone() };
            let y = layer.apply(net, x)?;
            // Steps are joined with those of the same place.
            let turn = reversed && self.0.return_sequences;
            parts.push(if turn { net.push(Slice::backwards(1), &[y])? } else { y });
        }
        net.push(Concat { axis: -1 }, &parts)
    }
}

recurrent!(
    /// `h' = tanh(x kernel + h recurrent + bias)`.
    SimpleRnn Rnn
);
recurrent!(
    /// A long short-term memory, its gates in Keras's order: input, forget, cell, output.
    Lstm Lstm
);
recurrent!(
    /// A gated recurrent unit, its gates in Keras's order: update, reset, hidden; reset after the product.
    Gru Gru
);

impl Recurrent {
    /// The columns of gates in ONNX's order.
    fn in_order(&self, net: &mut Net, x: Value, axis: usize) -> Result<Value, Error> {
        // Keras has i, f, c, o; ONNX i, o, f, c.
        let order: &[usize] = match self.kind {
            CellKind::Lstm => &[0, 3, 1, 2],
            CellKind::Rnn | CellKind::Gru => return Ok(x),
        };
        let mut parts = Vec::new();
        for &gate in order {
            let (from, to) = (gate * self.units, (gate + 1) * self.units);
            parts.push(net.push(Slice::along(axis, from as i64, to as i64), &[x])?);
        }
        net.push(Concat { axis: axis as i64 }, &parts)
    }

    fn apply(&self, net: &mut Net, x: Value) -> Result<Value, Error> {
        let kind = match self.kind {
            CellKind::Rnn => "simple_rnn",
            CellKind::Lstm => "lstm",
            CellKind::Gru => "gru",
        };
        let name = name(&self.name, net, kind);
        let shape = net.ty(x).shape();
        let (batch, steps, features) = (shape[0], shape[1], shape[2]);
        let columns = self.kind.gates() * self.units;
        let kernel =
            net.variable(&name, "kernel", &[features, columns], &Initializer::GlorotUniform, true)?;
        let recurrent =
            net.variable(&name, "recurrent", &[self.units, columns], &Initializer::Orthogonal, true)?;
        let zeros = Initializer::Constant(0.0);
        let own = if self.forget_bias { Initializer::UnitForget } else { zeros.clone() };
        let bias = net.variable(&name, "bias", &[columns], &own, true)?;
        let mut weights = Vec::new();
        for (weight, inputs) in [(kernel, features), (recurrent, self.units)] {
            let weight = self.in_order(net, weight, 1)?;
            let weight = net.push(Transpose::by(&[1, 0]), &[weight])?;
            weights.push(net.push(Reshape::to(&[1, columns, inputs]), &[weight])?);
        }
        let of_inputs = self.in_order(net, bias, 0)?;
        // Only a GRU's recurrent bias is not the same as one of the inputs.
        let of_states = match self.kind {
            CellKind::Gru => net.variable(&name, "recurrent_bias", &[columns], &zeros, true)?,
            CellKind::Rnn | CellKind::Lstm => {
                let dtype = net.dtype();
                net.builder().constant(Tensor::zeros(dtype, &[columns]))
            }
        };
        let biases = net.push(Concat { axis: 0 }, &[of_inputs, of_states])?;
        let biases = net.push(Reshape::to(&[1, 2 * columns]), &[biases])?;
        let mut op = ops::Recurrent::plain(self.kind);
        op.cell.linear_before_reset = self.kind == CellKind::Gru;
        op.bias = true;
        op.direction = if self.reversed { ops::Direction::Reverse } else { ops::Direction::Forward };
        let x = net.push(Transpose::by(&[1, 0, 2]), &[x])?;
        let outs = net.push_all(op, &[x, weights[0], weights[1], biases])?;
        if !self.return_sequences {
            return net.push(Reshape::to(&[batch, self.units]), &[outs[1]]);
        }
        let every = net.push(Reshape::to(&[steps, batch, self.units]), &[outs[0]])?;
        let every = net.push(Transpose::by(&[1, 0, 2]), &[every])?;
        // Keras gives the steps in the order in which they were run.
        match self.reversed {
            true => net.push(Slice::backwards(1), &[every]),
            false => Ok(every),
        }
    }
}
