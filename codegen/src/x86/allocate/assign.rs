//! A register for every bundle, or for the stretches of it that are worth one.
//!
//! The bundle that reaches furthest comes first. It gets a register that is free wherever it lives; else one whose
//! holders are all read less often for their length, which are taken out and wait again; else it is split: into its virtual
//! registers, those into the loops that read them, and those into single reads and writes. A virtual register that is split
//! has a place on the stack, where it is stored when it gets its value, and which is right from there on: loops load
//! it where they are entered, single instructions before they read it.

use std::cell::OnceCell;
use std::collections::{BTreeSet, BinaryHeap};

use fixedbitset::FixedBitSet;
use regalloc2::{
    Allocation, Function, Inst, Operand, OperandConstraint, OperandKind, PReg, RegClass, SpillSlot, VReg,
};
use smallvec::SmallVec;

use super::assignment::{Assignment, Stretch};
use super::bundle::{Bundle, Bundles, start_earlier};
use super::live::{Live, Mentions, Point, Range, Ranges, copied, reads, writes};
use super::{Code, registers};

/// What wants a register.
struct Piece {
    ranges: Ranges,
    class: RegClass,
    /// How often it is read and written, for its length.
    weight: f32,
    part: Part,
    /// The bundle it comes from, whose place on the stack it shares.
    origin: usize,
    /// The register it has.
    register: Option<PReg>,
    /// The register that is better than others.
    hint: Option<PReg>,
}

/// What of a bundle a piece is.
#[derive(Clone)]
enum Part {
    /// Virtual registers, wherever they live.
    Whole(SmallVec<[VReg; 4]>),
    /// What of a virtual register lies in a loop.
    Loop(VReg, usize),
    /// What a single instruction reads or writes.
    Point(VReg),
}

/// Which pieces come first: those of single instructions, those across blocks by length, those within a block in the
/// order of code. One number, for the greatest is looked for often: how much a piece comes first, and what is left of the
/// points and of the pieces from it on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Priority(u128);

impl Priority {
    fn new(first: u64, start: Point, piece: usize) -> Priority {
        let left = |at: usize| u128::from(u32::MAX - at as u32);
        Priority(u128::from(first) << 64 | left(start) << 32 | left(piece))
    }

    fn piece(self) -> usize {
        (u32::MAX - self.0 as u32) as usize
    }
}

struct Assign<'c> {
    code: &'c Code,
    live: &'c Live,
    pieces: Vec<Piece>,
    queue: BinaryHeap<Priority>,
    /// The registers, where each is in use, and by which pieces.
    registers: Vec<Register>,
    /// How many of them are general ones, which come first.
    general: usize,
    /// Of each virtual register, the instructions that name it, in order, once that was asked.
    mentions: OnceCell<Mentions>,
    /// The block of each instruction.
    block_of: Vec<u32>,
    /// How often instructions name each virtual register.
    frequencies: Vec<f32>,
    /// The virtual registers that are split, each with the bundle it comes from.
    split: Vec<(VReg, usize)>,
}

struct Register {
    name: PReg,
    busy: FixedBitSet,
    /// Where an instruction wants this very register.
    reserved: Vec<Point>,
    /// Who holds it: ranges that do not meet, in order, and the piece that each is of.
    holders: Vec<(Range, usize)>,
}

impl Register {
    /// The pieces that hold it at any of these points.
    fn holders(&self, ranges: &Ranges) -> impl Iterator<Item = usize> {
        ranges.iter().flat_map(|range| {
            let before_end = self.holders[..self.behind(range.end)].iter().rev();
            before_end.take_while(|(held, _)| held.end > range.start).map(|(_, piece)| *piece)
        })
    }

    /// The number of ranges that start before a point.
    fn behind(&self, point: Point) -> usize {
        self.holders.partition_point(|(held, _)| held.start < point)
    }

    fn give(&mut self, piece: usize, ranges: &Ranges) {
        for range in ranges {
            self.busy.insert_range(range.start..range.end);
            let at = self.behind(range.start);
            self.holders.insert(at, (*range, piece));
        }
    }

    fn take_back(&mut self, ranges: &Ranges) {
        for range in ranges {
            self.busy.remove_range(range.start..range.end);
            let at = self.behind(range.start);
            self.holders.remove(at);
        }
    }
}

/// The block of each instruction.
fn block_of(code: &Code) -> Vec<u32> {
    let mut block_of = vec![0; code.insts.len()];
    for (number, block) in code.blocks.iter().enumerate() {
        block_of[block.range.0..block.range.1].fill(number as u32);
    }
    block_of
}

