//! Bodies: units that run in rounds, as calls of kernels.
//!
//! A body is units like any others: they are merged, packed and scheduled as if it were a program of its own. What
//! needs nothing that differs from round to round, and so the packing of all weights, is taken out and runs once before.
//! What is left becomes calls of kernels in [`Rounds`]. Slices are rows of whole tensors, and all that lives within a
//! round shares one arena. A state has one of four homes:
//!
//! - rows of a result that has it after each round: it is read one row behind, but for the first round;
//! - rows of a result that has it before each round: it is written one row ahead, but for the last round;
//! - the last state's buffer, where the unit that makes it overwrites the old one element by element;
//! - else the halves of a buffer, read in one and written in the other, in turns.

use std::ops::Range;
use std::sync::Arc;

use cranelift_entity::SecondaryMap;
use windlass_ir::DType;
use windlass_ir::loops::{Call, Nest, NestBuilder, Part, Rounds, Stage};

use super::place::{Lifetime, place};
use super::prepare::known_bufs;
use super::schedule::Machine;
use super::units::{Body, Buf, BufData, Home, Unit, UnitWork, Units};
use super::{
    LowerOptions, Run, aliases, fuse, give_outputs_buffers, join, kernels, merge, overwritable, pack,
};

/// Merges and packs the units of every body, and takes out of it what is the same in all rounds.
pub(super) fn shape(units: &mut Units, options: &LowerOptions, observe: &mut dyn FnMut(fuse::Decision<'_>)) {
    if !units.units.iter().any(|unit| matches!(unit.work, UnitWork::Body(_))) {
        return;
    }
    for mut unit in std::mem::take(&mut units.units) {
        if let UnitWork::Body(body) = &mut unit.work {
            let mut frame = Frame { outer: &mut units.bufs, ins: &mut unit.ins, origin: &unit.origin };
            merge(&mut body.units, options, observe);
            units.units.extend(frame.hoist(body));
            pack::pack(&mut body.units, &options.machine);
            units.units.extend(frame.hoist(body));
            frame.adopt_constants(body);
            join(&mut body.units, options);
            give_results_buffers(body, &options.machine);
        }
        units.units.push(unit);
    }
}

/// Gives every result of a round a buffer of its own, but for states that are in rows of another result anyway.
fn give_results_buffers(body: &mut Body, machine: &Machine) {
    let outputs = std::mem::take(&mut body.units.outputs);
    let mut taken = vec![false; outputs.len()];
    for state in 0..body.states {
        let (before, after) = (body.units.inputs[state].1, outputs[state].1);
        let row_of = |buf: Buf, taken: &[bool]| {
            (body.states..outputs.len()).find(|&i| !taken[i] && outputs[i].1 == buf)
        };
        let home = match (row_of(after, &taken), row_of(before, &taken)) {
            _ if before == after => Home::Own,
            (Some(row), _) => Home::After(row - body.states),
            (None, Some(row)) => Home::Before(row - body.states),
            (None, None) => Home::Own,
        };
        if let Home::After(stack) | Home::Before(stack) = home {
            taken[body.states + stack] = true;
        }
        body.homes.push(home);
    }
    let has_own = |i: usize| match body.homes.get(i) {
        Some(Home::After(_)) => false,
        _ => !body.homes.contains(&Home::Before(i.wrapping_sub(body.states))),
    };
    body.units.outputs = (0..outputs.len()).filter(|&i| has_own(i)).map(|i| outputs[i].clone()).collect();
    let known = known_bufs(&body.units);
    if !body.units.outputs.is_empty() {
        give_outputs_buffers(&mut body.units, &known, machine);
    }
    let mut own = std::mem::take(&mut body.units.outputs).into_iter();
    let mut settled: Vec<(String, Buf)> = Vec::new();
    for (i, output) in outputs.into_iter().enumerate() {
        settled.push(if has_own(i) { own.next().expect("each has one") } else { output });
    }
    for state in 0..body.states {
        if let Home::After(stack) = body.homes[state] {
            settled[state].1 = settled[body.states + stack].1;
        }
    }
    body.units.outputs = settled;
}

/// What is around a body: the buffers of the units that it is among, and which of them are its operands.
struct Frame<'f> {
    outer: &'f mut cranelift_entity::PrimaryMap<Buf, BufData>,
    ins: &'f mut Vec<Buf>,
    origin: &'f [Arc<str>],
}

