//! From SSA to machine instructions.
//!
//! Blocks and their instructions are walked backwards, so it is known what of an instruction's work is wanted
//! when it is reached: what nobody asks for is not made, and a load, an address or a comparison becomes part of the
//! instruction that uses it. The instructions for [scalars](super::scalar) and for [vectors](super::vector) stand in
//! files of their own.

use cranelift_entity::SecondaryMap;
use cranelift_entity::packed_option::PackedOption;
use regalloc2::{Operand, RegClass, VReg};

use super::allocate::{BlockData, Code, RDI, RDX, RSI};
use super::inst::{Arg, Base, Imm, Inst, Machine, Mem, Width};
use super::pool::Pool;
use crate::emit;
use crate::ssa::{self, Block, Def, End, Function, InstData, Line, Op, Target, Type, Value};

/// Where an instruction stands, as far as moving loads to it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    block: Option<Block>,
    /// How many stores come before it in the function's text.
    stores: u32,
}

/// Lowers one function.
pub(super) struct Lower<'s> {
    pub ssa: &'s Function,
    /// How often each value is used.
    uses: SecondaryMap<Value, u32>,
    positions: SecondaryMap<ssa::Inst, Position>,
    /// Where the instruction being lowered stands.
    now: Position,
    /// The register of each value that was asked for.
    values: SecondaryMap<Value, Option<VReg>>,
    registers: usize,
    /// What is written so far, backwards but for the SSA instruction being lowered.
    code: Code,
    pub pool: Pool,
    /// The width of a whole vector register.
    pub whole: Width,
    /// Whether there are instructions that add to a sum the products of pairs of halves, and of fours of bytes.
    pub has_products: bool,
}

/// The code of a function, and its constants.
pub(super) fn lower(ssa: &Function, machine: emit::Machine) -> Result<(Code, Pool), String> {
    let (mut uses, mut values, mut positions) =
        (SecondaryMap::new(), SecondaryMap::new(), SecondaryMap::new());
    uses.resize(ssa.values.len());
    values.resize(ssa.values.len());
    positions.resize(ssa.insts.len());
    let mut lower = Lower {
        ssa,
        uses,
        positions,
        now: Position::default(),
        values,
        registers: 0,
        code: Code {
            insts: Vec::with_capacity(ssa.insts.len()),
            lines: Vec::with_capacity(ssa.insts.len()),
            ..Code::default()
        },
        pool: Pool::default(),
        whole: if machine.vector_bytes == 64 { Width::Z } else { Width::Y },
        has_products: machine.byte_products,
    };
    lower.count();
    lower.blocks()?;
    let Lower { code, registers, pool, .. } = lower;
    Ok((in_order(Code { registers, vector_bytes: machine.vector_bytes, ..code }), pool))
}

impl<'s> Lower<'s> {
    fn count(&mut self) {
        let mut stores = 0;
        for &block in &self.ssa.order {
            let data = &self.ssa.blocks[block];
            for &inst in &data.insts {
                let data = &self.ssa.insts[inst];
                data.args.iter().for_each(|&arg| self.uses[arg] += 1);
                self.positions[inst] = Position { block: Some(block), stores };
                stores += u32::from(data.result.is_none());
            }
            if let End::Branch(condition, _) = data.end {
                self.uses[condition] += 1;
            }
            data.end.targets().iter().flat_map(|t| &t.args).for_each(|&arg| self.uses[arg] += 1);
        }
    }