/// How often instructions name each virtual register.
fn frequencies(code: &Code, live: &Live, block_of: &[u32]) -> Vec<f32> {
    let mut frequencies = vec![0.0; code.registers];
    for (inst, &block) in block_of.iter().enumerate() {
        let often = live.frequencies[block as usize];
        code.inst_operands(Inst::new(inst)).iter().for_each(|o| frequencies[o.vreg().vreg()] += often);
    }
    frequencies
}

/// Finds a place for every virtual register.
pub fn assign(code: &Code, live: &Live, bundles: Bundles) -> Result<Assignment, String> {
    let points = 2 * code.insts.len();
    let registers: Vec<Register> = registers(code.vector_bytes)
        .map(|name| Register {
            name,
            busy: FixedBitSet::with_capacity(points),
            reserved: Vec::new(),
            holders: Vec::new(),
        })
        .collect();
    let block_of = block_of(code);
    let mut assign = Assign {
        code,
        live,
        pieces: Vec::with_capacity(2 * bundles.all.len()),
        queue: BinaryHeap::new(),
        general: registers.iter().filter(|r| r.name.class() == RegClass::Int).count(),
        registers,
        mentions: OnceCell::new(),
        frequencies: frequencies(code, live, &block_of),
        block_of,
        split: Vec::new(),
    };
    let hints = assign.fixed();
    for (origin, Bundle { ranges, class, members }) in bundles.all.iter().enumerate() {
        if !ranges.is_empty() {
            let hint = hints.iter().find(|(register, _)| members.contains(register)).map(|(_, hint)| *hint);
            let members = SmallVec::from_slice(members);
            assign.add(Ranges::from_slice(ranges), *class, Part::Whole(members), origin, hint);
        }
    }
    while let Some(next) = assign.queue.pop() {
        assign.place(next.piece())?;
    }
    Ok(assign.finish(&bundles))
}