impl Frame<'_> {
    /// Makes a buffer of the body a capture.
    fn capture(&mut self, body: &mut Body, inner: Buf, outer: Buf) {
        self.ins.push(outer);
        body.units.inputs.push((format!("captured{}", body.units.inputs.len()), inner));
        body.units.captured.push(inner);
    }

    /// Takes out the units that need nothing but captures.
    fn hoist(&mut self, body: &mut Body) -> Vec<Unit> {
        let known = known_bufs(&body.units);
        let is_same =
            |unit: &Unit| !unit.ins.is_empty() && unit.ins.iter().chain(&unit.outs).all(|&buf| known[buf]);
        let (taken, left) = std::mem::take(&mut body.units.units).into_iter().partition(is_same);
        body.units.units = left;
        let (mut taken, mut outer): (Vec<Unit>, SecondaryMap<Buf, Option<Buf>>) =
            (taken, SecondaryMap::new());
        for ((_, inner), &buf) in body.units.inputs.iter().zip(&*self.ins) {
            outer[*inner] = Some(buf);
        }
        for unit in &mut taken {
            for buf in unit.ins.iter_mut().chain(&mut unit.outs) {
                let data = &body.units.bufs[*buf];
                *buf = *outer[*buf].get_or_insert_with(|| self.outer.push(data.clone()));
            }
            unit.origin = self.origin.to_vec();
        }
        for buf in read(&body.units) {
            let is_input = body.units.inputs.iter().any(|(_, input)| *input == buf);
            if let (Some(from), false) = (outer[buf], is_input) {
                body.units.bufs[buf].constant = None;
                self.capture(body, buf, from);
            }
        }
        taken
    }

    /// Makes constants that the body reads captures, of constants.
    fn adopt_constants(&mut self, body: &mut Body) {
        for buf in read(&body.units) {
            if body.units.bufs[buf].constant.is_some() {
                let outer = self.outer.push(body.units.bufs[buf].clone());
                body.units.bufs[buf].constant = None;
                self.capture(body, buf, outer);
            }
        }
    }
}

/// The buffers that units read or that are outputs, each once.
fn read(units: &Units) -> Vec<Buf> {
    let mut seen: SecondaryMap<Buf, bool> = SecondaryMap::new();
    let reads = units.units.iter().flat_map(|unit| unit.ins.iter().copied());
    let all = reads.chain(units.outputs.iter().map(|(_, buf)| *buf));
    all.filter(|&buf| !std::mem::replace(&mut seen[buf], true)).collect()
}

/// Turns every body into calls of kernels.
pub(super) fn plan(units: &mut Units, machine: &Machine, choose: &mut dyn FnMut(&Nest) -> Machine) {
    for unit in &mut units.units {
        if let UnitWork::Body(body) = &unit.work {
            let rounds = Plan::of(body, unit.ins.len(), machine).rounds(choose);
            unit.work = UnitWork::Rounds(Box::new(rounds));
        }
    }
}

/// A part of a buffer, by round: where it is in round 0, even if it is not there then.
#[derive(Clone, Copy)]
struct Moving {
    buffer: usize,
    start: i64,
    stride: i64,
    period: usize,
}

impl Moving {
    fn whole(buffer: usize) -> Moving {
        Moving { buffer, start: 0, stride: 0, period: 0 }
    }

    /// The part in a round and those after it.
    fn from(self, round: usize) -> Part {
        let Moving { buffer, start, stride, period } = self;
        let turn = if period == 0 { round } else { round % period };
        let start = usize::try_from(start + stride * turn as i64).expect("it is inside the buffer");
        let stride = if period == 2 && turn == 1 { -stride } else { stride };
        Part { buffer, start, stride, period }
    }
}

/// Where a buffer is in each round.
#[derive(Clone, Copy)]
struct Where {
    usual: Moving,
    /// Where else it is in the first round, or in the last.
    first: Option<Moving>,
    last: Option<Moving>,
}

/// Where everything that a body reads and writes is.
struct Plan<'b> {
    body: &'b Body,
    /// The number of the body's operands; its results come after them.
    operands: usize,
    scratch: Vec<(DType, usize)>,
    aliases: SecondaryMap<Buf, Option<Buf>>,
    places: SecondaryMap<Buf, Option<Where>>,
    /// Copies of states: before the rounds and after them.
    copies: [Vec<(Unit, Vec<Part>)>; 2],
    work: Vec<Unit>,
}

