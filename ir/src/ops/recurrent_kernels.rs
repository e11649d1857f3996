//! The loops of `recurrent_steps`: kernels for the start, for each product of a step with what its gates do, and
//! for the end.
//!
//! An iteration of a step's kernel makes all gates of some units of a block of sequences, so iterations need nothing of each
//! other and threads share a step. States stand in two halves of a buffer, read in one and written in the other, in
//! turns. Sums start with the step's input and go over the old state in order, so bits depend neither on panels nor
//! on threads.

use super::activation::Activation;
use super::recurrence::{Blocks, Panels, VECTOR_BYTES};
use super::recurrent_blocks::{Outs, Panel, Step};
use super::recurrent_steps::{Places, products};
use super::{Recurrence, RecurrentSteps};
use crate::dtype::DType;
use crate::loops::{
    Buffer, Call, Guard, Index, Kernel, KernelBuilder, LoopKind, Part, Rhs, Role, Rounds, Stage,
};
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
pub(super) struct Layer<'a> {
    pub op: &'a RecurrentSteps,
    pub f: Vec<Activation>,
    pub dtype: DType,
    pub steps: usize,
    pub batch: usize,
    pub size: usize,
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
}
