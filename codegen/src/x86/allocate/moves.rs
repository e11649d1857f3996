//! The moves between where a value is and where it is wanted: before and behind instructions, and from block to block.

use regalloc2::{
    Allocation, Block, Edit, Function, Inst, Operand, OperandConstraint, OperandKind, Output, PReg,
    ProgPoint, RegClass, VReg,
};
use smallvec::SmallVec;

use super::Code;
use super::assignment::Assignment;
use super::live::{Live, Point, copied, points, reads, writes};

/// A copy of one place to another, at the same time as others.
#[derive(Clone, Copy)]
struct Move {
    from: Allocation,
    to: Allocation,
    class: RegClass,
}

type Moves = SmallVec<[Move; 4]>;

struct Write<'c> {
    code: &'c Code,
    assignment: Assignment,
    /// For each edge into a loop that loads split registers: from, to, and which.
    entries: Vec<(usize, usize, VReg)>,
    output: Output,
}

/// The operands' places, and the moves that bring values there.
pub fn write(code: &Code, live: &Live, assignment: Assignment) -> Output {
    let entries = entries(code, live, &assignment);
    let mut write = Write { code, assignment, entries, output: Output::default() };
    for block in 0..code.blocks.len() {
        write.block(block);
    }
    write.output.num_spillslots = write.assignment.slots;
    write.output
}

/// The edges into loops along which split registers are loaded.
fn entries(code: &Code, live: &Live, assignment: &Assignment) -> Vec<(usize, usize, VReg)> {
    let mut entries = Vec::new();
    for stretch in &assignment.stretches {
        let Some(round) = stretch.round else { continue };
        let (first, last) = live.loops[round].blocks;
        for block in (first..=last).filter(|&block| stretch.range.contains(points(code, block).start)) {
            let from = code.blocks[block].predecessors.iter().map(|p| p.index());
            let outside = from.filter(|from| !(first..=last).contains(from));
            entries.extend(outside.map(|from| (from, block, stretch.register)));
        }
    }
    entries.sort_unstable();
    entries
}

