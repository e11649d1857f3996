//! `recurrent_steps`: one direction of a recurrent network, after its inputs were multiplied by their
//! weights. The recurrence itself is loops written out, for no formula expresses it.

use super::activation::Activation;
use super::cell::{Cell, CellKind, Weights};
use super::{Lowered, OpDef, Vjp, VjpCx, arity};
use crate::attrs::{AttrError, Codec, Keyword, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Buffer, Guard, Index, KernelBuilder, LoopKind, Rhs, Role, Val};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Runs a cell over the steps of each sequence.
///
/// Operands are `x` `[T, N, G*H]` (each step's input times its weights plus biases, gate after gate), `r`
/// `[G*H/L, H, L]`, the columns of the recurrence weights `[H, G*H]` in panels of L, which divides H (a step
/// reads them from end to end); the first states `h` and for an LSTM `c` `[N, H]`; then, if the attributes say so, the
/// recurrence bias `[H]` of a GRU's hidden gate, an LSTM's peepholes `[3*H]`, and the sequences' lengths
/// `[N]`. Results are the states `h` of every step `[T, N, H]`, 0 past a sequence's end, and the last states
/// `h` and for an LSTM `c`. In reverse, each sequence is run from its own end.
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

/// What the operands are.
pub(super) struct Places {
    pub c: Option<usize>,
    pub bias: Option<usize>,
    pub peepholes: Option<usize>,
    pub lens: Option<usize>,
    count: usize,
}

/// Gates and states are kept in this many bytes of the stack at most.
const STACK_BYTES: usize = 1 << 16;

/// The widest panel of recurrence weights for states of a size: so many sums are kept in registers.
pub fn panel_lanes(size: usize) -> usize {
    [64, 32, 16, 8, 4].into_iter().find(|&lanes| size.is_multiple_of(lanes)).unwrap_or(1)
}

impl RecurrentSteps {
    pub(super) fn places(&self) -> Places {
        let mut count = 3;
        let mut next = |present: bool| {
            count += usize::from(present);
            present.then_some(count - 1)
        };
        let c = next(self.cell.kind == CellKind::Lstm);
        let (bias, peepholes) = (next(self.hidden_bias), next(self.peepholes));
        let lens = next(self.sequence_lens);
        Places { c, bias, peepholes, lens, count }
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
        let (x, r, h) = (ins[0], ins[1], ins[2]);
        for (i, ty) in ins.iter().enumerate() {
            let fits = match Some(i) == places.lens {
                true => ty.dtype == DType::I32,
                false => ty.dtype == x.dtype && matches!(ty.dtype, DType::F32 | DType::F64),
            };
            require!(fits, "C1", "operand {i} of {} is {ty}", self.name());
        }
        require!(x.rank() == 3 && r.rank() == 3 && h.rank() == 2, "C2", "{x}, {r} and {h} do not fit");
        let (batch, size) = (&x.dims[1], &r.dims[1]);
        let gates = match size.as_fixed() {
            Some(n) => crate::Dim::Fixed(n.saturating_mul(self.cell.kind.gates())),
            None => crate::Dim::Unknown,
        };
        let wants = |ty: &TensorType, dims: &[&crate::Dim]| {
            ty.rank() == dims.len() && ty.dims.iter().zip(dims).all(|(a, b)| a.may_equal(b))
        };
        let three = size.as_fixed().map_or(crate::Dim::Unknown, |n| crate::Dim::Fixed(3 * n));
        let mut fits = wants(x, &[&x.dims[0], batch, &gates]) && wants(h, &[batch, size]);
        if let (Some(panels), Some(size), Some(lanes)) =
            (r.dims[0].as_fixed(), size.as_fixed(), r.dims[2].as_fixed())
        {
            let gates = size.saturating_mul(self.cell.kind.gates());
            fits &= panels.saturating_mul(lanes) == gates && (lanes == 0 || size.is_multiple_of(lanes));
        }
        fits &= places.c.is_none_or(|i| wants(ins[i], &[batch, size]));
        fits &= places.bias.is_none_or(|i| wants(ins[i], &[size]));
        fits &= places.peepholes.is_none_or(|i| wants(ins[i], &[&three]));
        fits &= places.lens.is_none_or(|i| wants(ins[i], &[batch]));
        require!(fits, "C2", "{x}, {r} and {h} do not fit each other or the other operands");
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
        let (size, lanes) = (ins[1].shape()[1], ins[1].shape()[2]);
        let (x, panels) = (ins[0].to_f64s(), ins[1].to_f64s());
        let column = |k: usize, j: usize| panels[(j / lanes * size + k) * lanes + j % lanes];
        let r: Vec<f64> =
            (0..size).flat_map(|k| (0..gates).map(move |j| (k, j))).map(|(k, j)| column(k, j)).collect();
        let optional = |place: Option<usize>| place.map(|i| ins[i].to_f64s());
        let (bias, peepholes) = (optional(places.bias), optional(places.peepholes));
        let weights = Weights { r: &r, rb: bias.as_deref(), p: peepholes.as_deref() };
        let mut h = ins[2].to_f64s();
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

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        let x = ins[0].shape();
        let (size, dtype) = (ins[1].shape()[1], ins[0].dtype);
        // Gates, the part of a GRU's hidden gate that is reset, and two states.
        let locals = (x[2] + 3 * size) * dtype.size();
        if x.contains(&0) || locals > STACK_BYTES {
            return Ok(Lowered::Interpret);
        }
        Ok(Lowered::Kernel(Box::new(Emit::new(self, ins).kernel())))
    }
}

