//! Where each virtual register holds a value that is still read, and where code repeats.

use fixedbitset::FixedBitSet;
use regalloc2::{Function, Inst, OperandConstraint, OperandKind, VReg};
use smallvec::SmallVec;

use super::Code;

/// A half of an instruction: 2 n is where the instruction n reads, 2 n + 1 is where it writes.
pub type Point = usize;

/// Where an instruction reads.
pub fn reads(inst: usize) -> Point {
    2 * inst
}

/// Where an instruction writes.
pub fn writes(inst: usize) -> Point {
    2 * inst + 1
}

/// Points in a row; the end is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: Point,
    pub end: Point,
}

impl Range {
    /// One point.
    pub fn at(point: Point) -> Range {
        Range { start: point, end: point + 1 }
    }

    pub fn contains(self, point: Point) -> bool {
        (self.start..self.end).contains(&point)
    }

    /// The points in both, if there are any.
    pub fn intersection(self, other: Range) -> Option<Range> {
        let both = Range { start: self.start.max(other.start), end: self.end.min(other.end) };
        (both.start < both.end).then_some(both)
    }
}

/// Points, as ranges in order that do not touch.
pub type Ranges = SmallVec<[Range; 2]>;

/// Adds a range that starts at or behind the last one's end.
pub fn append(ranges: &mut Ranges, range: Range) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// The union of points that have nothing in common, or nothing if they do.
pub fn disjoint_union(a: &[Range], b: &[Range]) -> Option<Ranges> {
    let (mut union, mut a, mut b) = (Ranges::new(), a, b);
    loop {
        let (next, rest) = match (a.split_first(), b.split_first()) {
            (Some((x, _)), Some((y, _))) if x.intersection(*y).is_some() => return None,
            (Some((x, rest)), Some((y, _))) if x.start < y.start => (x, (rest, b)),
            (_, Some((y, rest))) => (y, (a, rest)),
            (Some((x, rest)), None) => (x, (rest, b)),
            (None, None) => return Some(union),
        };
        append(&mut union, *next);
        (a, b) = rest;
    }
}

/// A loop: from the block that it goes back to, to the last one that goes back there.
#[derive(Clone, Copy, Debug)]
pub struct Loop {
    /// Its first block and its last.
    pub blocks: (usize, usize),
    /// Its points.
    pub points: Range,
}

/// What is known of a function before registers are chosen.
pub struct Live {
    /// For each virtual register, where its value is still read.
    pub ranges: Vec<Ranges>,
    /// For each virtual register, where it gets its value.
    pub defined: Vec<Point>,
    /// Loops, each before those inside it.
    pub loops: Vec<Loop>,
    /// For each block, how often it runs, as a guess.
    pub frequencies: Vec<f32>,
}

/// How often a loop runs, as a guess, and how many loops deep that counts.
const ROUNDS: f32 = 10.0;
const DEEPEST: i32 = 8;

/// The points of a block.
pub fn points(code: &Code, block: usize) -> Range {
    let (start, end) = code.blocks[block].range;
    Range { start: reads(start), end: reads(end) }
}

impl Live {
    pub fn of(code: &Code) -> Live {
        let loops = loops(code);
        let depth =
            |block: usize| loops.iter().filter(|l| (l.blocks.0..=l.blocks.1).contains(&block)).count();
        let frequencies =
            (0..code.blocks.len()).map(|b| ROUNDS.powi((depth(b) as i32).min(DEEPEST))).collect();
        let (ranges, defined) = ranges(code, &live_out(code));
        Live { ranges, defined, loops, frequencies }
    }
}

fn loops(code: &Code) -> Vec<Loop> {
    let mut loops: Vec<Loop> = Vec::new();
    for (first, block) in code.blocks.iter().enumerate() {
        let back = block.predecessors.iter().map(|p| p.index()).filter(|&p| p >= first).max();
        if let Some(last) = back {
            let points = Range { start: points(code, first).start, end: points(code, last).end };
            loops.push(Loop { blocks: (first, last), points });
        }
    }
    loops
}

