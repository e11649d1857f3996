//! Registers, for code that is loops around straight lines. What is described is regalloc2's model of code, and its
//! checker follows every value through our choices in debug builds; its own allocator takes ten times as long.
//!
//! ```text
//! code -> where values live (live) -> what can be one register (bundle) -> registers (assign) -> moves (moves)
//! ```

mod assign;
mod assignment;
mod bundle;
mod live;
mod moves;
mod shape;

use std::sync::Arc;

use cranelift_entity::packed_option::PackedOption;
use regalloc2::checker::Checker;
use regalloc2::{
    Block, Function, Inst, InstRange, MachineEnv, Operand, Output, PReg, PRegSet, RegClass, VReg,
};

use self::bundle::Bundles;
use self::live::Live;
pub use self::shape::Allocations;
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
    /// The masks of lanes that are made before all else.
    pub masks: Vec<u64>,
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

/// The registers that are given out, in order: first those that the caller does not want back.
fn registers(vector_bytes: usize) -> impl Iterator<Item = PReg> {
    let vectors = if vector_bytes == 64 { 32 } else { 16 };
    let general = [0, 1, 2, 6, 7, 8, 9, 10, 11].into_iter().chain(SAVED);
    let general = general.map(|number| PReg::new(number, RegClass::Int));
    general.chain((0..vectors).map(|number| PReg::new(number, RegClass::Float)))
}

/// Chooses registers, those that code of the same shape has if there was any.
pub fn allocate(code: &Code, known: &Allocations) -> Result<Arc<Output>, String> {
    let output = known.obtain(code, || choose(code))?;
    if cfg!(debug_assertions) {
        check(code, &output)?;
    }
    Ok(output)
}

fn choose(code: &Code) -> Result<Output, String> {
    let live = Live::of(code);
    let bundles = Bundles::of(code, &live);
    let assignment = assign::assign(code, &live, bundles)?;
    Ok(moves::write(code, &live, assignment))
}

/// Follows every value through the moves to where it is read.
fn check(code: &Code, output: &Output) -> Result<(), String> {
    let of = |class: RegClass| {
        let all = registers(code.vector_bytes).filter(|r| r.class() == class);
        all.fold(PRegSet::empty(), |set, register| set.with(register))
    };
    let env = MachineEnv {
        preferred_regs_by_class: [of(RegClass::Int), of(RegClass::Float), PRegSet::empty()],
        non_preferred_regs_by_class: [PRegSet::empty(); 3],
        scratch_by_class: [None; 3],
        fixed_stack_slots: Vec::new(),
    };
    let mut checker = Checker::new(code, &env);
    checker.prepare(output);
    checker.run().map_err(|errors| format!("wrong registers: {errors:?}"))
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
