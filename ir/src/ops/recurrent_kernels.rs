//! The loops of `recurrent_steps`: kernels for the start, for each product of a step with what its gates do, and
//! for the end.
//!
//! An iteration of a step's kernel makes all gates of some units of one sequence, so iterations need nothing of each
//! other and threads share a step. States stand in two halves of a buffer, read in one and written in the other, in
//! turns. Sums start with the step's input and go over the old state in order, so bits depend neither on panels nor
//! on threads.

use std::ops::Range;

use super::activation::Activation;
use super::cell::CellKind;
use super::recurrence::{Blocks, FEW_ROWS, Panels, VECTOR_BYTES};
use super::recurrent_steps::{Places, products};
use super::{Recurrence, RecurrentSteps};
use crate::dtype::DType;
use crate::loops::{
    Buffer, Call, Guard, Index, Kernel, KernelBuilder, LoopKind, Part, Rhs, Role, Rounds, Stage, Val,
};
use crate::scalar::ScalarFn;
use crate::types::TensorType;

/// The kernels for operands of these types, of which none is empty, where registers hold so many bytes of sums.
pub(super) fn rounds(
    op: &RecurrentSteps,
    ins: &[TensorType],
    panels: &[Vec<Panels>],
    sum_bytes: usize,
) -> Rounds {
    let places = op.places_behind(Recurrence::WEIGHTS + panels.iter().map(Vec::len).sum::<usize>());
    let x = ins[0].shape();
    let (steps, batch, size) = (x[0], x[1], ins[Recurrence::WEIGHTS].shape()[1]);
    let dtype = ins[0].dtype;
    let results = places.count;
    let mut next = results + if places.c.is_some() { 3 } else { 2 };
    let mut scratch = Vec::new();
    let mut add = |dtype: DType, len: usize| {
        scratch.push((dtype, len));
        next += 1;
        next - 1
    };
    let states = batch * size;
    let h = add(dtype, 2 * states);
    let c = places.c.map(|_| add(dtype, 2 * states));
    let numbers = places.lens.map(|_| add(DType::I64, steps));
    let between = (products(&op.cell).len() > 1).then(|| (add(dtype, states), add(dtype, states)));
    let f = op.cell.parsed(1, "C3").expect("infer accepted the activations").remove(0);
    let layer = Layer {
        op,
        f,
        dtype,
        steps,
        batch,
        size,
        panels,
        sum_bytes,
        places,
        results,
        h,
        c,
        numbers,
        between,
    };
    let made = [
        (1, vec![layer.start()]),
        (steps, (0..layer.panels.len()).map(|product| layer.step(product)).collect()),
        (1, vec![layer.end()]),
    ];
    let mut rounds = Rounds { kernels: Vec::new(), scratch, stages: Vec::new() };
    for (times, made) in made {
        let mut calls = Vec::new();
        for Made { kernel, args, flops } in made {
            calls.push(Call { kernel: rounds.kernels.len(), args, origin: Vec::new(), flops });
            rounds.kernels.push(kernel);
        }
        rounds.stages.push(Stage { times, calls });
    }
    rounds
}

/// What all kernels know: sizes, and the numbers of buffers.
struct Layer<'a> {
    op: &'a RecurrentSteps,
    f: Vec<Activation>,
    dtype: DType,
    steps: usize,
    batch: usize,
    size: usize,
    /// The panels of each product.
    panels: &'a [Vec<Panels>],
    /// The bytes of sums that are made together.
    sum_bytes: usize,
    places: Places,
    /// The first result.
    results: usize,
    /// The states, twice.
    h: usize,
    c: Option<usize>,
    /// The numbers of the steps, where sequences have lengths.
    numbers: Option<usize>,
    /// The update gate and the reset state, where another product takes that.
    between: Option<(usize, usize)>,
}

/// A kernel, what it is called with, and its arithmetic.
struct Made {
    kernel: Kernel,
    args: Vec<Part>,
    flops: u64,
}

/// A kernel under construction and what it is called with.
struct Emit {
    b: KernelBuilder,
    args: Vec<Part>,
}

impl Emit {
    fn new(name: &str) -> Emit {
        Emit { b: KernelBuilder::new(name), args: Vec::new() }
    }

    fn param(&mut self, name: &str, dtype: DType, len: usize, role: Role, part: Part) -> Buffer {
        self.args.push(part);
        self.b.buffer(name, dtype, len, role)
    }

    fn finish(self, flops: u64) -> Made {
        Made { kernel: self.b.finish(), args: self.args, flops }
    }
}