/// For each block, the registers that are read behind it, or by the blocks that it goes to as parameters.
fn live_out(code: &Code) -> Vec<FixedBitSet> {
    let none = || FixedBitSet::with_capacity(code.registers);
    // What a block reads before it writes it, and what it writes.
    let (mut read, mut written): (Vec<_>, Vec<_>) = code.blocks.iter().map(|_| (none(), none())).unzip();
    for (at, block) in code.blocks.iter().enumerate() {
        let (read, written) = (&mut read[at], &mut written[at]);
        block.targets.iter().flat_map(|(_, args)| args).for_each(|arg| read.insert(arg.vreg()));
        for inst in (block.range.0..block.range.1).rev() {
            // No instruction reads what it writes.
            for operand in code.inst_operands(Inst::new(inst)) {
                let register = operand.vreg().vreg();
                read.set(register, operand.kind() == OperandKind::Use);
                if operand.kind() == OperandKind::Def {
                    written.insert(register);
                }
            }
        }
        for param in &block.params {
            read.remove(param.vreg());
            written.insert(param.vreg());
        }
    }
    let mut live_in = read;
    let mut live_out: Vec<FixedBitSet> = code.blocks.iter().map(|_| none()).collect();
    let (mut changes, mut out) = (true, none());
    while changes {
        changes = false;
        for (at, block) in code.blocks.iter().enumerate().rev() {
            out.clear();
            block.successors.iter().for_each(|next| out.union_with(&live_in[next.index()]));
            if out != live_out[at] {
                changes = true;
                live_out[at].clone_from(&out);
                out.difference_with(&written[at]);
                live_in[at].union_with(&out);
            }
        }
    }
    for (out, block) in live_out.iter_mut().zip(&code.blocks) {
        block.targets.iter().flat_map(|(_, args)| args).for_each(|arg| out.insert(arg.vreg()));
    }
    live_out
}

/// Where registers are live, and where each gets its value.
fn ranges(code: &Code, live_out: &[FixedBitSet]) -> (Vec<Ranges>, Vec<Point>) {
    let mut ranges = vec![Ranges::new(); code.registers];
    let mut defined = vec![0; code.registers];
    // Where the value that is live at the point looked at is read last, and those that have such an end.
    let mut ends: Vec<Option<Point>> = vec![None; code.registers];
    let mut live: Vec<usize> = Vec::new();
    for (at, block) in code.blocks.iter().enumerate().rev() {
        let all = points(code, at);
        for register in live_out[at].ones() {
            ends[register] = Some(all.end);
            live.push(register);
        }
        let mut define = |register: VReg, point: Point, ends: &mut [Option<Point>]| {
            let register = register.vreg();
            let end = ends[register].take().unwrap_or(point + 1);
            prepend(&mut ranges[register], Range { start: point, end });
            defined[register] = point;
        };
        for inst in (block.range.0..block.range.1).rev() {
            for operand in code.inst_operands(Inst::new(inst)) {
                let register = operand.vreg().vreg();
                match operand.kind() {
                    OperandKind::Def => define(operand.vreg(), writes(inst), &mut ends),
                    OperandKind::Use if ends[register].is_none() => {
                        ends[register] = Some(reads(inst) + 1);
                        live.push(register);
                    }
                    OperandKind::Use => {}
                }
            }
        }
        for &param in &block.params {
            define(param, all.start, &mut ends);
        }
        for register in live.drain(..) {
            if let Some(end) = ends[register].take() {
                prepend(&mut ranges[register], Range { start: all.start, end });
            }
        }
    }
    ranges.iter_mut().for_each(|backwards| backwards.reverse());
    (ranges, defined)
}

/// Adds a range that ends at or before the last one's start, to ranges from the last to the first.
fn prepend(backwards: &mut Ranges, range: Range) {
    match backwards.last_mut() {
        Some(first) if first.start == range.end => first.start = range.start,
        _ => backwards.push(range),
    }
}

/// For each virtual register, the instructions that read or write it.
pub struct Mentions {
    starts: Vec<u32>,
    insts: Vec<u32>,
}

impl Mentions {
    pub fn of(code: &Code) -> Mentions {
        let mut starts = vec![0u32; code.registers + 1];
        let all = || {
            (0..code.insts.len()).flat_map(|i| code.inst_operands(Inst::new(i)).iter().map(move |o| (i, o)))
        };
        all().for_each(|(_, operand)| starts[operand.vreg().vreg() + 1] += 1);
        (1..starts.len()).for_each(|at| starts[at] += starts[at - 1]);
        let (mut next, mut insts) = (starts.clone(), vec![0; starts[code.registers] as usize]);
        for (inst, operand) in all() {
            let next = &mut next[operand.vreg().vreg()];
            insts[*next as usize] = inst as u32;
            *next += 1;
        }
        Mentions { starts, insts }
    }

    /// In order, as often as they name it.
    pub fn of_register(&self, register: VReg) -> &[u32] {
        let at = register.vreg();
        &self.insts[self.starts[at] as usize..self.starts[at + 1] as usize]
    }
}

/// The operand that a written operand starts as a copy of.
pub fn copied(operand: regalloc2::Operand) -> Option<usize> {
    match operand.constraint() {
        OperandConstraint::Reuse(at) => Some(at),
        _ => None,
    }
}
