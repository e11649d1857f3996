//! The cells of recurrent networks: what one step does to the states of one sequence.

use super::activation::{self, Activation};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::error::Violation;

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// `h' = f(x + h R)`.
    Rnn,
    /// Gated recurrent unit; gates z, r, h.
    Gru,
    /// Long short-term memory; gates i, o, f, c.
    Lstm,
}

impl Keyword for CellKind {
    const ALL: &'static [(&'static str, CellKind)] =
        &[("rnn", CellKind::Rnn), ("gru", CellKind::Gru), ("lstm", CellKind::Lstm)];
}

impl CellKind {
    /// The number of gates.
    pub const fn gates(self) -> usize {
        match self {
            CellKind::Rnn => 1,
            CellKind::Gru => 3,
            CellKind::Lstm => 4,
        }
    }

    /// The activations of one direction where none are given.
    pub const fn default_activations(self) -> &'static str {
        match self {
            CellKind::Rnn => "Tanh",
            CellKind::Gru => "Sigmoid Tanh",
            CellKind::Lstm => "Sigmoid Tanh Tanh",
        }
    }

    /// The number of activations of one direction.
    pub const fn activations(self) -> usize {
        match self {
            CellKind::Rnn => 1,
            CellKind::Gru => 2,
            CellKind::Lstm => 3,
        }
    }
}

/// A cell's attributes, for one or both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Which cell.
    pub kind: CellKind,
    /// Names of activations as ONNX spells them, separated by spaces; empty means the usual ones.
    pub activations: String,
    /// The alphas of the activations that have one, in order.
    pub activation_alpha: Vec<f64>,
    /// The betas of the activations that have one, in order.
    pub activation_beta: Vec<f64>,
    /// Bound of what activations are applied to; 0 means none.
    pub clip: f64,
    /// Whether a GRU applies its reset gate after the product with the recurrence weights.
    pub linear_before_reset: bool,
    /// Whether an LSTM's forget gate is one minus its input gate.
    pub input_forget: bool,
}

impl Cell {
    /// A cell with the usual activations.
    pub fn plain(kind: CellKind) -> Cell {
        Cell {
            kind,
            activations: String::new(),
            activation_alpha: Vec::new(),
            activation_beta: Vec::new(),
            clip: 0.0,
            linear_before_reset: false,
            input_forget: false,
        }
    }

    pub(crate) fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("activations", Slot::Text(&mut self.activations))?;
        codec.attr("activation_alpha", Slot::Floats(&mut self.activation_alpha))?;
        codec.attr("activation_beta", Slot::Floats(&mut self.activation_beta))?;
        codec.attr("clip", Slot::Float(&mut self.clip))?;
        match self.kind {
            CellKind::Rnn => Ok(()),
            CellKind::Gru => codec.attr("linear_before_reset", Slot::Bool(&mut self.linear_before_reset)),
            CellKind::Lstm => codec.attr("input_forget", Slot::Bool(&mut self.input_forget)),
        }
    }

    /// The activations of each direction.
    pub(crate) fn parsed(
        &self,
        directions: usize,
        constraint: &'static str,
    ) -> Result<Vec<Vec<Activation>>, Violation> {
        let names = match self.activations.trim().is_empty() {
            true => [self.kind.default_activations()].repeat(directions).join(" "),
            false => self.activations.clone(),
        };
        let parsed = activation::parse(&names, &self.activation_alpha, &self.activation_beta, constraint)?;
        let each = self.kind.activations();
        require_count(parsed.len(), each * directions, constraint)?;
        require_bound(self.clip, constraint)?;
        Ok(parsed.chunks(each).map(<[Activation]>::to_vec).collect())
    }

    /// The same cell with the activations of one direction spelled out.
    pub(crate) fn with_activations(&self, activations: &[Activation]) -> Cell {
        let (names, alphas, betas) = activation::spell(activations);
        Cell { activations: names, activation_alpha: alphas, activation_beta: betas, ..self.clone() }
    }

    pub(crate) fn clip(&self, x: f64) -> f64 {
        if self.clip > 0.0 { x.max(-self.clip).min(self.clip) } else { x }
    }

    /// One step of one sequence: `x` is the step's input times its weights plus all biases but `rb`.
    pub(crate) fn step(
        &self,
        f: &[Activation],
        weights: &Weights<'_>,
        x: &[f64],
        h: &mut [f64],
        c: &mut [f64],
    ) {
        let size = h.len();
        let gates = self.kind.gates() * size;
        let dot = |h: &[f64], j: usize| -> f64 { (0..size).map(|k| h[k] * weights.r[k * gates + j]).sum() };
        let act = |f: Activation, x: f64| f.eval(self.clip(x));
        match self.kind {
            CellKind::Rnn => {
                let next: Vec<f64> = (0..size).map(|j| act(f[0], x[j] + dot(h, j))).collect();
                h.copy_from_slice(&next);
            }
            CellKind::Gru => {
                let z: Vec<f64> = (0..size).map(|j| act(f[0], x[j] + dot(h, j))).collect();
                let r: Vec<f64> = (0..size).map(|j| act(f[0], x[size + j] + dot(h, size + j))).collect();
                let reset: Vec<f64> = r.iter().zip(&*h).map(|(r, h)| r * h).collect();
                let hidden = |j: usize| match self.linear_before_reset {
                    false => x[2 * size + j] + dot(&reset, 2 * size + j),
                    true => {
                        let bias = weights.rb.map_or(0.0, |b| b[j]);
                        x[2 * size + j] + r[j] * (dot(h, 2 * size + j) + bias)
                    }
                };
                let next: Vec<f64> =
                    (0..size).map(|j| (1.0 - z[j]) * act(f[1], hidden(j)) + z[j] * h[j]).collect();
                h.copy_from_slice(&next);
            }
            CellKind::Lstm => {
                let peep = |gate: usize, j: usize| weights.p.map_or(0.0, |p| p[gate * size + j]);
                let sums: Vec<f64> = (0..gates).map(|j| x[j] + dot(h, j)).collect();
                for j in 0..size {
                    let i = act(f[0], sums[j] + peep(0, j) * c[j]);
                    let forget = match self.input_forget {
                        true => 1.0 - i,
                        false => act(f[0], sums[2 * size + j] + peep(2, j) * c[j]),
                    };
                    c[j] = forget * c[j] + i * act(f[1], sums[3 * size + j]);
                    let o = act(f[0], sums[size + j] + peep(1, j) * c[j]);
                    h[j] = o * f[2].eval(c[j]);
                }
            }
        }
    }
}

/// What one direction of a cell recurs with.
pub(crate) struct Weights<'a> {
    /// `[H, gates * H]`.
    pub r: &'a [f64],
    /// The recurrence bias of a GRU's hidden gate, `[H]`, where it is reset.
    pub rb: Option<&'a [f64]>,
    /// An LSTM's peephole weights, `[3 * H]`, of the gates i, o, f.
    pub p: Option<&'a [f64]>,
}

fn require_count(found: usize, wanted: usize, constraint: &'static str) -> Result<(), Violation> {
    match found == wanted {
        true => Ok(()),
        false => Err(Violation::new(constraint, format!("{found} activations, {wanted} are needed"))),
    }
}

fn require_bound(clip: f64, constraint: &'static str) -> Result<(), Violation> {
    match clip >= 0.0 {
        true => Ok(()),
        false => Err(Violation::new(constraint, format!("clip is {clip}"))),
    }
}