/// What a kernel of a step reads and writes.
struct Step {
    x: Buffer,
    old_h: Buffer,
    /// The states that are multiplied.
    source: Buffer,
    /// The sums, those of a sequence a stride behind those of the one before.
    acc: Buffer,
    stride: usize,
    /// The lengths of sequences and the round, where they have lengths.
    lens: Option<(Buffer, Buffer)>,
    /// The gates of the product.
    gates: Range<usize>,
    outs: Outs,
}

/// A panel of weights.
struct Panel {
    weights: Buffer,
    /// Element 0 of its first row.
    row: Index,
    /// Its first unit.
    first: Index,
    /// Its units.
    lanes: usize,
}

/// Where a sequence of a block has its things.
struct Sequence {
    /// Element 0 of its input.
    input: Index,
    /// Element 0 of it in states.
    row: Index,
    /// Element 0 of the step's result.
    result: Index,
    /// Its sums, gate after gate from this element on.
    sums: i64,
}

/// The first of two sides where a guard holds, else the second; or the only one.
fn either(
    b: &mut KernelBuilder,
    guard: Guard,
    sides: usize,
    mut side: impl FnMut(&mut KernelBuilder, usize),
) {
    if sides == 1 {
        return side(b, 0);
    }
    b.begin_if(&[guard]);
    side(b, 0);
    b.begin_else();
    side(b, 1);
    b.end();
}