impl<'b> Plan<'b> {
    fn of(body: &'b Body, operands: usize, machine: &Machine) -> Plan<'b> {
        let aliases = aliases(&body.units, machine);
        let is_run = |unit: &&Unit| aliases[unit.outs[0]].is_none();
        let work: Vec<Unit> = body.units.units.iter().filter(is_run).cloned().collect();
        let (scratch, places, copies) = (Vec::new(), SecondaryMap::new(), Default::default());
        let mut plan = Plan { body, operands, scratch, aliases, places, copies, work };
        plan.place_slices();
        (0..body.states).for_each(|state| plan.place_state(state));
        plan.place_others();
        plan
    }

    fn root(&self, buf: Buf) -> Buf {
        self.aliases[buf].unwrap_or(buf)
    }

    fn input(&self, i: usize) -> Buf {
        self.body.units.inputs[i].1
    }

    /// The buffer that holds an output.
    fn output(&self, i: usize) -> Buf {
        self.root(self.body.units.outputs[i].1)
    }

    fn data(&self, buf: Buf) -> &BufData {
        &self.body.units.bufs[buf]
    }

    fn put(&mut self, buf: Buf, usual: Moving) {
        self.places[buf] = Some(Where { usual, first: None, last: None });
    }

    /// The rows of a buffer, one in each round.
    fn rows(&self, buffer: usize, len: usize, backward: bool) -> Moving {
        let Part { start, stride, .. } = Part::rows(buffer, len, backward.then_some(self.body.times));
        Moving { start: start as i64, stride, ..Moving::whole(buffer) }
    }

    /// The rows of a stacked result.
    fn stacked(&self, stack: usize, len: usize) -> Moving {
        self.rows(self.operands + self.body.states + stack, len, self.body.stacked[stack])
    }

    /// Slices of operands and results, and captures.
    fn place_slices(&mut self) {
        let states = self.body.states;
        for (i, &backward) in self.body.scanned.iter().enumerate() {
            let slice = self.input(states + i);
            self.put(slice, self.rows(states + i, self.data(slice).elements(), backward));
        }
        for i in self.body.varying()..self.operands {
            self.put(self.input(i), Moving::whole(i));
        }
        for stack in 0..self.body.stacked.len() {
            let slice = self.output(states + stack);
            self.put(slice, self.stacked(stack, self.data(slice).elements()));
        }
    }

    fn place_state(&mut self, state: usize) {
        let (old, new, times) = (self.input(state), self.output(state), self.body.times);
        let len = self.data(old).elements();
        let (first, last) = (Moving::whole(state), Moving::whole(self.operands + state));
        let behind = |row: Moving, by: i64| Moving { start: row.start - by * row.stride, ..row };
        match self.body.homes[state] {
            Home::After(stack) => {
                let row = self.stacked(stack, len);
                self.places[old] = Some(Where { usual: behind(row, 1), first: Some(first), last: None });
                self.copy(1, old, row.from(times - 1), last);
            }
            Home::Before(stack) => {
                let row = self.stacked(stack, len);
                self.put(old, row);
                self.places[new] = Some(Where { usual: behind(row, -1), first: None, last: Some(last) });
                self.copy(0, old, first.from(0), row);
            }
            Home::Own if self.is_overwritten(old, new) => {
                self.put(old, last);
                self.put(new, last);
                self.copy(0, old, first.from(0), last);
            }
            Home::Own => {
                let at = self.add_scratch(self.data(old).dtype, 2 * len);
                // From the half from which it comes to the first one in the end.
                let half = |half: usize| {
                    let Part { start, stride, period, .. } = Part::halves(at, len, half);
                    Moving { buffer: at, start: start as i64, stride, period }
                };
                self.put(old, half(times % 2));
                self.put(new, half(1 - times % 2));
                self.copy(0, old, first.from(0), Moving { stride: 0, period: 0, ..half(times % 2) });
                self.copy(1, old, Part::whole(at), last);
            }
        }
    }

    /// Copies a state before the rounds or after them.
    fn copy(&mut self, end: usize, like: Buf, from: Part, to: Moving) {
        let data = self.data(like);
        let mut n = NestBuilder::new(&data.shape);
        let operand = n.operand(data.dtype, &data.shape);
        let element = n.load(operand, &n.domain());
        let work = UnitWork::Copy(Box::new(n.finish(&[element])));
        let unit = Unit { work, ins: Vec::new(), outs: Vec::new(), origin: Vec::new(), flops: 0 };
        let from = Part { stride: 0, period: 0, ..from };
        self.copies[end].push((unit, vec![from, to.from(0)]));
    }

    fn add_scratch(&mut self, dtype: DType, len: usize) -> usize {
        self.scratch.push((dtype, len));
        self.operands + self.body.units.outputs.len() + self.scratch.len() - 1
    }

    /// Whether the unit that makes a state reads the old one element by element where the new one comes to be, after all
    /// others that read it.
    fn is_overwritten(&self, old: Buf, new: Buf) -> bool {
        let reads = |unit: &Unit| unit.ins.iter().filter(|&&buf| self.root(buf) == old).count();
        let last = self.work.iter().rposition(|unit| reads(unit) > 0);
        let made = self.work.iter().position(|unit| unit.outs.contains(&new));
        let Some(unit) = made.filter(|_| last == made).map(|at| &self.work[at]) else { return false };
        reads(unit) == 1 && overwritable(unit).is_some_and(|operand| self.root(unit.ins[operand]) == old)
    }

    /// Buffers that live within a round.
    fn place_others(&mut self) {
        let mut lives: Vec<(Buf, Lifetime)> = Vec::new();
        let mut life_of: SecondaryMap<Buf, Option<usize>> = SecondaryMap::new();
        for (number, unit) in self.work.iter().enumerate() {
            for &buf in &unit.ins {
                if let Some(life) = life_of[self.root(buf)] {
                    lives[life].1.last = number;
                }
            }
            for &buf in unit.outs.iter().filter(|&&buf| self.places[buf].is_none()) {
                let data = self.data(buf);
                let bytes = (data.elements() * data.dtype.size()) as u64;
                life_of[buf] = Some(lives.len());
                lives.push((buf, Lifetime { bytes, first: number, last: number }));
            }
        }
        let (offsets, bytes) = place(&lives.iter().map(|(_, life)| *life).collect::<Vec<_>>());
        if lives.is_empty() {
            return;
        }
        let arena = self.add_scratch(DType::U8, bytes as usize);
        for ((buf, _), offset) in lives.into_iter().zip(offsets) {
            let start = (offset / self.data(buf).dtype.size() as u64) as i64;
            self.put(buf, Moving { start, ..Moving::whole(arena) });
        }
    }

    /// The rounds, in ranges within which everything moves evenly.
    fn ranges(&self) -> Vec<Range<usize>> {
        let times = self.body.times;
        let has = |edge: fn(&Where) -> bool| self.places.values().flatten().any(edge);
        let first = if has(|place| place.first.is_some()) { 1.min(times) } else { 0 };
        let last = if has(|place| place.last.is_some()) { (times - 1).max(first) } else { times };
        [0..first, first..last, last..times].into_iter().filter(|range| !range.is_empty()).collect()
    }

    /// The calls: states are laid down, the rounds run, and the last states are copied out.
    fn rounds(mut self, choose: &mut dyn FnMut(&Nest) -> Machine) -> Rounds {
        let part = |buf: Buf, range: &Range<usize>| {
            let place = self.places[self.root(buf)].expect("a buffer is read that something writes");
            let first = place.first.filter(|_| range.start == 0);
            let edge = first.or(place.last.filter(|_| range.end == self.body.times));
            edge.unwrap_or(place.usual).from(range.start)
        };
        let mut stages: Vec<(usize, Vec<(Unit, Vec<Part>)>)> = Vec::new();
        for range in self.ranges() {
            let args = |unit: &Unit| unit.ins.iter().chain(&unit.outs).map(|&b| part(b, &range)).collect();
            let calls = self.work.iter().map(|unit| (unit.clone(), args(unit))).collect();
            stages.push((range.len(), calls));
        }
        let [start, end] = std::mem::take(&mut self.copies);
        stages.insert(0, (1, start));
        stages.push((1, end));
        stages.retain(|(_, calls)| !calls.is_empty());
        let units: Vec<Unit> =
            stages.iter().flat_map(|(_, calls)| calls).map(|(unit, _)| unit.clone()).collect();
        let (kernels, runs) = kernels(&units, choose);
        let mut runs = runs.iter();
        let mut call = |(unit, args): (Unit, Vec<Part>)| match runs.next() {
            Some(Run::Kernel(kernel)) => {
                Call { kernel: *kernel as usize, args, origin: unit.origin, flops: unit.flops }
            }
            _ => unreachable!("a body is formulas and kernels"),
        };
        let stages = stages
            .into_iter()
            .map(|(times, calls)| Stage { times, calls: calls.into_iter().map(&mut call).collect() })
            .collect();
        Rounds { kernels, scratch: self.scratch, stages }
    }
}
