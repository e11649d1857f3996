//! Bodies: units that run in rounds, as calls of kernels.
//!
//! A body is units like any others: they are merged, packed and scheduled as if it were a program of its own. What
//! needs nothing that differs from round to round, and so the packing of all weights, is taken out and runs once before.
//! What is left becomes calls of kernels in [`Rounds`]. Slices are rows of whole tensors. A state that is overwritten
//! where it is read stands in the result itself; another is read in one half of a buffer and written in the other, in
//! turns. All that lives within a round shares one arena.

use cranelift_entity::SecondaryMap;
use windlass_ir::DType;
use windlass_ir::loops::{Call, Nest, NestBuilder, Part, Rounds, Stage};

use super::place::{Lifetime, place};
use super::prepare::known_bufs;
use super::schedule::Machine;
use super::units::{Body, Buf, BufData, Unit, UnitWork, Units};
use super::{
    LowerOptions, Run, aliases, fuse, give_outputs_buffers, join, kernels, merge, overwritable, pack,
};

/// Merges and packs the units of every body, and takes out of it what is the same in all rounds.
pub(super) fn shape(units: &mut Units, options: &LowerOptions, observe: &mut dyn FnMut(fuse::Decision)) {
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
            let known = known_bufs(&body.units);
            give_outputs_buffers(&mut body.units, &known, &options.machine);
        }
        units.units.push(unit);
    }
}

/// What is around a body: the buffers of the units that it is among, and which of them are its operands.
struct Frame<'f> {
    outer: &'f mut cranelift_entity::PrimaryMap<Buf, BufData>,
    ins: &'f mut Vec<Buf>,
    origin: &'f [String],
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

/// Where everything that a body reads and writes is.
struct Plan<'b> {
    body: &'b Body,
    /// The number of the body's operands; its results come after them.
    operands: usize,
    scratch: Vec<(DType, usize)>,
    aliases: SecondaryMap<Buf, Option<Buf>>,
    parts: SecondaryMap<Buf, Option<Part>>,
    /// The states that are kept in two halves: where they are in scratch.
    halves: Vec<Option<usize>>,
    work: Vec<Unit>,
}

impl<'b> Plan<'b> {
    fn of(body: &'b Body, operands: usize, machine: &Machine) -> Plan<'b> {
        let aliases = aliases(&body.units, machine);
        let is_run = |unit: &&Unit| aliases[unit.outs[0]].is_none();
        let work: Vec<Unit> = body.units.units.iter().filter(is_run).cloned().collect();
        let (scratch, parts) = (Vec::new(), SecondaryMap::new());
        let mut plan = Plan { body, operands, scratch, aliases, parts, halves: Vec::new(), work };
        plan.place_slices();
        plan.place_states();
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

    fn len(&self, buf: Buf) -> usize {
        self.body.units.bufs[buf].elements()
    }

    /// Slices of operands and results, and captures.
    fn place_slices(&mut self) {
        let Body { states, times, .. } = *self.body;
        let rows =
            |buffer: usize, len: usize, backward: bool| Part::rows(buffer, len, backward.then_some(times));
        for (i, &backward) in self.body.scanned.iter().enumerate() {
            let slice = self.input(states + i);
            self.parts[slice] = Some(rows(states + i, self.len(slice), backward));
        }
        for i in self.body.varying()..self.operands {
            let capture = self.input(i);
            self.parts[capture] = Some(Part::whole(i));
        }
        for (i, &backward) in self.body.stacked.iter().enumerate() {
            let slice = self.output(states + i);
            self.parts[slice] = Some(rows(self.operands + states + i, self.len(slice), backward));
        }
    }

    fn place_states(&mut self) {
        for state in 0..self.body.states {
            let (old, new) = (self.input(state), self.output(state));
            let len = self.len(old);
            if self.is_overwritten(old, new) {
                let result = Part::whole(self.operands + state);
                (self.parts[old], self.parts[new]) = (Some(result), Some(result));
                self.halves.push(None);
                continue;
            }
            let at = self.add_scratch(self.body.units.bufs[old].dtype, 2 * len);
            // From the half from which it comes to the first one in the end.
            let first = self.body.times % 2;
            self.parts[old] = Some(Part::halves(at, len, first));
            self.parts[new] = Some(Part::halves(at, len, 1 - first));
            self.halves.push(Some(at));
        }
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
            for &buf in unit.outs.iter().filter(|&&buf| self.parts[buf].is_none()) {
                let data = &self.body.units.bufs[buf];
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
            let start = offset as usize / self.body.units.bufs[buf].dtype.size();
            self.parts[buf] = Some(Part { start, ..Part::whole(arena) });
        }
    }

    /// The calls: states are laid down, the rounds run, and the last states are copied out.
    fn rounds(self, choose: &mut dyn FnMut(&Nest) -> Machine) -> Rounds {
        let Body { states, times, .. } = *self.body;
        let mut copies = [Vec::new(), Vec::new()];
        for state in 0..states {
            let data = &self.body.units.bufs[self.input(state)];
            let result = Part::whole(self.operands + state);
            let mut copy = |end: usize, from: Part, to: Part| copies[end].push((data.copy(), vec![from, to]));
            match self.halves[state] {
                None => copy(0, Part::whole(state), result),
                Some(at) => {
                    let first = Part { start: times % 2 * data.elements(), ..Part::whole(at) };
                    copy(0, Part::whole(state), first);
                    copy(1, Part::whole(at), result);
                }
            }
        }
        let part = |buf: &Buf| self.parts[self.root(*buf)].expect("a buffer is read that something writes");
        let of = |unit: &Unit| unit.ins.iter().chain(&unit.outs).map(part).collect();
        let inner = self.work.iter().map(|unit| (unit.clone(), of(unit))).collect();
        let [start, end] = copies;
        let stages: Vec<(usize, Vec<(Unit, Vec<Part>)>)> = [(1, start), (times, inner), (1, end)]
            .into_iter()
            .filter(|(_, calls)| !calls.is_empty())
            .collect();
        let units: Vec<Unit> =
            stages.iter().flat_map(|(_, calls)| calls).map(|(unit, _)| unit.clone()).collect();
        let (kernels, runs) = kernels(&units, choose);
        let mut runs = runs.iter();
        let mut call = |(unit, args): (Unit, Vec<Part>)| match runs.next() {
            Some(Run::Kernel(kernel)) => {
                let kernel = kernels[*kernel as usize].clone();
                Call { kernel, args, origin: unit.origin, flops: unit.flops }
            }
            _ => unreachable!("a body is formulas and kernels"),
        };
        let stages = stages
            .into_iter()
            .map(|(times, calls)| Stage { times, calls: calls.into_iter().map(&mut call).collect() })
            .collect();
        Rounds { scratch: self.scratch, stages }
    }
}

impl BufData {
    /// A copy of such a buffer, its operands and results not yet said.
    fn copy(&self) -> Unit {
        let mut n = NestBuilder::new(&self.shape);
        let operand = n.operand(self.dtype, &self.shape);
        let element = n.load(operand, &n.domain());
        let work = UnitWork::Copy(Box::new(n.finish(&[element])));
        Unit { work, ins: Vec::new(), outs: Vec::new(), origin: Vec::new(), flops: 0 }
    }
}