impl Assign<'_> {
    /// Keeps registers free where instructions want them. The function's parameters, and where they come in.
    fn fixed(&mut self) -> Vec<(VReg, PReg)> {
        let mut parameters = Vec::new();
        for inst in 0..self.code.insts.len() {
            for operand in self.code.inst_operands(Inst::new(inst)) {
                let OperandConstraint::FixedReg(wanted) = operand.constraint() else { continue };
                if inst == 0 {
                    parameters.push((operand.vreg(), wanted));
                } else if let Some(register) = self.registers.iter_mut().find(|r| r.name == wanted) {
                    let point = if operand.kind() == OperandKind::Use { reads(inst) } else { writes(inst) };
                    register.busy.insert(point);
                    register.reserved.push(point);
                }
            }
        }
        parameters
    }

    /// Adds a piece that waits for a register.
    fn add(&mut self, ranges: Ranges, class: RegClass, part: Part, origin: usize, hint: Option<PReg>) {
        let length: usize = ranges.iter().map(|r| r.end - r.start).sum();
        let weight = match &part {
            Part::Whole(members) => members.iter().map(|member| self.frequencies[member.vreg()]).sum(),
            Part::Loop(register, _) => self.frequency(*register, &ranges),
            Part::Point(_) => f32::INFINITY,
        };
        let weight = weight / length as f32;
        self.pieces.push(Piece { ranges, class, weight, part, origin, register: None, hint });
        self.wait(self.pieces.len() - 1);
    }

    /// The instructions that name a register, in order.
    fn mentions(&self, register: VReg) -> &[u32] {
        self.mentions.get_or_init(|| Mentions::of(self.code)).of_register(register)
    }

    /// How often instructions at these points name a register.
    fn frequency(&self, register: VReg, ranges: &Ranges) -> f32 {
        let mut left = ranges.iter().copied().peekable();
        let within = |&&inst: &&u32| {
            let both = Range { start: reads(inst as usize), end: writes(inst as usize) + 1 };
            while left.next_if(|range| range.end <= both.start).is_some() {}
            left.peek().is_some_and(|range| range.start < both.end)
        };
        let insts = self.mentions(register).iter().filter(within);
        insts.map(|&inst| self.live.frequencies[self.block_of[inst as usize] as usize]).sum()
    }

    fn wait(&mut self, piece: usize) {
        let Piece { ranges, part, .. } = &self.pieces[piece];
        let (start, end) = (ranges[0].start, ranges[ranges.len() - 1].end);
        let block = self.block_of[start / 2] as usize;
        let first = match part {
            Part::Point(_) => u64::MAX,
            _ if end <= reads(self.code.blocks[block].range.1) => 0,
            _ => 1 + ranges.iter().map(|r| (r.end - r.start) as u64).sum::<u64>(),
        };
        self.queue.push(Priority::new(first, start, piece));
    }

    /// Gives a piece a register, or splits it.
    fn place(&mut self, piece: usize) -> Result<(), String> {
        let Piece { ranges, class, hint, weight, .. } = &self.pieces[piece];
        let of_class = self.of_class(*class);
        let is_free = |at: &usize| !any(&self.registers[*at].busy, ranges);
        let is_hint = |at: &usize| Some(self.registers[*at].name) == *hint;
        let hinted = hint.and_then(|_| of_class.clone().find(is_hint)).filter(is_free);
        if let Some(register) = hinted.or_else(|| of_class.clone().find(is_free)) {
            self.take(piece, register);
            return Ok(());
        }
        // The first of those whose dearest holder is cheapest, if that is cheaper than the piece.
        let (mut cheapest, mut bound) = (None, *weight);
        for at in of_class {
            if let Some(cost) = self.cost(at, ranges, bound) {
                (cheapest, bound) = (Some(at), cost);
            }
        }
        match cheapest {
            Some(register) => {
                self.clear(register, piece);
                self.take(piece, register);
                Ok(())
            }
            None => self.split(piece),
        }
    }

    /// The registers of a class, which stand together.
    fn of_class(&self, class: RegClass) -> std::ops::Range<usize> {
        match class {
            RegClass::Int => 0..self.general,
            RegClass::Float | RegClass::Vector => self.general..self.registers.len(),
        }
    }

    /// The greatest weight of those that would have to leave a register, if it is below a bound.
    fn cost(&self, register: usize, ranges: &Ranges, bound: f32) -> Option<f32> {
        let register = &self.registers[register];
        if register.reserved.iter().any(|&point| ranges.iter().any(|range| range.contains(point))) {
            return None;
        }
        let mut weights = register.holders(ranges).map(|holder| self.pieces[holder].weight);
        weights.try_fold(0.0, |most: f32, weight| (weight < bound).then(|| most.max(weight)))
    }

    fn take(&mut self, piece: usize, register: usize) {
        let register = &mut self.registers[register];
        register.give(piece, &self.pieces[piece].ranges);
        self.pieces[piece].register = Some(register.name);
    }

    /// Takes out of a register what is in a piece's way.
    fn clear(&mut self, register: usize, piece: usize) {
        let register = &mut self.registers[register];
        let leave: BTreeSet<usize> = register.holders(&self.pieces[piece].ranges).collect();
        for &piece in &leave {
            register.take_back(&self.pieces[piece].ranges);
            self.pieces[piece].register = None;
        }
        leave.into_iter().for_each(|piece| self.wait(piece));
    }

    /// Replaces a piece by smaller ones.
    fn split(&mut self, piece: usize) -> Result<(), String> {
        let Piece { part, class, origin, ranges, hint, .. } = &self.pieces[piece];
        let (part, class, origin, ranges, hint) = (part.clone(), *class, *origin, ranges.clone(), *hint);
        match part {
            Part::Point(register) => {
                return Err(format!("an instruction names more registers than there are beside {register}"));
            }
            Part::Whole(members) if members.len() > 1 => {
                for member in members {
                    let mut ranges = self.live.ranges[member.vreg()].clone();
                    let inst = self.live.defined[member.vreg()] / 2;
                    if self.operand(inst, member).is_some_and(|o| copied(o).is_some()) {
                        start_earlier(&mut ranges, inst);
                    }
                    self.add(ranges, class, Part::Whole(SmallVec::from_slice(&[member])), origin, hint);
                }
            }
            Part::Whole(members) => {
                self.split.push((members[0], origin));
                self.scatter(members[0], None, &ranges, origin);
            }
            Part::Loop(register, round) => self.scatter(register, Some(round), &ranges, origin),
        }
        Ok(())
    }

    /// How an instruction writes a register, if it does.
    fn operand(&self, inst: usize, register: VReg) -> Option<Operand> {
        let mut operands = self.code.inst_operands(Inst::new(inst)).iter().copied();
        operands.find(|o| o.kind() == OperandKind::Def && o.vreg() == register)
    }

    /// Replaces what of a register lies in a loop, or anywhere, by the loops therein that it comes into and that read it, and
    /// by what instructions outside those do.
    fn scatter(&mut self, register: VReg, round: Option<usize>, ranges: &Ranges, origin: usize) {
        let class = register.class();
        let defined = self.live.defined[register.vreg()];
        let mentions = self.mentions(register).to_vec();
        let mut inner: Vec<Range> = Vec::new();
        for (at, candidate) in self.live.loops.iter().enumerate().skip(round.map_or(0, |round| round + 1)) {
            let points = candidate.points;
            let enters = ranges.iter().any(|r| r.contains(points.start)) && !points.contains(defined);
            let is_read = mentions.iter().any(|&inst| points.contains(reads(inst as usize)));
            let is_outermost = inner.iter().all(|outer| outer.intersection(points).is_none());
            if enters && is_read && is_outermost {
                inner.push(points);
                let part: Ranges = ranges.iter().filter_map(|r| r.intersection(points)).collect();
                self.add(part, class, Part::Loop(register, at), origin, None);
            }
        }
        let mut last = None;
        for inst in mentions.into_iter().map(|inst| inst as usize) {
            let here = ranges.iter().any(|r| r.contains(reads(inst)) || r.contains(writes(inst)));
            let inside = inner.iter().any(|points| points.contains(reads(inst)));
            if here && !inside && last.replace(inst) != Some(inst) {
                for range in self.fleeting(inst, register) {
                    self.add(Ranges::from_slice(&[range]), class, Part::Point(register), origin, None);
                }
            }
        }
    }

    /// The points at which an instruction wants a split register in a register. Operands in fixed registers, and those
    /// that only start a copy, are moved there from the stack.
    fn fleeting(&self, inst: usize, register: VReg) -> SmallVec<[Range; 2]> {
        let operands = self.code.inst_operands(Inst::new(inst));
        let mut ranges = SmallVec::new();
        for (at, operand) in operands.iter().enumerate().filter(|(_, o)| o.vreg() == register) {
            let is_copied = operands.iter().any(|o| copied(*o) == Some(at));
            let range = match (operand.kind(), operand.constraint()) {
                (_, OperandConstraint::FixedReg(_)) => continue,
                (OperandKind::Use, _) if is_copied => continue,
                (OperandKind::Use, _) => Range::at(reads(inst)),
                (OperandKind::Def, OperandConstraint::Reuse(_)) => {
                    Range { start: reads(inst), end: writes(inst) + 1 }
                }
                (OperandKind::Def, _) => Range::at(writes(inst)),
            };
            if !ranges.contains(&range) {
                ranges.push(range);
            }
        }
        ranges
    }

    fn finish(self, bundles: &Bundles) -> Assignment {
        let Assign { code, pieces, registers, split, .. } = self;
        let mut whole = vec![None; code.registers];
        let mut stretches = Vec::new();
        for Piece { ranges, part, register, .. } in pieces {
            let Some(register) = register else { continue };
            let mut stretch = |name: VReg, round: Option<usize>| {
                let allocation = Allocation::reg(register);
                let part = |&range: &Range| Stretch { register: name, range, round, allocation };
                stretches.extend(ranges.iter().map(part));
            };
            match part {
                Part::Whole(members) => members.iter().for_each(|m| whole[m.vreg()] = Some(register)),
                Part::Loop(name, round) => stretch(name, Some(round)),
                Part::Point(name) => stretch(name, None),
            }
        }
        stretches.sort_by_key(|s| (s.register, s.range.start));
        let busy = registers.into_iter().map(|r| (r.name, r.busy)).collect();
        let mut assignment =
            Assignment { whole, stack: vec![None; code.registers], stretches, busy, slots: 0 };
        place_on_stack(code, bundles, &split, &mut assignment);
        assignment
    }
}