    /// Lowers all blocks. Edges from a block with several successors to one with several predecessors get
    /// a block of their own, behind the one they come from.
    fn blocks(&mut self) -> Result<(), String> {
        let order = &self.ssa.order;
        let mut predecessors: SecondaryMap<Block, u32> = SecondaryMap::new();
        for &block in order {
            self.ssa.blocks[block].end.targets().iter().for_each(|t| predecessors[t.block] += 1);
        }
        let is_split =
            |end: &End, target: &Target| matches!(end, End::Branch(..)) && predecessors[target.block] > 1;
        let mut numbers: SecondaryMap<Block, usize> = SecondaryMap::new();
        let mut next = 0;
        for &block in order {
            numbers[block] = next;
            let end = &self.ssa.blocks[block].end;
            next += 1 + end.targets().iter().filter(|t| is_split(end, t)).count();
        }
        for &block in order.iter().rev() {
            let ssa::BlockData { end, line, .. } = &self.ssa.blocks[block];
            let start = self.code.insts.len();
            for target in end.targets().iter().rev().filter(|t| is_split(end, t)) {
                self.code.insts.push(Inst::Jump(numbers[target.block]));
                self.finish(self.code.insts.len(), *line);
            }
            let mut edges: Vec<BlockData> = Vec::new();
            let mut targets: Vec<(regalloc2::Block, Vec<VReg>)> = Vec::new();
            self.now = self.behind(block);
            for target in end.targets() {
                let args = target.args.iter().map(|&arg| self.reg(arg)).collect();
                let number = numbers[target.block];
                let goal = (regalloc2::Block::new(number), args);
                if is_split(end, target) {
                    targets.push((regalloc2::Block::new(numbers[block] + 1 + edges.len()), Vec::new()));
                    edges.push(BlockData { targets: vec![goal], ..BlockData::default() });
                } else {
                    targets.push(goal);
                }
            }
            let behind = start + edges.len();
            let ranges = (start..behind).map(|at| (at, at + 1));
            let edges = edges.into_iter().rev().zip(ranges);
            self.code.blocks.extend(edges.map(|(edge, range)| BlockData { range, ..edge }));
            self.block(block, behind, &targets)?;
            let params = match numbers[block] {
                0 => Vec::new(),
                _ => self.ssa.blocks[block].params.iter().map(|&param| self.reg(param)).collect(),
            };
            let range = (behind, self.code.insts.len());
            self.code.blocks.push(BlockData { range, params, targets, ..BlockData::default() });
        }
        Ok(())
    }

    /// Turns round what was written from a position on, which is for a line.
    fn finish(&mut self, start: usize, line: PackedOption<Line>) {
        self.code.insts[start..].reverse();
        self.code.lines.resize(self.code.insts.len(), line);
    }

    /// Where a block's end stands: behind its last instruction, which may be a store.
    fn behind(&self, block: Block) -> Position {
        self.ssa.blocks[block].insts.last().map_or(Position::default(), |&last| {
            let Position { block, stores } = self.positions[last];
            Position { block, stores: stores + u32::from(self.ssa.insts[last].result.is_none()) }
        })
    }

    /// Writes the instructions of a block, of whose end something stands there already.
    fn block(
        &mut self,
        block: Block,
        start: usize,
        targets: &[(regalloc2::Block, Vec<VReg>)],
    ) -> Result<(), String> {
        let data = &self.ssa.blocks[block];
        let target = |at: usize| targets[at].0.index();
        let end = match &data.end {
            End::Open => return Err(format!("{block} has no end")),
            End::Return => Inst::Return,
            End::Jump(_) => Inst::Jump(target(0)),
            End::Branch(condition, _) => Inst::Branch(self.test(*condition), [target(0), target(1)]),
        };
        self.code.insts.push(end);
        self.finish(start, data.line);
        for &inst in data.insts.iter().rev() {
            self.now = self.positions[inst];
            let inst = &self.ssa.insts[inst];
            let start = self.code.insts.len();
            match inst.result {
                Some(result) => {
                    let Some(register) = self.values[result] else { continue };
                    self.define(inst, result, register)?;
                }
                None => self.effect(inst)?,
            }
            self.finish(start, inst.line);
        }
        if self.ssa.order.first() == Some(&block) {
            let params: Vec<VReg> = data.params.iter().map(|&param| self.reg(param)).collect();
            let fixed = params.iter().zip([RDI, RSI, RDX]);
            let fixed = fixed.map(|(&v, r)| Operand::reg_fixed_def(v, r)).collect();
            self.code.insts.push(Inst::Params(fixed));
            self.finish(self.code.insts.len(), self.ssa.line);
        }
        Ok(())
    }

