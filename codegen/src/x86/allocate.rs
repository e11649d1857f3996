//! Registers, by regalloc2.

use cranelift_entity::packed_option::PackedOption;
use regalloc2::{
    Block, Function, Inst, InstRange, MachineEnv, Operand, Output, PReg, PRegSet, RegAllocError, RegClass,
    RegallocOptions, VReg,
};

use super::inst;
use crate::ssa::Line;

/// A function's code before registers are chosen. Blocks stand in the order of code, the entry first, and no
/// edge leads from a block with several successors to one with several predecessors.
#[derive(Clone, Debug, Default)]
pub struct Code {
    /// Every instruction.
    pub insts: Vec<inst::Inst>,
    /// What each was written for.
    pub lines: Vec<PackedOption<Line>>,
    /// Every block.
    pub blocks: Vec<BlockData>,
    /// The number of registers.
    pub registers: usize,
    /// Bytes of a vector.
    pub vector_bytes: usize,
}

/// A block.
#[derive(Clone, Debug, Default)]
pub struct BlockData {
    /// Its instructions.
    pub range: (usize, usize),
    /// Its parameters.
    pub params: Vec<VReg>,
    /// Where it goes on, and with which parameters.
    pub targets: Vec<(Block, Vec<VReg>)>,
    /// The blocks of `targets`.
    pub successors: Vec<Block>,
    /// Where it comes from.
    pub predecessors: Vec<Block>,
}

/// Numbers of registers: those of the instruction set's encoding.
pub const RAX: PReg = PReg::new(0, RegClass::Int);
pub const RDX: PReg = PReg::new(2, RegClass::Int);
pub const RSI: PReg = PReg::new(6, RegClass::Int);
pub const RDI: PReg = PReg::new(7, RegClass::Int);

/// Registers that a function gives back as it found them, by the System V convention, aside from those of the
/// frame.
pub const SAVED: [usize; 5] = [3, 12, 13, 14, 15];

/// Chooses registers.
pub fn allocate<'c>(code: &Code, context: &'c mut regalloc2::Ctx) -> Result<&'c Output, RegAllocError> {
    let ints = |numbers: &[usize]| {
        numbers.iter().fold(PRegSet::empty(), |set, &n| set.with(PReg::new(n, RegClass::Int)))
    };
    let count = if code.vector_bytes == 64 { 32 } else { 16 };
    let vectors = (0..count).fold(PRegSet::empty(), |set, n| set.with(PReg::new(n, RegClass::Float)));
    let env = MachineEnv {
        preferred_regs_by_class: [ints(&[0, 1, 2, 6, 7, 8, 9, 10, 11]), vectors, PRegSet::empty()],
        non_preferred_regs_by_class: [ints(&SAVED), PRegSet::empty(), PRegSet::empty()],
        scratch_by_class: [None, None, None],
        fixed_stack_slots: Vec::new(),
    };
    let options = RegallocOptions { validate_ssa: cfg!(debug_assertions), ..RegallocOptions::default() };
    regalloc2::run_with_ctx(code, &env, &options, context)
}

impl Function for Code {
    fn num_insts(&self) -> usize {
        self.insts.len()
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn entry_block(&self) -> Block {
        Block::new(0)
    }

    fn block_insns(&self, block: Block) -> InstRange {
        let (start, end) = self.blocks[block.index()].range;
        InstRange::new(Inst::new(start), Inst::new(end))
    }

    fn block_succs(&self, block: Block) -> &[Block] {
        &self.blocks[block.index()].successors
    }

    fn block_preds(&self, block: Block) -> &[Block] {
        &self.blocks[block.index()].predecessors
    }

    fn block_params(&self, block: Block) -> &[VReg] {
        &self.blocks[block.index()].params
    }

    fn is_ret(&self, inst: Inst) -> bool {
        matches!(self.insts[inst.index()], inst::Inst::Return)
    }

    fn is_branch(&self, inst: Inst) -> bool {
        matches!(self.insts[inst.index()], inst::Inst::Jump(_) | inst::Inst::Branch(..))
    }

    fn branch_blockparams(&self, block: Block, _: Inst, successor: usize) -> &[VReg] {
        &self.blocks[block.index()].targets[successor].1
    }

    fn inst_operands(&self, inst: Inst) -> &[Operand] {
        match &self.insts[inst.index()] {
            inst::Inst::Params(operands) => operands,
            inst::Inst::Machine(machine) => &machine.operands,
            inst::Inst::Jump(_) | inst::Inst::Branch(..) | inst::Inst::Return => &[],
        }
    }

    fn inst_clobbers(&self, _: Inst) -> PRegSet {
        PRegSet::empty()
    }

    fn num_vregs(&self) -> usize {
        self.registers
    }

    fn spillslot_size(&self, class: RegClass) -> usize {
        match class {
            RegClass::Int => 1,
            RegClass::Float | RegClass::Vector => self.vector_bytes / 8,
        }
    }
}