/// The kernel under construction.
struct Emit<'a> {
    op: &'a RecurrentSteps,
    f: Vec<Activation>,
    b: KernelBuilder,
    dtype: DType,
    steps: usize,
    batch: usize,
    size: usize,
    /// The width of the panels of the weights.
    lanes: usize,
    /// The operands, then the results.
    params: Vec<Buffer>,
    places: Places,
    gates: Buffer,
    linear: Buffer,
    h: Buffer,
    c: Buffer,
}

impl<'a> Emit<'a> {
    fn new(op: &'a RecurrentSteps, ins: &[TensorType]) -> Emit<'a> {
        let (x, dtype, places) = (ins[0].shape(), ins[0].dtype, op.places());
        let (steps, batch, size, lanes) = (x[0], x[1], ins[1].shape()[1], ins[1].shape()[2]);
        let mut b = KernelBuilder::new(op.name());
        let len = |ty: &TensorType| ty.shape().iter().product();
        let mut params: Vec<Buffer> = ins
            .iter()
            .enumerate()
            .map(|(i, ty)| b.buffer(&format!("in{i}"), ty.dtype, len(ty), Role::In))
            .collect();
        params.push(b.buffer("y", dtype, steps * batch * size, Role::Out));
        params.push(b.buffer("last_h", dtype, batch * size, Role::Out));
        if places.c.is_some() {
            params.push(b.buffer("last_c", dtype, batch * size, Role::Out));
        }
        let gates = b.buffer("gates", dtype, x[2], Role::Stack);
        let linear = b.buffer("linear", dtype, size, Role::Stack);
        let (h, c) = (b.buffer("h", dtype, size, Role::Stack), b.buffer("c", dtype, size, Role::Stack));
        let f = op.cell.parsed(1, "C3").expect("infer accepted the activations").remove(0);
        Emit { op, f, b, dtype, steps, batch, size, lanes, params, places, gates, linear, h, c }
    }

    fn kernel(mut self) -> crate::loops::Kernel {
        let mut b = std::mem::replace(&mut self.b, KernelBuilder::new(""));
        b.repeat(LoopKind::Parallel, self.batch, |b, n| self.sequence(b, &n));
        b.finish()
    }

    /// A vector loop over the elements of a state.
    fn over_state(&self, b: &mut KernelBuilder, body: impl FnOnce(&mut KernelBuilder, &Index)) {
        b.repeat(LoopKind::Vector, self.size, |b, j| body(b, &j));
    }

    fn copy(&self, b: &mut KernelBuilder, from: Buffer, from_start: &Index, to: Buffer, to_start: &Index) {
        self.over_state(b, |b, j| {
            let value = b.load(from, from_start.add(j));
            b.store(to, to_start.add(j), value);
        });
    }

    fn sequence(&self, b: &mut KernelBuilder, n: &Index) {
        let row = n.mul(self.size as i64);
        let start = Index::constant(0);
        let memory = self.places.c;
        self.copy(b, self.params[2], &row, self.h, &start);
        if let Some(place) = memory {
            self.copy(b, self.params[place], &row, self.c, &start);
        }
        let steps = self.steps as i64;
        let len = self.places.lens.map(|place| {
            let raw = b.load(self.params[place], n.clone());
            let raw = b.apply(ScalarFn::Cast(DType::I64), &[raw]);
            let int = |b: &mut KernelBuilder, value: i64| b.define(DType::I64, Rhs::Const(value as u64));
            let (low, high) = (int(b, 0), int(b, steps));
            let raised = b.apply(ScalarFn::Max, &[raw, low]);
            Index::value(b.apply(ScalarFn::Min, &[raised, high]), self.steps + 1)
        });
        let results = self.places.count;
        b.repeat(LoopKind::Serial, self.steps, |b, t| match &len {
            None => {
                let at = if self.op.reverse { t.mul(-1).add_const(steps - 1) } else { t };
                self.step(b, n, &at);
            }
            Some(len) => {
                // How many steps of the sequence come after this one.
                let left = len.sub(&t).add_const(-1);
                let at = if self.op.reverse { left.clone() } else { t.clone() };
                b.begin_if(&[Guard::new(left, self.steps)]);
                self.step(b, n, &at);
                b.begin_else();
                let row = t.mul(self.batch as i64).add(n).mul(self.size as i64);
                self.over_state(b, |b, j| {
                    let zero = b.constant(self.dtype, 0.0);
                    b.store(self.params[results], row.add(j), zero);
                });
                b.end();
            }
        });
        self.copy(b, self.h, &start, self.params[results + 1], &row);
        if memory.is_some() {
            self.copy(b, self.c, &start, self.params[results + 2], &row);
        }
    }

    /// `to[j] = start(j) + sum(h[k] * r[k, first + j])` for `count` values of j.
    fn product(
        &self,
        b: &mut KernelBuilder,
        first: usize,
        count: usize,
        to: Buffer,
        start: &dyn Fn(&mut KernelBuilder, Index) -> Val,
    ) {
        let lanes = self.lanes;
        let acc = b.buffer(&format!("acc{first}"), self.dtype, lanes, Role::Register);
        b.repeat(LoopKind::Serial, count / lanes, |b, panel| {
            let base = panel.mul(lanes as i64);
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                let value = start(b, base.add(&lane));
                b.store(acc, lane, value);
            });
            b.repeat(LoopKind::Serial, self.size, |b, k| {
                let h = b.load(self.h, k.clone());
                let row =
                    panel.add_const((first / lanes) as i64).mul(self.size as i64).add(&k).mul(lanes as i64);
                b.repeat(LoopKind::Vector, lanes, |b, lane| {
                    let weight = b.load(self.params[1], row.add(&lane));
                    let sum = b.load(acc, lane.clone());
                    let sum = b.apply(ScalarFn::Fma, &[h, weight, sum]);
                    b.store(acc, lane, sum);
                });
            });
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                let sum = b.load(acc, lane.clone());
                b.store(to, base.add(&lane), sum);
            });
        });
    }

    /// An activation of a clipped value.
    fn act(&self, b: &mut KernelBuilder, which: usize, mut x: Val) -> Val {
        if self.op.cell.clip > 0.0 {
            let clip = self.op.cell.clip;
            let (low, high) = (b.constant(self.dtype, -clip), b.constant(self.dtype, clip));
            let raised = b.apply(ScalarFn::Max, &[x, low]);
            x = b.apply(ScalarFn::Min, &[raised, high]);
        }
        let Ok(value) = self.f[which].emit(b, x);
        value
    }

    fn step(&self, b: &mut KernelBuilder, n: &Index, t: &Index) {
        let size = self.size;
        let row = t.mul(self.batch as i64).add(n);
        let input = row.mul((self.op.cell.kind.gates() * size) as i64);
        let x = |b: &mut KernelBuilder, j: Index| b.load(self.params[0], input.add(&j));
        match self.op.cell.kind {
            CellKind::Rnn => {
                self.product(b, 0, size, self.gates, &x);
                self.over_state(b, |b, j| {
                    let sum = b.load(self.gates, j.clone());
                    let h = self.act(b, 0, sum);
                    b.store(self.h, j.clone(), h);
                });
            }
            CellKind::Gru => self.gru(b, &x),
            CellKind::Lstm => {
                self.product(b, 0, 4 * size, self.gates, &x);
                self.lstm(b);
            }
        }
        self.copy(b, self.h, &Index::constant(0), self.params[self.places.count], &row.mul(size as i64));
    }

    fn gru(&self, b: &mut KernelBuilder, x: &dyn Fn(&mut KernelBuilder, Index) -> Val) {
        let size = self.size;
        let at = |gate: usize, j: &Index| j.add_const((gate * size) as i64);
        self.product(b, 0, 2 * size, self.gates, x);
        if self.op.cell.linear_before_reset {
            self.product(b, 2 * size, size, self.linear, &|b, j| match self.places.bias {
                Some(place) => b.load(self.params[place], j),
                None => b.constant(self.dtype, 0.0),
            });
        }
        self.over_state(b, |b, j| {
            let z = b.load(self.gates, at(0, j));
            let z = self.act(b, 0, z);
            b.store(self.gates, at(0, j), z);
            let r = b.load(self.gates, at(1, j));
            let r = self.act(b, 0, r);
            let h = b.load(self.h, j.clone());
            // The plain form multiplies the reset state by the weights, so it takes the state's place;
            // the state itself waits in the reset gate's.
            match self.op.cell.linear_before_reset {
                true => {
                    let linear = b.load(self.linear, j.clone());
                    let x = x(b, at(2, j));
                    let sum = b.apply(ScalarFn::Fma, &[r, linear, x]);
                    b.store(self.gates, at(2, j), sum);
                }
                false => {
                    let reset = b.apply(ScalarFn::Mul, &[r, h]);
                    b.store(self.h, j.clone(), reset);
                }
            }
            b.store(self.gates, at(1, j), h);
        });
        if !self.op.cell.linear_before_reset {
            self.product(b, 2 * size, size, self.linear, &|b, j| x(b, j.add_const((2 * size) as i64)));
            self.over_state(b, |b, j| {
                let sum = b.load(self.linear, j.clone());
                b.store(self.gates, at(2, j), sum);
            });
        }
        self.over_state(b, |b, j| {
            let sum = b.load(self.gates, at(2, j));
            let hidden = self.act(b, 1, sum);
            let (z, h) = (b.load(self.gates, at(0, j)), b.load(self.gates, at(1, j)));
            let one = b.constant(self.dtype, 1.0);
            let rest = b.apply(ScalarFn::Sub, &[one, z]);
            let new = b.apply(ScalarFn::Mul, &[rest, hidden]);
            let h = b.apply(ScalarFn::Fma, &[z, h, new]);
            b.store(self.h, j.clone(), h);
        });
    }

    fn lstm(&self, b: &mut KernelBuilder) {
        let size = self.size;
        self.over_state(b, |b, j| {
            let c = b.load(self.c, j.clone());
            let gate = |b: &mut KernelBuilder, gate: usize, peephole: Option<usize>, c: Val| {
                let sum = b.load(self.gates, j.add_const((gate * size) as i64));
                let Some((which, place)) = peephole.zip(self.places.peepholes) else { return sum };
                let weight = b.load(self.params[place], j.add_const((which * size) as i64));
                b.apply(ScalarFn::Fma, &[weight, c, sum])
            };
            let i = gate(b, 0, Some(0), c);
            let i = self.act(b, 0, i);
            let forget = match self.op.cell.input_forget {
                true => {
                    let one = b.constant(self.dtype, 1.0);
                    b.apply(ScalarFn::Sub, &[one, i])
                }
                false => {
                    let forget = gate(b, 2, Some(2), c);
                    self.act(b, 0, forget)
                }
            };
            let new = gate(b, 3, None, c);
            let new = self.act(b, 1, new);
            let kept = b.apply(ScalarFn::Mul, &[forget, c]);
            let c = b.apply(ScalarFn::Fma, &[i, new, kept]);
            b.store(self.c, j.clone(), c);
            let o = gate(b, 1, Some(1), c);
            let o = self.act(b, 0, o);
            let Ok(shown) = self.f[2].emit(b, c);
            let h = b.apply(ScalarFn::Mul, &[o, shown]);
            b.store(self.h, j.clone(), h);
        });
    }
}