    /// A new register.
    pub fn fresh(&mut self, ty: Type) -> VReg {
        let class = if ty.is_vector() || ty.is_float() { RegClass::Float } else { RegClass::Int };
        self.registers += 1;
        VReg::new(self.registers - 1, class)
    }

    /// The value whose bits a value has, in a register of the same kind.
    fn resolve(&self, value: Value) -> Value {
        match self.ssa.def(value) {
            Some(InstData { op: Op::Bitcast, args, .. })
                if self.ssa.ty(value).is_vector() && self.ssa.ty(args[0]).is_vector() =>
            {
                self.resolve(args[0])
            }
            Some(InstData { op: Op::Truncate, args, .. }) if !self.ssa.ty(value).is_vector() => {
                self.resolve(args[0])
            }
            _ => value,
        }
    }

    /// A value in a register. The bits of an integer beyond its width are anything.
    pub fn reg(&mut self, value: Value) -> VReg {
        if let Some(register) = self.values[value] {
            return register;
        }
        let value = self.resolve(value);
        let ty = self.ssa.ty(value);
        if let (Some(bits), false) = (self.ssa.as_const(value), ty.is_vector() || ty.is_float()) {
            let register = self.fresh(ty);
            self.integer(register, bits);
            return register;
        }
        if let Some(register) = self.values[value] {
            return register;
        }
        let register = self.fresh(ty);
        self.values[value] = Some(register);
        register
    }

    /// The number of the mask for the low lanes.
    pub fn mask_of(&mut self, lanes: usize) -> u8 {
        let mask = (1u64 << lanes) - 1;
        let masks = &mut self.code.masks;
        let at = masks.iter().position(|&known| known == mask).unwrap_or_else(|| {
            masks.push(mask);
            masks.len() - 1
        });
        at as u8
    }

    /// Adds an instruction.
    pub fn push(&mut self, code: iced_x86::Code, args: &[Arg]) {
        self.push_machine(Machine::new(code, args));
    }

    /// Adds an instruction.
    pub fn push_machine(&mut self, machine: Machine) {
        self.code.insts.push(Inst::Machine(machine));
    }

    /// Whether a value is made in the block being lowered, so that it costs nothing to make it part of what uses
    /// it.
    pub fn is_here(&self, value: Value) -> bool {
        match self.ssa.values[value].def {
            Def::Inst(inst) => self.positions[inst].block == self.now.block,
            Def::Param(_) => false,
        }
    }

    /// The address of a load of this many bytes that may become part of the one instruction that uses it.
    pub fn folded(&mut self, value: Value, wanted: usize) -> Option<Mem<VReg>> {
        if self.uses[value] != 1 {
            return None;
        }
        let Def::Inst(inst) = self.ssa.values[value].def else { return None };
        if let InstData { op: Op::Bitcast, ref args, .. } = self.ssa.insts[inst] {
            return self.folded(args[0], wanted);
        }
        let InstData { op: Op::Load { offset, bytes }, ref args, .. } = self.ssa.insts[inst] else {
            return None;
        };
        let moved = self.positions[inst] == self.now;
        (moved && usize::from(bytes) == wanted).then(|| self.address(args[0], offset))
    }

    /// The operation and operands of a value that only one instruction uses, which may do it along with its own.
    pub fn only_use(&self, value: Value) -> Option<(Op, [Value; 2])> {
        let InstData { op, args, .. } = self.ssa.def(value)?;
        match (self.uses[value], args.as_slice()) {
            (1, &[a, b]) => Some((*op, [a, b])),
            _ => None,
        }
    }

