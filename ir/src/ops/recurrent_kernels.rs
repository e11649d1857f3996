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
use super::recurrence::{Blocks, FEW_ROWS, VECTOR_BYTES};
use super::recurrent_steps::{Places, products};
use super::{Recurrence, RecurrentSteps};
use crate::dtype::DType;
use crate::loops::{
    Buffer, Call, Guard, Index, Kernel, KernelBuilder, LoopKind, Part, Rhs, Role, Rounds, Stage, Val,
};
use crate::scalar::ScalarFn;
use crate::types::TensorType;

/// The kernels for operands of these types, of which none is empty, where registers hold so many bytes of sums.
pub(super) fn rounds(op: &RecurrentSteps, ins: &[TensorType], panels: &[usize], sum_bytes: usize) -> Rounds {
    let places = op.places_behind(Recurrence::WEIGHTS + panels.len());
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
    /// The units of a panel of each product.
    panels: &'a [usize],
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

/// Where a kernel of a step finds things.
struct Step {
    x: Buffer,
    /// Element 0 of the sequence's input.
    input: Index,
    old_h: Buffer,
    /// Element 0 of the sequence in states.
    row: Index,
    /// Element 0 of the step's result.
    result: Index,
    /// The first unit of the panel.
    first: Index,
    /// The sums, gate after gate from this element on.
    acc: Buffer,
    sums: i64,
    lanes: usize,
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
        let lanes = self.panels[product];
        // With lengths, each sequence is at a step of its own.
        let back = self.op.reverse.then_some(self.steps);
        let rows = |buffer: usize, len: usize| match self.places.lens {
            None => (len, Part::rows(buffer, len, back)),
            Some(_) => (self.steps * len, Part::whole(buffer)),
        };
        let all_gates = self.op.cell.kind.gates() * size;
        let (len, part) = rows(0, batch * all_gates);
        let x = emit.param("x", dtype, len, Role::In, part);
        let weights = Part::whole(Recurrence::WEIGHTS + product);
        let weights = emit.param("weights", dtype, size * gates * size, Role::In, weights);
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
        let stride = (gates * lanes).next_multiple_of(VECTOR_BYTES / dtype.size());
        let blocks = Blocks::new(batch, stride * dtype.size(), self.sum_bytes);
        let acc = b.buffer("acc", dtype, blocks.rows * stride, Role::Register);
        let shape = [size / lanes, blocks.full + blocks.smaller];
        b.repeat(LoopKind::Parallel, shape.iter().product(), |b, i| {
            // All sequences take a panel before another is read.
            let [panel, block] = Index::unflatten(&i, &shape).try_into().expect("two of two");
            let of_rows = |b: &mut KernelBuilder, start: Index, rows: usize| {
                let runs = lens.map(|(lens, number)| self.runs(b, lens, number, &start, rows));
                let step = |row: usize| {
                    let n = start.add_const(row as i64);
                    let t = runs.as_ref().map_or(Index::constant(0), |runs| runs.of_rows[row].input.clone());
                    let (first, state) = (panel.mul(lanes as i64), n.mul(size as i64));
                    let input = t.mul(batch as i64).add(&n).mul(all_gates as i64);
                    let result = t.mul(batch as i64).add(&n).mul(size as i64);
                    let sums = (row * stride) as i64;
                    Step { x, input, old_h, row: state, result, first, acc, sums, lanes }
                };
                let block: Vec<Step> = (0..rows).map(step).collect();
                let ended = |b: &mut KernelBuilder, runs: &Runs, row: usize| {
                    let n = start.add_const(row as i64);
                    let past_end = runs.number.mul(batch as i64).add(&n).mul(size as i64);
                    self.rest(b, &block[row], &outs, &past_end);
                };
                if let Some(runs) = &runs {
                    b.begin_if(std::slice::from_ref(&runs.active));
                }
                // The second product is of the reset state.
                let source = outs.between.filter(|_| last).map_or(old_h, |(_, reset)| reset);
                let row = panel.mul((size * gates * lanes) as i64);
                self.product(b, &block, first_gate..first_gate + gates, (weights, row), source, &outs);
                for (row, step) in block.iter().enumerate() {
                    match runs.as_ref().filter(|_| rows > 1) {
                        None => self.gates(b, step, &outs),
                        Some(runs) => {
                            b.begin_if(std::slice::from_ref(&runs.of_rows[row].active));
                            self.gates(b, step, &outs);
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
            };
            let Blocks { rows, full, smaller } = blocks;
            // There are always some of all rows.
            if smaller > 0 {
                b.begin_if(&[Guard::new(block.clone(), full)]);
            }
            of_rows(b, block.mul(rows as i64), rows);
            if smaller > 0 {
                b.begin_else();
                of_rows(b, block.mul(rows as i64 - 1).add_const(full as i64), rows - 1);
                b.end();
            }
        });
        emit.finish((2 * states * gates * size) as u64)
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

    /// The sums of some gates of a panel's units, with what they start from, for a block of sequences. The panel begins
    /// at an element of a buffer.
    fn product(
        &self,
        b: &mut KernelBuilder,
        block: &[Step],
        gates: Range<usize>,
        (weights, first): (Buffer, Index),
        source: Buffer,
        outs: &Outs,
    ) {
        let lanes = block[0].lanes;
        let count = gates.len();
        for (step, (at, gate)) in
            block.iter().flat_map(|step| gates.clone().enumerate().map(move |gate| (step, gate)))
        {
            b.repeat(LoopKind::Vector, lanes, |b, lane| {
                // The input of a hidden gate that is reset after its product is added then.
                let value = match (count == 3 && gate == 2, outs.bias) {
                    (false, _) => self.x(b, step, gate, &lane),
                    (true, Some(bias)) => b.load(bias, step.first.add(&lane)),
                    (true, None) => b.constant(self.dtype, 0.0),
                };
                b.store(step.acc, lane.add_const(step.sums + (at * lanes) as i64), value);
            });
        }
        b.repeat(LoopKind::Serial, self.size, |b, k| {
            let row = first.add(&k.mul((count * lanes) as i64));
            // Registers hold the states of a few sequences, and of more the row of the panel.
            let at_once = if block.len() <= FEW_ROWS { FEW_ROWS } else { 1 };
            for steps in block.chunks(at_once) {
                let states: Vec<Val> = steps.iter().map(|step| b.load(source, step.row.add(&k))).collect();
                b.repeat(LoopKind::Vector, count * lanes, |b, lane| {
                    let weight = b.load(weights, row.add(&lane));
                    for (step, &h) in steps.iter().zip(&states) {
                        let at = lane.add_const(step.sums);
                        let sum = b.load(step.acc, at.clone());
                        let sum = b.apply(ScalarFn::Fma, &[h, weight, sum]);
                        b.store(step.acc, at, sum);
                    }
                });
            }
        });
    }

    fn x(&self, b: &mut KernelBuilder, step: &Step, gate: usize, lane: &Index) -> Val {
        let unit = step.first.add(lane).add_const((gate * self.size) as i64);
        b.load(step.x, step.input.add(&unit))
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
    fn gates(&self, b: &mut KernelBuilder, step: &Step, outs: &Outs) {
        b.repeat(LoopKind::Vector, step.lanes, |b, lane| {
            let state = step.row.add(&step.first).add(&lane);
            let acc = |b: &mut KernelBuilder, gate: usize| {
                b.load(step.acc, lane.add_const(step.sums + (gate * step.lanes) as i64))
            };
            let h = match (self.op.cell.kind, outs.between) {
                (CellKind::Rnn, _) => {
                    let sum = acc(b, 0);
                    self.act(b, 0, sum)
                }
                (CellKind::Lstm, _) => self.lstm(b, step, outs, &lane, &state),
                (CellKind::Gru, None) => {
                    let (z, r, linear) = (acc(b, 0), acc(b, 1), acc(b, 2));
                    let (z, r) = (self.act(b, 0, z), self.act(b, 0, r));
                    let x = self.x(b, step, 2, &lane);
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
                b.store(y, step.result.add(&step.first).add(&lane), h);
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

    /// The new state of an LSTM, when its new memory is stored.
    fn lstm(&self, b: &mut KernelBuilder, step: &Step, outs: &Outs, lane: &Index, state: &Index) -> Val {
        let (old_c, new_c) = outs.c.expect("an LSTM has a memory");
        let c = b.load(old_c, state.clone());
        let gate = |b: &mut KernelBuilder, gate: usize, peephole: Option<usize>, c: Val| {
            let sum = b.load(step.acc, lane.add_const(step.sums + (gate * step.lanes) as i64));
            let Some((which, weights)) = peephole.zip(outs.peepholes) else { return sum };
            let weight = b.load(weights, step.first.add(lane).add_const((which * self.size) as i64));
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
        b.store(new_c, state.clone(), c);
        let o = gate(b, 1, Some(1), c);
        let o = self.act(b, 0, o);
        let Ok(shown) = self.f[2].emit(b, c);
        b.apply(ScalarFn::Mul, &[o, shown])
    }

    /// A sequence that is at its end keeps its states and gives 0.
    fn rest(&self, b: &mut KernelBuilder, step: &Step, outs: &Outs, y_row: &Index) {
        let (Some(new_h), Some(y)) = (outs.h, outs.y) else { return };
        b.repeat(LoopKind::Vector, step.lanes, |b, lane| {
            let state = step.row.add(&step.first).add(&lane);
            for (old, new) in [(step.old_h, new_h)].into_iter().chain(outs.c) {
                let kept = b.load(old, state.clone());
                b.store(new, state.clone(), kept);
            }
            let zero = b.constant(self.dtype, 0.0);
            b.store(y, y_row.add(&step.first).add(&lane), zero);
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
