//! What a block of sequences makes of a panel of recurrence weights in a step: the sums of some units' gates, and the
//! states that those give.

use std::ops::Range;

use super::cell::CellKind;
use super::recurrence::FEW_ROWS;
use super::recurrent_kernels::Layer;
use crate::dtype::DType;
use crate::loops::{Buffer, Guard, Index, KernelBuilder, LoopKind, Rhs, Val};
use crate::scalar::ScalarFn;

/// What a kernel of a step reads and writes.
pub(super) struct Step {
    pub x: Buffer,
    pub old_h: Buffer,
    /// The states that are multiplied.
    pub source: Buffer,
    /// The sums, those of a sequence a stride behind those of the one before.
    pub acc: Buffer,
    pub stride: usize,
    /// The lengths of sequences and the round, where they have lengths.
    pub lens: Option<(Buffer, Buffer)>,
    /// The gates of the product.
    pub gates: Range<usize>,
    pub outs: Outs,
}

/// A panel of weights.
pub(super) struct Panel {
    pub weights: Buffer,
    /// Element 0 of its first row.
    pub row: Index,
    /// Its first unit.
    pub first: Index,
    /// Its units.
    pub lanes: usize,
}

/// Where a sequence of a block has its things.
pub(super) struct Sequence {
    /// Element 0 of its input.
    pub input: Index,
    /// Element 0 of it in states.
    pub row: Index,
    /// Element 0 of the step's result.
    pub result: Index,
    /// Its sums, gate after gate from this element on.
    pub sums: i64,
}

/// What a step's kernel reads besides its product, and what it writes.
pub(super) struct Outs {
    pub y: Option<Buffer>,
    pub h: Option<Buffer>,
    pub c: Option<(Buffer, Buffer)>,
    pub peepholes: Option<Buffer>,
    pub bias: Option<Buffer>,
    pub between: Option<(Buffer, Buffer)>,
}

