//! Machine instructions to bytes: the frame, the moves that the register allocator wants, jumps, and constants
//! behind the code.
//!
//! ```text
//! push rbp; mov rbp, rsp; push saved registers; sub rsp, n; and rsp, -align    if there is a frame
//! ...                                                                           [rsp + k]: arrays, then spills
//! vzeroupper; lea rsp, [rbp - k]; pop saved registers; pop rbp; ret
//! ```

use cranelift_codegen::gimli::X86_64;
use cranelift_codegen::gimli::write::CallFrameInstruction;
use cranelift_entity::SecondaryMap;
use cranelift_entity::packed_option::PackedOption;
use iced_x86::Code::{self, *};
use iced_x86::{Instruction, OpKind, Register};
use regalloc2::{Allocation, Edit, InstOrEdit, Output, PReg, PRegSet, RegClass};

use super::Assembled;
use super::allocate::{self, SAVED};
use super::direct;
use super::evex::evex;
use super::flags::Flags;
use super::inst::{Base, Imm, Inst, Machine, Mem, Slot, Width};
use super::pool::Pool;
use super::registers::{dwarf, general, physical};
use crate::frames::Rules;
use crate::listing::Lines;
use crate::ssa::{self, Function, Line};

/// Where a function begins, the caller's frame is so far above the stack pointer: the return address is between.
const CALLER: i32 = 8;

/// Memory below the stack pointer is touched at least this often, so that a guard page is not jumped over.
const PAGE: i32 = 4096;

/// A jump back over fewer bytes is a short one.
const SHORT: usize = 120;

/// A jump, or a constant's address, to be filled in.
struct Fix {
    /// Where its 4 bytes are.
    at: usize,
    /// Where the instruction ends, from which it counts.
    end: usize,
    to: Goal,
}

#[derive(Clone, Copy)]
enum Goal {
    Block(usize),
    Pool(u32),
}

struct Encode<'c> {
    code: &'c allocate::Code,
    output: &'c Output,
    bytes: Vec<u8>,
    at: usize,
    fixes: Vec<Fix>,
    /// Where each array on the stack is, from the stack pointer on.
    arrays: SecondaryMap<ssa::Slot, i32>,
    /// Where spilled registers start.
    spills: i32,
    saved: Vec<Register>,
    frame: i32,
    /// What the frame and the constants are aligned to: a vector.
    align: usize,
    /// Whether instructions are those of AVX-512.
    wide: bool,
    /// How the function is left, instruction by instruction.
    rules: Rules,
    /// Whether the frame is gone, behind a return.
    returned: bool,
}

/// The code of a function.
pub(super) fn encode(
    ssa: &Function,
    code: &allocate::Code,
    output: &Output,
    pool: &Pool,
) -> Result<Assembled, String> {
    let align = code.vector_bytes;
    let mut size = 0usize;
    let mut arrays = SecondaryMap::new();
    for (slot, &bytes) in &ssa.slots {
        arrays[slot] = size as i32;
        size = (size + bytes as usize).next_multiple_of(align);
    }
    let spills = size as i32;
    size = (size + 8 * output.num_spillslots).next_multiple_of(align);
    let mut encode = Encode {
        code,
        output,
        // Most instructions take fewer.
        bytes: Vec::with_capacity(8 * code.insts.len()),
        at: 0,
        fixes: Vec::new(),
        arrays,
        spills,
        saved: saved(output),
        frame: size as i32,
        align,
        wide: code.vector_bytes == 64,
        rules: Rules::new(),
        returned: false,
    };
    let mut listing = Listing::default();
    encode.function(&mut listing)?;
    let Encode { mut bytes, fixes, at, rules, .. } = encode;
    bytes.resize(at.next_multiple_of(align), 0xcc);
    let pool_start = bytes.len();
    bytes.extend_from_slice(pool.bytes());
    for Fix { at, end, to } in fixes {
        let target = match to {
            Goal::Block(block) => listing.starts[block].ok_or("a jump to nowhere")?,
            Goal::Pool(offset) => pool_start + offset as usize,
        };
        let distance = target as i32 - end as i32;
        bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }
    Ok(Assembled { bytes, end: at, lines: listing.lines, rules })
}

/// The registers in use that the caller wants back.
fn saved(output: &Output) -> Vec<Register> {
    let edits = output.edits.iter().flat_map(|(_, Edit::Move { from, to })| [from, to]);
    let mut in_use = PRegSet::empty();
    output.allocs.iter().chain(edits).filter_map(|place| place.as_reg()).for_each(|r| in_use.add(r));
    SAVED
        .into_iter()
        .filter(|&n| in_use.contains(PReg::new(n, RegClass::Int)))
        .map(|n| general(n, Width::B8))
        .collect()
}