impl Write<'_> {
    fn block(&mut self, block: usize) {
        let data = &self.code.blocks[block];
        let (start, end) = data.range;
        if let [from] = data.predecessors[..]
            && self.code.blocks[from.index()].successors.len() > 1
        {
            self.edge(from.index(), block, start);
        }
        for inst in start..end {
            if inst + 1 == end
                && let [to] = data.successors[..]
            {
                self.edge(block, to.index(), inst);
            }
            self.instruction(inst);
        }
    }

    /// Moves what goes along an edge, before an instruction at its start or end.
    fn edge(&mut self, from: usize, to: usize, inst: usize) {
        let (last, first) = (points(self.code, from).end - 1, points(self.code, to).start);
        let target = self.code.blocks[from].targets.iter().find(|(block, _)| *block == Block::new(to));
        let args = target.map_or(&[][..], |(_, args)| args);
        let params = &self.code.blocks[to].params;
        let known = self.entries.partition_point(|&(f, t, _)| (f, t) < (from, to));
        let loaded = self.entries[known..].iter().take_while(|&&(f, t, _)| (f, t) == (from, to));
        let pairs = args.iter().copied().zip(params.iter().copied()).chain(loaded.map(|&(_, _, v)| (v, v)));
        let moves: Moves = pairs
            .map(|(arg, param)| Move {
                from: self.assignment.home(arg, last),
                to: self.assignment.home(param, first),
                class: param.class(),
            })
            .collect();
        let points = [reads(inst).max(1) - 1, reads(inst), last - 1, last, first];
        self.parallel(moves, ProgPoint::before(Inst::new(inst)), &points);
    }

    /// Finds operands that are where they are wanted already, if all are: each in a register of its own all the time.
    fn settled(&mut self, operands: &[Operand]) -> bool {
        let whole = |operand: &Operand| self.assignment.whole[operand.vreg().vreg()];
        let is_settled = |operand: &Operand| match operand.constraint() {
            OperandConstraint::FixedReg(_) => false,
            OperandConstraint::Reuse(from) => {
                whole(operand).is_some() && whole(operand) == whole(&operands[from])
            }
            _ => whole(operand).is_some(),
        };
        let settled = operands.iter().all(is_settled);
        if settled {
            self.output.allocs.extend(operands.iter().filter_map(whole).map(Allocation::reg));
        }
        settled
    }

    /// Finds an instruction's operands, and moves them there and from there.
    fn instruction(&mut self, inst: usize) {
        let code = self.code;
        let operands = code.inst_operands(Inst::new(inst));
        self.output.inst_alloc_offsets.push(self.output.allocs.len() as u32);
        if self.settled(operands) {
            return;
        }
        let (mut before, mut behind) = (Moves::new(), Moves::new());
        let mut places: SmallVec<[Allocation; 6]> = SmallVec::new();
        let mut homes: SmallVec<[Allocation; 6]> = SmallVec::new();
        for operand in operands {
            let (place, home) = self.place(*operand, inst);
            places.push(place);
            homes.push(home);
        }
        for (at, operand) in operands.iter().enumerate() {
            if let Some(from) = copied(*operand) {
                places[from] = places[at];
            }
        }
        for ((operand, &place), &home) in operands.iter().zip(&places).zip(&homes) {
            let class = operand.class();
            match operand.kind() {
                _ if place == home => {}
                OperandKind::Use if before.iter().any(|m: &Move| m.to == place) => {}
                OperandKind::Use => before.push(Move { from: home, to: place, class }),
                OperandKind::Def => behind.push(Move { from: place, to: home, class }),
            }
        }
        let here = Inst::new(inst);
        self.parallel(before, ProgPoint::before(here), &[reads(inst).max(1) - 1, reads(inst)]);
        self.output.allocs.extend_from_slice(&places);
        self.parallel(behind, ProgPoint::after(here), &[writes(inst), writes(inst) + 1]);
    }

    /// Where an instruction finds or leaves an operand, and where that is besides.
    fn place(&self, operand: Operand, inst: usize) -> (Allocation, Allocation) {
        let point = if operand.kind() == OperandKind::Use { reads(inst) } else { writes(inst) };
        let (place, home) = self.assignment.place(operand.vreg(), point);
        match operand.constraint() {
            OperandConstraint::FixedReg(register) => (Allocation::reg(register), home),
            _ => (place, home),
        }
    }

    /// Writes moves that happen at once, one after the other.
    fn parallel(&mut self, mut moves: Moves, at: ProgPoint, points: &[Point]) {
        if moves.is_empty() {
            return;
        }
        moves.retain(|m| m.from != m.to);
        while !moves.is_empty() {
            let is_read = |place: Allocation| moves.iter().any(|m| m.from == place);
            if let Some(next) = moves.iter().position(|m| !is_read(m.to)) {
                let next = moves.remove(next);
                self.emit(next, at, points, &moves);
            } else {
                // A cycle: the first is written last, from another place.
                let Move { from, class, .. } = moves[0];
                let to = match self.idle(class, points, &moves) {
                    Some(register) => Allocation::reg(register),
                    None => self.spare(class),
                };
                self.emit(Move { from, to, class }, at, points, &moves);
                moves[0].from = to;
            }
        }
    }

    /// A register that nothing is in, and that no move names.
    fn idle(&self, class: RegClass, points: &[Point], moves: &[Move]) -> Option<PReg> {
        let named =
            |r: PReg| moves.iter().any(|m| m.from == Allocation::reg(r) || m.to == Allocation::reg(r));
        self.assignment.idle(class, points, named)
    }

    fn spare(&mut self, class: RegClass) -> Allocation {
        Allocation::stack(self.assignment.add_slot(self.code.spillslot_size(class)))
    }

    /// Writes one move. From memory to memory it goes through a register, of which another value may have to be kept.
    fn emit(&mut self, next: Move, at: ProgPoint, points: &[Point], others: &[Move]) {
        let Move { from, to, class } = next;
        if from.is_reg() || to.is_reg() {
            self.output.edits.push((at, Edit::Move { from, to }));
            return;
        }
        let (through, kept) = match self.idle(class, points, others) {
            Some(register) => (Allocation::reg(register), None),
            None => (Allocation::reg(PReg::new(0, class)), Some(self.spare(class))),
        };
        let (keep, restore) = match kept {
            Some(kept) => (Some((through, kept)), Some((kept, through))),
            None => (None, None),
        };
        let moves = keep.into_iter().chain([(from, through), (through, to)]).chain(restore);
        self.output.edits.extend(moves.map(|(from, to)| (at, Edit::Move { from, to })));
    }
}