impl Layer<'_> {
    /// What a block of sequences makes of a panel.
    pub(super) fn of_rows(
        &self,
        b: &mut KernelBuilder,
        step: &Step,
        panel: &Panel,
        start: Index,
        rows: usize,
    ) {
        let (batch, size) = (self.batch as i64, self.size as i64);
        let all_gates = self.op.cell.kind.gates() as i64 * size;
        let runs = step.lens.map(|(lens, number)| self.runs(b, lens, number, &start, rows));
        let sequence = |row: usize| {
            let n = start.add_const(row as i64);
            let t = runs.as_ref().map_or(Index::constant(0), |runs| runs.of_rows[row].input.clone());
            let at = t.mul(batch).add(&n);
            let sums = (row * step.stride) as i64;
            Sequence { input: at.mul(all_gates), row: n.mul(size), result: at.mul(size), sums }
        };
        let block: Vec<Sequence> = (0..rows).map(sequence).collect();
        let ended = |b: &mut KernelBuilder, runs: &Runs, row: usize| {
            let n = start.add_const(row as i64);
            self.rest(b, step, panel, &block[row], &runs.number.mul(batch).add(&n).mul(size));
        };
        if let Some(runs) = &runs {
            b.begin_if(std::slice::from_ref(&runs.active));
        }
        self.product(b, step, panel, &block);
        for (row, sequence) in block.iter().enumerate() {
            match runs.as_ref().filter(|_| rows > 1) {
                None => self.gates(b, step, panel, sequence),
                Some(runs) => {
                    b.begin_if(std::slice::from_ref(&runs.of_rows[row].active));
                    self.gates(b, step, panel, sequence);
                    b.begin_else();
                    ended(b, runs, row);
                    b.end();
                }
            }
        }
        if let Some(runs) = &runs {
            b.begin_else();
            (0..rows).for_each(|row| ended(b, runs, row));
            b.end();
        }
    }

    /// Where a block of sequences of some lengths is in a round.
    fn runs(&self, b: &mut KernelBuilder, lens: Buffer, number: Buffer, start: &Index, rows: usize) -> Runs {
        let within = |b: &mut KernelBuilder, value: Val, most: usize| {
            let int = |b: &mut KernelBuilder, value: u64| b.define(DType::I64, Rhs::Const(value));
            let (low, high) = (int(b, 0), int(b, most as u64));
            let raised = b.apply(ScalarFn::Max, &[value, low]);
            b.apply(ScalarFn::Min, &[raised, high])
        };
        let last = self.steps - 1;
        let number = b.load(number, Index::constant(0));
        let number = within(b, number, last);
        let round = Index::value(number, self.steps);
        // How many steps of a sequence come after this one.
        let left = |len: Val| Index::value(len, self.steps + 1).sub(&round).add_const(-1);
        let mut longest: Option<Val> = None;
        let mut of_rows = Vec::new();
        for row in 0..rows {
            let len = b.load(lens, start.add_const(row as i64));
            let len = b.apply(ScalarFn::Cast(DType::I64), &[len]);
            let len = within(b, len, self.steps);
            longest = Some(longest.map_or(len, |longest| b.apply(ScalarFn::Max, &[longest, len])));
            let input = match self.op.reverse {
                false => round.clone(),
                // Of a sequence that has ended any step does: its sums are not used.
                true => {
                    let after = b.apply(ScalarFn::Sub, &[len, number]);
                    let one = b.define(DType::I64, Rhs::Const(1));
                    let after = b.apply(ScalarFn::Sub, &[after, one]);
                    Index::value(within(b, after, last), self.steps)
                }
            };
            of_rows.push(Run { active: Guard::new(left(len), self.steps), input });
        }
        let active = Guard::new(left(longest.expect("a block has sequences")), self.steps);
        Runs { active, number: round, of_rows }
    }

    /// The sums of the gates of a panel's units, with what they start from, for a block of sequences.
    fn product(&self, b: &mut KernelBuilder, step: &Step, panel: &Panel, block: &[Sequence]) {
        let (lanes, count) = (panel.lanes, step.gates.len());
        for (sequence, (at, gate)) in
            block.iter().flat_map(|sequence| step.gates.clone().enumerate().map(move |gate| (sequence, gate)))
        {
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                // The input of a hidden gate that is reset after its product is added then.
                let value = match (count == 3 && gate == 2, step.outs.bias) {
                    (false, _) => self.x(b, step, panel, sequence, gate, &lane),
                    (true, Some(bias)) => b.load(bias, panel.first.add(&lane)),
                    (true, None) => b.constant(self.dtype, 0.0),
                };
                b.store(step.acc, lane.add_const(sequence.sums + (at * lanes) as i64), value);
            });
        }
        b.repeat(LoopKind::Serial, self.size, |b, k| {
            let row = panel.row.add(&k.mul((count * lanes) as i64));
            // Registers hold the states of a few sequences, and of more the row of the panel.
            let at_once = if block.len() <= FEW_ROWS { FEW_ROWS } else { 1 };
            for block in block.chunks(at_once) {
                let states: Vec<Val> = block.iter().map(|s| b.load(step.source, s.row.add(&k))).collect();
                b.repeat(LoopKind::Vector, count * lanes, |b, lane| {
                    let weight = b.load(panel.weights, row.add(&lane));
                    for (sequence, &h) in block.iter().zip(&states) {
                        let at = lane.add_const(sequence.sums);
                        let sum = b.load(step.acc, at.clone());
                        let sum = b.apply(ScalarFn::Fma, &[h, weight, sum]);
                        b.store(step.acc, at, sum);
                    }
                });
            }
        });
    }

    fn x(
        &self,
        b: &mut KernelBuilder,
        step: &Step,
        panel: &Panel,
        sequence: &Sequence,
        gate: usize,
        lane: &Index,
    ) -> Val {
        let unit = panel.first.add(lane).add_const((gate * self.size) as i64);
        b.load(step.x, sequence.input.add(&unit))
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

    /// What a sequence that goes on makes of the sums.
    fn gates(&self, b: &mut KernelBuilder, step: &Step, panel: &Panel, sequence: &Sequence) {
        let outs = &step.outs;
        b.repeat(LoopKind::Vector, panel.lanes, |b, lane| {
            let state = sequence.row.add(&panel.first).add(&lane);
            let acc = |b: &mut KernelBuilder, gate: usize| {
                b.load(step.acc, lane.add_const(sequence.sums + (gate * panel.lanes) as i64))
            };
            let h = match (self.op.cell.kind, outs.between) {
                (CellKind::Rnn, _) => {
                    let sum = acc(b, 0);
                    self.act(b, 0, sum)
                }
                (CellKind::Lstm, _) => {
                    let sums = [0, 1, 2, 3].map(|gate| acc(b, gate));
                    let unit = panel.first.add(&lane);
                    self.lstm(b, outs, sums, &state, &unit)
                }
                (CellKind::Gru, None) => {
                    let (z, r, linear) = (acc(b, 0), acc(b, 1), acc(b, 2));
                    let (z, r) = (self.act(b, 0, z), self.act(b, 0, r));
                    let x = self.x(b, step, panel, sequence, 2, &lane);
                    let sum = b.apply(ScalarFn::Fma, &[r, linear, x]);
                    let h = b.load(step.old_h, state.clone());
                    self.gru(b, z, sum, h)
                }
                (CellKind::Gru, Some((update, reset))) => match outs.h {
                    None => {
                        let (z, r) = (acc(b, 0), acc(b, 1));
                        let (z, r) = (self.act(b, 0, z), self.act(b, 0, r));
                        let h = b.load(step.old_h, state.clone());
                        let h = b.apply(ScalarFn::Mul, &[r, h]);
                        b.store(update, state.clone(), z);
                        b.store(reset, state.clone(), h);
                        return;
                    }
                    Some(_) => {
                        let sum = acc(b, 0);
                        let (z, h) = (b.load(update, state.clone()), b.load(step.old_h, state.clone()));
                        self.gru(b, z, sum, h)
                    }
                },
            };
            if let (Some(new_h), Some(y)) = (outs.h, outs.y) {
                b.store(new_h, state.clone(), h);
                b.store(y, sequence.result.add(&panel.first).add(&lane), h);
            }
        });
    }

    /// The new state of a GRU: of the update gate, the hidden gate's sum and the old state.
    fn gru(&self, b: &mut KernelBuilder, z: Val, sum: Val, h: Val) -> Val {
        let hidden = self.act(b, 1, sum);
        let one = b.constant(self.dtype, 1.0);
        let rest = b.apply(ScalarFn::Sub, &[one, z]);
        let new = b.apply(ScalarFn::Mul, &[rest, hidden]);
        b.apply(ScalarFn::Fma, &[z, h, new])
    }

    /// The new state of an LSTM, when its new memory is stored: of the sums of its gates.
    fn lstm(
        &self,
        b: &mut KernelBuilder,
        outs: &Outs,
        [i, o, forget, new]: [Val; 4],
        state: &Index,
        unit: &Index,
    ) -> Val {
        let (old_c, new_c) = outs.c.expect("an LSTM has a memory");
        let c = b.load(old_c, state.clone());
        let seen = |b: &mut KernelBuilder, sum: Val, which: usize, c: Val| {
            let Some(weights) = outs.peepholes else { return sum };
            let weight = b.load(weights, unit.add_const((which * self.size) as i64));
            b.apply(ScalarFn::Fma, &[weight, c, sum])
        };
        let i = seen(b, i, 0, c);
        let i = self.act(b, 0, i);
        let forget = match self.op.cell.input_forget {
            true => {
                let one = b.constant(self.dtype, 1.0);
                b.apply(ScalarFn::Sub, &[one, i])
            }
            false => {
                let forget = seen(b, forget, 2, c);
                self.act(b, 0, forget)
            }
        };
        let new = self.act(b, 1, new);
        let kept = b.apply(ScalarFn::Mul, &[forget, c]);
        let c = b.apply(ScalarFn::Fma, &[i, new, kept]);
        b.store(new_c, state.clone(), c);
        let o = seen(b, o, 1, c);
        let o = self.act(b, 0, o);
        let Ok(shown) = self.f[2].emit(b, c);
        b.apply(ScalarFn::Mul, &[o, shown])
    }

    /// A sequence that is at its end keeps its states and gives 0.
    fn rest(&self, b: &mut KernelBuilder, step: &Step, panel: &Panel, sequence: &Sequence, y_row: &Index) {
        let outs = &step.outs;
        let (Some(new_h), Some(y)) = (outs.h, outs.y) else { return };
        b.repeat(LoopKind::Vector, panel.lanes, |b, lane| {
            let state = sequence.row.add(&panel.first).add(&lane);
            for (old, new) in [(step.old_h, new_h)].into_iter().chain(outs.c) {
                let kept = b.load(old, state.clone());
                b.store(new, state.clone(), kept);
            }
            let zero = b.constant(self.dtype, 0.0);
            b.store(y, y_row.add(&panel.first).add(&lane), zero);
        });
    }
}

/// Where a block of sequences is in a round.
struct Runs {
    /// Whether any of them has not ended.
    active: Guard,
    /// The round.
    number: Index,
    of_rows: Vec<Run>,
}

/// Where a sequence is in a round.
struct Run {
    /// Whether it has not ended.
    active: Guard,
    /// The step whose input it takes.
    input: Index,
}