    /// The memory operand for an address and a displacement.
    pub fn address(&mut self, address: Value, offset: i32) -> Mem<VReg> {
        let (mut at, mut offset, mut index) = (address, offset, None);
        while let Some(InstData { op, args, .. }) = self.ssa.def(at) {
            match op {
                Op::StackAddress(slot) => {
                    return Mem { base: Base::Stack(*slot), index, offset };
                }
                Op::Add if self.is_here(at) => {
                    let constant = self.ssa.as_const(args[1]).and_then(|c| i32::try_from(c as i64).ok());
                    if let Some(sum) = constant.and_then(|c| offset.checked_add(c)) {
                        (at, offset) = (args[0], sum);
                        continue;
                    }
                    if index.is_some() {
                        break;
                    }
                    index = Some(match self.scaled(args[1]) {
                        Some((value, scale)) => (self.reg(value), scale),
                        None => (self.reg(args[1]), 1),
                    });
                    at = args[0];
                }
                _ => break,
            }
        }
        Mem { base: Base::Reg(self.reg(at)), index, offset }
    }

    /// A value and the scale that an address multiplies it by.
    fn scaled(&self, value: Value) -> Option<(Value, u8)> {
        let InstData { op: Op::Shl, args, .. } = self.ssa.def(value)? else { return None };
        let count = self.ssa.as_const(args[1])?;
        (count <= 3).then(|| (args[0], 1 << count))
    }

    fn define(&mut self, inst: &'s InstData, result: Value, to: VReg) -> Result<(), String> {
        let ty = self.ssa.ty(result);
        let of = inst.args.first().map_or(ty, |&a| self.ssa.ty(a));
        let done = match (ty.is_vector() || of.is_vector(), ty.is_float() || of.is_float()) {
            (true, _) => self.vector(inst, ty, of, to),
            (false, true) => self.float(inst, ty, of, to),
            (false, false) => self.scalar(inst, ty, of, to),
        };
        done.ok_or_else(|| format!("{} on {of} has no machine code", inst.op))
    }

    fn effect(&mut self, inst: &'s InstData) -> Result<(), String> {
        let (offset, bytes) = match inst.op {
            Op::Store { offset, bytes } => (offset, bytes),
            Op::Prefetch { offset } => {
                let memory = self.address(inst.args[0], offset);
                self.push(iced_x86::Code::Prefetcht1_m8, &[Arg::Mem(memory)]);
                return Ok(());
            }
            op => return Err(format!("{op} gives nothing")),
        };
        let memory = self.address(inst.args[1], offset);
        let value = inst.args[0];
        let ty = self.ssa.ty(value);
        if let (Some(constant), false) = (self.ssa.as_const(value), ty.is_vector() || ty.is_float())
            && self.store_constant(memory, usize::from(bytes), constant)
        {
            return Ok(());
        }
        let value = self.reg(value);
        match ty.is_vector() || ty.is_float() {
            true => self.store_vector(memory, usize::from(bytes), ty, value),
            false => self.store_scalar(memory, usize::from(bytes), value),
        }
        Ok(())
    }
}

/// Code that is written backwards.
fn in_order(mut code: Code) -> Code {
    code.insts.reverse();
    code.lines.reverse();
    code.blocks.reverse();
    let count = code.insts.len();
    for at in 0..code.blocks.len() {
        let block = &mut code.blocks[at];
        block.range = (count - block.range.1, count - block.range.0);
        block.successors = block.targets.iter().map(|(block, _)| *block).collect();
        for next in 0..code.blocks[at].successors.len() {
            let successor = code.blocks[at].successors[next];
            code.blocks[successor.index()].predecessors.push(regalloc2::Block::new(at));
        }
    }
    code
}

/// A constant byte.
pub(super) fn byte(value: usize) -> Arg {
    Arg::Imm(Imm::Byte(value as u8))
}

/// The width of a general register that holds an integer type.
pub(super) fn width(ty: Type) -> Width {
    match ty.bytes() {
        1 => Width::B1,
        2 => Width::B2,
        4 => Width::B4,
        _ => Width::B8,
    }
}
