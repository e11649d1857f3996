//! `recurrent_steps`: one direction of a recurrent network, after its inputs were multiplied by their
//! weights. The recurrence itself is [loops written out](recurrent_kernels), for no formula expresses it.

use super::cell::{Cell, CellKind, Weights};
use super::{Lowered, OpDef, Recurrence, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::require;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Runs a cell over the steps of each sequence.
///
/// Operands are `x` `[T, N, G*H]` (each step's input times its weights plus biases, gate after gate); `r` `[G*H, H]`, the
/// recurrence weights, a row for each unit of each gate; the first states `h` and for an LSTM `c` `[N, H]`; then, if the
/// attributes say so, the recurrence bias `[H]` of a GRU's hidden gate, an LSTM's peepholes `[3*H]`, and the sequences'
/// lengths `[N]`. Results are the states `h` of every step `[T, N, H]`, 0 past a sequence's end, and the last states `h` and
/// for an LSTM `c`. In reverse, each sequence is run from its own end.
///
/// - (C1) all operands but the lengths are f32 or all are f64; the lengths are i32;
/// - (C2) their shapes fit;
/// - (C3) the activations are those of one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentSteps {
    /// The cell.
    pub cell: Cell,
    /// Whether sequences are run from their end.
    pub reverse: bool,
    /// Whether a GRU's recurrence bias is an operand.
    pub hidden_bias: bool,
    /// Whether peepholes are an operand.
    pub peepholes: bool,
    /// Whether lengths are an operand.
    pub sequence_lens: bool,
}

/// What the operands are, behind the steps' inputs and the weights.
pub(super) struct Places {
    pub h: usize,
    pub c: Option<usize>,
    pub bias: Option<usize>,
    pub peepholes: Option<usize>,
    pub lens: Option<usize>,
    pub count: usize,
}

/// The number of gates of each product of a step of a cell, in order.
pub(super) fn products(cell: &Cell) -> &'static [usize] {
    match cell.kind {
        CellKind::Rnn => &[1],
        CellKind::Gru if cell.linear_before_reset => &[3],
        CellKind::Gru => &[2, 1],
        CellKind::Lstm => &[4],
    }
}

impl RecurrentSteps {
    pub(super) fn places(&self) -> Places {
        self.places_behind(Recurrence::WEIGHTS + 1)
    }

    /// The places of operands where those before the states are so many.
    pub(super) fn places_behind(&self, mut count: usize) -> Places {
        let mut take = || {
            count += 1;
            count - 1
        };
        let h = take();
        let c = (self.cell.kind == CellKind::Lstm).then(&mut take);
        let bias = self.hidden_bias.then(&mut take);
        let peepholes = self.peepholes.then(&mut take);
        let lens = self.sequence_lens.then(&mut take);
        Places { h, c, bias, peepholes, lens, count }
    }
}