/// A place on the stack for each bundle of which a register is split; vectors first, so that they are aligned.
fn place_on_stack(code: &Code, bundles: &Bundles, split: &[(VReg, usize)], to: &mut Assignment) {
    for class in [RegClass::Float, RegClass::Int] {
        let words = code.spillslot_size(class);
        let mut places: Vec<(SpillSlot, FixedBitSet)> = Vec::new();
        let mut of_bundle: Vec<(usize, SpillSlot)> = Vec::new();
        for &(register, origin) in split.iter().filter(|(register, _)| register.class() == class) {
            let known = of_bundle.iter().find(|(bundle, _)| *bundle == origin);
            let slot = known.map(|(_, slot)| *slot).unwrap_or_else(|| {
                let ranges = &bundles.all[origin].ranges;
                let place = places.iter().position(|(_, busy)| !any(busy, ranges)).unwrap_or_else(|| {
                    places.push((to.add_slot(words), FixedBitSet::with_capacity(2 * code.insts.len())));
                    places.len() - 1
                });
                let (slot, busy) = &mut places[place];
                ranges.iter().for_each(|r| busy.insert_range(r.start..r.end));
                of_bundle.push((origin, *slot));
                *slot
            });
            to.stack[register.vreg()] = Some(slot);
        }
    }
}

/// Whether any of these points is in a set.
fn any(set: &FixedBitSet, ranges: &Ranges) -> bool {
    const BITS: usize = usize::BITS as usize;
    let words = set.as_slice();
    ranges.iter().any(|range| {
        let (first, last) = (range.start / BITS, (range.end - 1) / BITS);
        let (from, to) =
            (usize::MAX << (range.start % BITS), usize::MAX >> (BITS - 1 - (range.end - 1) % BITS));
        match first == last {
            true => words[first] & from & to != 0,
            false => {
                words[first] & from != 0
                    || words[first + 1..last].iter().any(|&word| word != 0)
                    || words[last] & to != 0
            }
        }
    })
}