impl Layer<'_> {
    fn states(&self) -> usize {
        self.batch * self.size
    }

    /// The half of its buffer that a state is in at first: the one from which it comes to the first half in the end.
    fn first_half(&self) -> usize {
        self.steps % 2
    }

    /// A state before a step.
    fn before(&self, state: usize) -> Part {
        Part::halves(state, self.states(), self.first_half())
    }

    /// A state after a step.
    fn after(&self, state: usize) -> Part {
        Part::halves(state, self.states(), 1 - self.first_half())
    }

    /// Lays down the first states, and numbers the steps if they are asked for.
    fn start(&self) -> Made {
        let mut emit = Emit::new("start");
        let (states, dtype) = (self.states(), self.dtype);
        let pairs = [(Some(self.places.h), Some(self.h)), (self.places.c, self.c)];
        for (from, to) in pairs.into_iter().filter_map(|(from, to)| from.zip(to)) {
            let first = emit.param(&format!("first{from}"), dtype, states, Role::In, Part::whole(from));
            let half = self.first_half() * states;
            let both = emit.param(&format!("state{to}"), dtype, half + states, Role::Out, Part::whole(to));
            emit.b.repeat(LoopKind::Vector, states, |b, i| {
                let value = b.load(first, i.clone());
                b.store(both, i.add_const(half as i64), value);
            });
        }
        if let Some(numbers) = self.numbers {
            let numbers = emit.param("numbers", DType::I64, self.steps, Role::Out, Part::whole(numbers));
            emit.b.repeat(LoopKind::Serial, self.steps, |b, t| {
                let number = b.define(DType::I64, Rhs::Index(t.clone()));
                b.store(numbers, t, number);
            });
        }
        emit.finish(0)
    }

    /// Copies the last states out.
    fn end(&self) -> Made {
        let mut emit = Emit::new("end");
        let (states, dtype) = (self.states(), self.dtype);
        for (at, from) in [Some(self.h), self.c].into_iter().flatten().enumerate() {
            let state = emit.param(&format!("state{from}"), dtype, states, Role::In, Part::whole(from));
            let result = Part::whole(self.results + 1 + at);
            let last = emit.param(&format!("last{at}"), dtype, states, Role::Out, result);
            emit.b.repeat(LoopKind::Vector, states, |b, i| {
                let value = b.load(state, i.clone());
                b.store(last, i, value);
            });
        }
        emit.finish(0)
    }

    /// One product of a step and what follows it.
    fn step(&self, product: usize) -> Made {
        let mut emit = Emit::new("step");
        let (dtype, size, batch, states) = (self.dtype, self.size, self.batch, self.states());
        let gates = products(&self.op.cell);
        let (gates, first_gate) = (gates[product], gates[..product].iter().sum::<usize>());
        let last = product + 1 == self.panels.len();
        let panels = &self.panels[product];
        // With lengths, each sequence is at a step of its own.
        let back = self.op.reverse.then_some(self.steps);
        let rows = |buffer: usize, len: usize| match self.places.lens {
            None => (len, Part::rows(buffer, len, back)),
            Some(_) => (self.steps * len, Part::whole(buffer)),
        };
        let all_gates = self.op.cell.kind.gates() * size;
        let (len, part) = rows(0, batch * all_gates);
        let x = emit.param("x", dtype, len, Role::In, part);
        let before: usize = self.panels[..product].iter().map(Vec::len).sum();
        let weights = panels.iter().enumerate().map(|(at, panels)| {
            let part = Part::whole(Recurrence::WEIGHTS + before + at);
            emit.param("weights", dtype, size * gates * panels.count * panels.lanes, Role::In, part)
        });
        let weights: Vec<Buffer> = weights.collect();
        let old_h = emit.param("old_h", dtype, states, Role::In, self.before(self.h));
        let lens = self.places.lens.zip(self.numbers).map(|(lens, numbers)| {
            let lens = emit.param("lens", DType::I32, batch, Role::In, Part::whole(lens));
            (lens, emit.param("number", DType::I64, 1, Role::In, Part::rows(numbers, 1, None)))
        });
        let mut outs = Outs { y: None, h: None, c: None, peepholes: None, bias: None, between: None };
        if last {
            let (len, part) = rows(self.results, states);
            outs.y = Some(emit.param("y", dtype, len, Role::Out, part));
            outs.h = Some(emit.param("new_h", dtype, states, Role::Out, self.after(self.h)));
            outs.c = self.c.map(|c| {
                let old = emit.param("old_c", dtype, states, Role::In, self.before(c));
                (old, emit.param("new_c", dtype, states, Role::Out, self.after(c)))
            });
        }
        let mut small = |place: Option<usize>, name: &str, len: usize| {
            place.map(|place| emit.param(name, dtype, len, Role::In, Part::whole(place)))
        };
        outs.peepholes = small(self.places.peepholes, "peepholes", 3 * size);
        outs.bias = small(self.places.bias.filter(|_| gates == 3), "bias", size);
        outs.between = self.between.map(|(update, reset)| {
            let role = if last { Role::In } else { Role::Out };
            let update = emit.param("update", dtype, states, role, Part::whole(update));
            (update, emit.param("reset", dtype, states, role, Part::whole(reset)))
        });
        let b = &mut emit.b;
        // Sums of a sequence begin with a vector.
        let widest = panels.iter().map(|panels| panels.lanes).max().expect("there are panels");
        let stride = (gates * widest).next_multiple_of(VECTOR_BYTES / dtype.size());
        let blocks = Blocks::new(batch, stride * dtype.size(), self.sum_bytes);
        let acc = b.buffer("acc", dtype, blocks.rows * stride, Role::Register);
        // The second product is of the reset state.
        let source = outs.between.filter(|_| last).map_or(old_h, |(_, reset)| reset);
        let gates = first_gate..first_gate + gates;
        let kernel = Step { x, old_h, source, acc, stride, lens, gates: gates.clone(), outs };
        let shape = [panels.iter().map(|panels| panels.count).sum(), blocks.full + blocks.smaller];
        b.repeat(LoopKind::Parallel, shape.iter().product(), |b, i| {
            // All sequences take a panel before another is read.
            let [panel, block] = Index::unflatten(&i, &shape).try_into().expect("two of two");
            either(b, Guard::new(panel.clone(), panels[0].count), panels.len(), |b, side| {
                let Panels { first, lanes, .. } = panels[side];
                let panel = if side == 0 { panel.clone() } else { Index::constant(0) };
                let panel = Panel {
                    weights: weights[side],
                    row: panel.mul((size * gates.len() * lanes) as i64),
                    first: panel.mul(lanes as i64).add_const(first as i64),
                    lanes,
                };
                let Blocks { rows, full, smaller } = blocks;
                // There are always some of all rows.
                let sizes = if smaller > 0 { 2 } else { 1 };
                either(b, Guard::new(block.clone(), full), sizes, |b, side| match side {
                    0 => self.of_rows(b, &kernel, &panel, block.mul(rows as i64), rows),
                    _ => {
                        let start = block.mul(rows as i64 - 1).add_const(full as i64);
                        self.of_rows(b, &kernel, &panel, start, rows - 1);
                    }
                });
            });
        });
        emit.finish((2 * states * gates.len() * size) as u64)
    }

    /// What a block of sequences makes of a panel.
    fn of_rows(&self, b: &mut KernelBuilder, step: &Step, panel: &Panel, start: Index, rows: usize) {
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

/// What a step's kernel reads besides its product, and what it writes.
struct Outs {
    y: Option<Buffer>,
    h: Option<Buffer>,
    c: Option<(Buffer, Buffer)>,
    peepholes: Option<Buffer>,
    bias: Option<Buffer>,
    between: Option<(Buffer, Buffer)>,
}