/// Where blocks start, and the code of each line of the kernel.
#[derive(Default)]
struct Listing {
    starts: Vec<Option<usize>>,
    lines: Lines,
    line: PackedOption<Line>,
}

impl Listing {
    /// What is written from here on is for a line.
    fn enter(&mut self, at: usize, line: PackedOption<Line>) {
        if self.line != line {
            self.line = line;
            self.lines.extend(line.expand().map(|line| (at as u32, line)));
        }
    }
}

impl Encode<'_> {
    fn function(&mut self, listing: &mut Listing) -> Result<(), String> {
        listing.starts = vec![None; self.code.blocks.len()];
        // Blocks that only jump on take no code.
        let count = self.code.blocks.len();
        let empty: Vec<bool> = (0..count).map(|block| block > 0 && self.is_empty(block)).collect();
        let threaded = |mut block: usize| {
            while empty[block] {
                block = self.code.blocks[block].successors[0].index();
            }
            block
        };
        let goals: Vec<usize> = (0..count).map(threaded).collect();
        let laid_out: Vec<usize> = (0..count).filter(|&block| !empty[block]).collect();
        for (position, &block) in laid_out.iter().enumerate() {
            listing.starts[block] = Some(self.at);
            let next = laid_out.get(position + 1).copied();
            for item in self.output.block_insts_and_edits(self.code, regalloc2::Block::new(block)) {
                match item {
                    InstOrEdit::Edit(Edit::Move { from, to }) => self.move_(*from, *to)?,
                    InstOrEdit::Inst(inst) => {
                        listing.enter(self.at, self.code.lines[inst.index()]);
                        let allocations = self.output.inst_allocs(inst);
                        match &self.code.insts[inst.index()] {
                            Inst::Params(_) => {
                                self.prologue()?;
                                self.masks()?;
                            }
                            Inst::Machine(machine) => self.machine(machine, allocations)?,
                            Inst::Jump(to) => {
                                if next != Some(goals[*to]) {
                                    self.jump(None, goals[*to], listing)?;
                                }
                            }
                            Inst::Branch(condition, [then, otherwise]) => {
                                let (then, otherwise) = (goals[*then], goals[*otherwise]);
                                if next == Some(then) {
                                    self.jump(Some(condition.opposite()), otherwise, listing)?;
                                } else {
                                    self.jump(Some(*condition), then, listing)?;
                                    if next != Some(otherwise) {
                                        self.jump(None, otherwise, listing)?;
                                    }
                                }
                            }
                            Inst::Return => self.epilogue()?,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a block does nothing but jump on.
    fn is_empty(&self, block: usize) -> bool {
        let items = self.output.block_insts_and_edits(self.code, regalloc2::Block::new(block));
        let mut jumps = false;
        for item in items {
            match item {
                InstOrEdit::Edit(Edit::Move { from, to }) if from == to => {}
                InstOrEdit::Inst(inst) if matches!(self.code.insts[inst.index()], Inst::Jump(_)) => {
                    jumps = true
                }
                InstOrEdit::Edit(_) | InstOrEdit::Inst(_) => return false,
            }
        }
        // A loop without end that does nothing has no goal.
        jumps && self.code.blocks[block].successors[0].index() != block
    }

    /// A rule that holds behind what is written so far.
    fn rule(&mut self, rule: CallFrameInstruction) {
        self.rules.push((self.at as u32, rule));
    }

    fn prologue(&mut self) -> Result<(), String> {
        if self.frame == 0 && self.saved.is_empty() {
            return Ok(());
        }
        self.put(&with(Push_r64, &[Register::RBP]))?;
        self.rule(CallFrameInstruction::CfaOffset(CALLER + 8));
        self.rule(CallFrameInstruction::Offset(X86_64::RBP, -CALLER - 8));
        self.put(&with(Mov_r64_rm64, &[Register::RBP, Register::RSP]))?;
        self.rule(CallFrameInstruction::CfaRegister(X86_64::RBP));
        for (at, register) in self.saved.clone().into_iter().enumerate() {
            self.put(&with(Push_r64, &[register]))?;
            self.rule(CallFrameInstruction::Offset(dwarf(register), -CALLER - 16 - 8 * at as i32));
        }
        let mut all = Vec::new();
        let mut left = self.frame;
        while left > PAGE {
            all.push(with_immediate(Sub_rm64_imm32, Register::RSP, PAGE));
            let mut touch = with_immediate(Or_rm32_imm32, Register::None, 0);
            memory(&mut touch, 0, Register::RSP, Register::None, 1, 0);
            touch.set_op1_kind(OpKind::Immediate32);
            touch.set_immediate32(0);
            all.push(touch);
            left -= PAGE;
        }
        all.push(with_immediate(Sub_rm64_imm32, Register::RSP, left));
        all.push(with_immediate(And_rm64_imm32, Register::RSP, -(self.align as i32)));
        all.iter().try_for_each(|i| self.put(i).map(drop))
    }

    /// Fills the function's masks. No register but those of the parameters is in use yet.
    fn masks(&mut self) -> Result<(), String> {
        if self.code.masks.len() > super::MASKS {
            return Err(format!("{} masks of lanes", self.code.masks.len()));
        }
        for (number, &mask) in self.code.masks.iter().enumerate() {
            let mut bits = with(Mov_r64_imm64, &[Register::RAX]);
            immediate(&mut bits, 1, Imm::Quad(mask));
            self.put(&bits)?;
            self.put(&with(VEX_Kmovq_kr_r64, &[mask_register(number as u8), Register::RAX]))?;
        }
        Ok(())
    }

    fn epilogue(&mut self) -> Result<(), String> {
        self.put(&with(VEX_Vzeroupper, &[]))?;
        let framed = self.frame != 0 || !self.saved.is_empty();
        if framed {
            self.rule(CallFrameInstruction::RememberState);
            let mut restore = with(Lea_r64_m, &[Register::RSP]);
            memory(&mut restore, 1, Register::RBP, Register::None, 1, -8 * self.saved.len() as i64);
            self.put(&restore)?;
            for register in self.saved.clone().into_iter().rev() {
                self.put(&with(Pop_r64, &[register]))?;
                self.rule(CallFrameInstruction::Restore(dwarf(register)));
            }
            self.put(&with(Pop_r64, &[Register::RBP]))?;
            self.rule(CallFrameInstruction::Cfa(X86_64::RSP, CALLER));
            self.rule(CallFrameInstruction::Restore(X86_64::RBP));
        }
        self.put(&with(Retnq, &[]))?;
        self.returned = framed;
        Ok(())
    }

    /// Adds an instruction. Where its displacement is, if it has one.
    fn put(&mut self, instruction: &Instruction) -> Result<usize, String> {
        if std::mem::take(&mut self.returned) {
            self.rule(CallFrameInstruction::RestoreState);
        }
        let displacement = direct::encode(instruction, &mut self.bytes)
            .ok_or_else(|| format!("{:?} is not encoded with such operands", instruction.code()))?;
        self.at = self.bytes.len();
        Ok(displacement)
    }

    fn jump(&mut self, flags: Option<Flags>, to: usize, listing: &mut Listing) -> Result<(), String> {
        // Backwards, the distance is known, and may fit a byte.
        let known = listing.starts[to];
        let short = known.is_some_and(|start| self.at - start < SHORT);
        let mut instruction = Instruction::default();
        instruction.set_code(match flags {
            Some(flags) => flags.jump(short),
            None if short => Jmp_rel8_64,
            None => Jmp_rel32_64,
        });
        instruction.set_op0_kind(OpKind::NearBranch64);
        instruction.set_near_branch64(known.unwrap_or(self.at) as u64);
        self.put(&instruction)?;
        if known.is_none() {
            self.fixes.push(Fix { at: self.at - 4, end: self.at, to: Goal::Block(to) });
        }
        Ok(())
    }

    fn machine(&mut self, machine: &Machine, allocations: &[Allocation]) -> Result<(), String> {
        let register = |at: u8, width: Width| -> Result<Register, String> {
            let preg = allocations[usize::from(at)].as_reg().ok_or("an operand is in no register")?;
            Ok(physical(preg, width))
        };
        let mut instruction = Instruction::default();
        instruction.set_code(if self.wide { evex(machine.code) } else { machine.code });
        let mut constant = None;
        for (at, slot) in machine.slots.iter().enumerate() {
            let at = at as u32;
            match *slot {
                Slot::Reg(operand, width) => {
                    instruction.set_op_kind(at, OpKind::Register);
                    instruction.set_op_register(at, register(operand, width)?);
                }
                Slot::Mem(Mem { base, index, offset }) => {
                    let (base, offset) = match base {
                        Base::Reg(operand) => (register(operand, Width::B8)?, i64::from(offset)),
                        Base::Stack(slot) => {
                            (Register::RSP, i64::from(self.arrays[slot]) + i64::from(offset))
                        }
                        Base::Pool(start) => {
                            constant = Some(start);
                            (Register::RIP, 0)
                        }
                    };
                    let (index, scale) = match index {
                        Some((operand, scale)) => (register(operand, Width::B8)?, scale),
                        None => (Register::None, 1),
                    };
                    memory(&mut instruction, at, base, index, scale, offset);
                }
                Slot::Imm(imm) => immediate(&mut instruction, at, imm),
                Slot::Mask => {
                    instruction.set_op_kind(at, OpKind::Register);
                    instruction.set_op_register(at, Register::K1);
                }
                Slot::Where => instruction.set_op_mask(Register::K1),
                Slot::OnlyWhere => {
                    instruction.set_op_mask(Register::K1);
                    instruction.set_zeroing_masking(true);
                }
                Slot::Only(number) => {
                    instruction.set_op_mask(mask_register(number));
                    instruction.set_zeroing_masking(instruction.op0_kind() == OpKind::Register);
                }
            }
        }
        let at = self.put(&instruction)?;
        if let Some(constant) = constant {
            self.fixes.push(Fix { at, end: self.at, to: Goal::Pool(constant) });
        }
        Ok(())
    }

    fn move_(&mut self, from: Allocation, to: Allocation) -> Result<(), String> {
        if from == to {
            return Ok(());
        }
        let class = from.as_reg().or(to.as_reg()).map(|r| r.class()).ok_or("a move from memory to memory")?;
        let (width, load, store, copy) = match class {
            RegClass::Int => (Width::B8, Mov_r64_rm64, Mov_rm64_r64, Mov_r64_rm64),
            RegClass::Float | RegClass::Vector if self.wide => (
                Width::Z,
                EVEX_Vmovups_zmm_k1z_zmmm512,
                EVEX_Vmovups_zmmm512_k1z_zmm,
                EVEX_Vmovaps_zmm_k1z_zmmm512,
            ),
            RegClass::Float | RegClass::Vector => {
                (Width::Y, VEX_Vmovups_ymm_ymmm256, VEX_Vmovups_ymmm256_ymm, VEX_Vmovaps_ymm_ymmm256)
            }
        };
        let spilled = |allocation: Allocation| {
            let slot = allocation.as_stack().map_or(0, |slot| slot.index());
            i64::from(self.spills) + 8 * slot as i64
        };
        let mut instruction = Instruction::default();
        match (from.as_reg(), to.as_reg()) {
            (Some(from), Some(to)) => {
                instruction = with(copy, &[physical(to, width), physical(from, width)]);
            }
            (None, Some(register)) => {
                instruction.set_code(load);
                instruction.set_op0_kind(OpKind::Register);
                instruction.set_op0_register(physical(register, width));
                memory(&mut instruction, 1, Register::RSP, Register::None, 1, spilled(from));
            }
            (Some(register), None) => {
                instruction.set_code(store);
                memory(&mut instruction, 0, Register::RSP, Register::None, 1, spilled(to));
                instruction.set_op1_kind(OpKind::Register);
                instruction.set_op1_register(physical(register, width));
            }
            (None, None) => return Err("a move from memory to memory".to_string()),
        }
        self.put(&instruction).map(drop)
    }
}

/// The register of a function's mask: the first two are for no mask, and for comparisons.
fn mask_register(number: u8) -> Register {
    Register::K2 + u32::from(number)
}

/// An instruction on registers.
fn with(code: Code, registers: &[Register]) -> Instruction {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for (at, &register) in registers.iter().enumerate() {
        instruction.set_op_kind(at as u32, OpKind::Register);
        instruction.set_op_register(at as u32, register);
    }
    instruction
}

fn with_immediate(code: Code, register: Register, value: i32) -> Instruction {
    let mut instruction = with(code, &[register]);
    immediate(&mut instruction, 1, Imm::Long(value));
    instruction
}

fn immediate(instruction: &mut Instruction, at: u32, imm: Imm) {
    match imm {
        Imm::Byte(value) => {
            instruction.set_op_kind(at, OpKind::Immediate8);
            instruction.set_immediate8(value);
        }
        Imm::Int(value) => {
            instruction.set_op_kind(at, OpKind::Immediate32);
            instruction.set_immediate32(value as u32);
        }
        Imm::Long(value) => {
            instruction.set_op_kind(at, OpKind::Immediate32to64);
            instruction.set_immediate32to64(i64::from(value));
        }
        Imm::Quad(value) => {
            instruction.set_op_kind(at, OpKind::Immediate64);
            instruction.set_immediate64(value);
        }
    }
}

pub(super) fn memory(
    instruction: &mut Instruction,
    at: u32,
    base: Register,
    index: Register,
    scale: u8,
    offset: i64,
) {
    instruction.set_op_kind(at, OpKind::Memory);
    instruction.set_memory_base(base);
    instruction.set_memory_index(index);
    instruction.set_memory_index_scale(u32::from(scale));
    instruction.set_memory_displacement64(offset as u64);
    // One byte, wherever that is enough.
    let size = match (base, offset) {
        (Register::RIP, _) => 8,
        (_, 0) => 0,
        _ => 1,
    };
    instruction.set_memory_displ_size(size);
}