impl OpDef for RecurrentSteps {
    const NAMES: &'static [&'static str] = &["rnn_steps", "gru_steps", "lstm_steps"];

    fn with_name(name: &str) -> RecurrentSteps {
        let kind = CellKind::ALL.iter().find(|(word, _)| name.starts_with(word));
        RecurrentSteps {
            cell: Cell::plain(kind.map_or(CellKind::Rnn, |(_, kind)| *kind)),
            reverse: false,
            hidden_bias: false,
            peepholes: false,
            sequence_lens: false,
        }
    }

    fn name(&self) -> &'static str {
        match self.cell.kind {
            CellKind::Rnn => "rnn_steps",
            CellKind::Gru => "gru_steps",
            CellKind::Lstm => "lstm_steps",
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        self.cell.attrs(codec)?;
        codec.attr("reverse", Slot::Bool(&mut self.reverse))?;
        codec.attr("hidden_bias", Slot::Bool(&mut self.hidden_bias))?;
        codec.attr("peepholes", Slot::Bool(&mut self.peepholes))?;
        codec.attr("sequence_lens", Slot::Bool(&mut self.sequence_lens))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        let places = self.places();
        arity(ins, places.count..=places.count)?;
        let (x, h) = (ins[0], ins[places.h]);
        for (i, ty) in ins.iter().enumerate() {
            let fits = match Some(i) == places.lens {
                true => ty.dtype == DType::I32,
                false => ty.dtype == x.dtype && matches!(ty.dtype, DType::F32 | DType::F64),
            };
            require!(fits, "C1", "operand {i} of {} is {ty}", self.name());
        }
        require!(x.rank() == 3 && h.rank() == 2, "C2", "{x} and {h} do not fit");
        let (batch, size) = (&x.dims[1], &h.dims[1]);
        let gates = match size.as_fixed() {
            Some(n) => crate::Dim::Fixed(n.saturating_mul(self.cell.kind.gates())),
            None => crate::Dim::Unknown,
        };
        let wants = |ty: &TensorType, dims: &[&crate::Dim]| {
            ty.rank() == dims.len() && ty.dims.iter().zip(dims).all(|(a, b)| a.may_equal(b))
        };
        let three = size.as_fixed().map_or(crate::Dim::Unknown, |n| crate::Dim::Fixed(3 * n));
        let mut fits = wants(x, &[&x.dims[0], batch, &gates]) && wants(h, &[batch, size]);
        fits &= wants(ins[Recurrence::WEIGHTS], &[&gates, size]);
        fits &= places.c.is_none_or(|i| wants(ins[i], &[batch, size]));
        fits &= places.bias.is_none_or(|i| wants(ins[i], &[size]));
        fits &= places.peepholes.is_none_or(|i| wants(ins[i], &[&three]));
        fits &= places.lens.is_none_or(|i| wants(ins[i], &[batch]));
        require!(fits, "C2", "{x} and {h} do not fit each other or the other operands");
        self.cell.parsed(1, "C3")?;
        let state = TensorType::new(x.dtype, [batch.meet(&h.dims[0]), size.meet(&h.dims[1])]);
        let mut outs = vec![
            TensorType::new(x.dtype, [x.dims[0].clone(), state.dims[0].clone(), state.dims[1].clone()]),
            state.clone(),
        ];
        if places.c.is_some() {
            outs.push(state);
        }
        Ok(outs)
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let places = self.places();
        let f = self.cell.parsed(1, "C3").map_err(|v| v.to_string())?.remove(0);
        let (steps, batch, gates) = (ins[0].shape()[0], ins[0].shape()[1], ins[0].shape()[2]);
        let size = ins[places.h].shape()[1];
        let x = ins[0].to_f64s();
        let rows = ins[Recurrence::WEIGHTS].to_f64s();
        let r: Vec<f64> = (0..size * gates).map(|at| rows[at % gates * size + at / gates]).collect();
        let optional = |place: Option<usize>| place.map(|i| ins[i].to_f64s());
        let (bias, peepholes) = (optional(places.bias), optional(places.peepholes));
        let weights = Weights { r: &r, rb: bias.as_deref(), p: peepholes.as_deref() };
        let mut h = ins[places.h].to_f64s();
        let mut c = optional(places.c).unwrap_or_default();
        let mut y = vec![0.0; steps * batch * size];
        for n in 0..batch {
            let len = places.lens.map_or(steps, |i| (ins[i].to_ints()[n].max(0) as usize).min(steps));
            let rows = n * size..(n + 1) * size;
            let memory = if places.c.is_some() { &mut c[rows.clone()] } else { &mut [] };
            for step in 0..len {
                let t = if self.reverse { len - 1 - step } else { step };
                let input = &x[(t * batch + n) * gates..][..gates];
                self.cell.step(&f, &weights, input, &mut h[rows.clone()], memory);
                y[(t * batch + n) * size..][..size].copy_from_slice(&h[rows.clone()]);
            }
        }
        let dtype = ins[0].dtype();
        let mut outs = vec![
            Tensor::from_f64s(dtype, &[steps, batch, size], &y),
            Tensor::from_f64s(dtype, &[batch, size], &h),
        ];
        if places.c.is_some() {
            outs.push(Tensor::from_f64s(dtype, &[batch, size], &c));
        }
        Ok(outs)
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        self.as_scan(cx)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let places = self.places();
        let place = |i: usize| match Some(i) {
            Some(0) => Some(1),
            i if i == places.lens || i == Some(places.h) || i == places.c => Some(0),
            _ => None,
        };
        let at: Vec<Option<usize>> = (0..places.count).map(place).collect();
        cx.merged(self.clone(), &at, &[1, 0, 0][..cx.outs.len()])
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        match ins[0].shape().contains(&0) {
            true => Ok(Lowered::Interpret),
            false => Ok(Lowered::Recurrence(Box::new(Recurrence { op: self.clone(), ins: ins.to_vec() }))),
        }
    }
}
