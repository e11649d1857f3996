//! Machine instructions before registers are chosen.

use iced_x86::Code;
use regalloc2::{Operand, VReg};
use smallvec::SmallVec;

use super::flags::Flags;
use crate::ssa::Slot as StackSlot;

/// How much of a register an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The low 8 bits of a general register.
    B1,
    /// The low 16 bits of a general register.
    B2,
    /// The low 32 bits of a general register.
    B4,
    /// A general register.
    B8,
    /// The low 128 bits of a vector register.
    X,
    /// 256 bits of a vector register.
    Y,
    /// 512 bits of a vector register.
    Z,
}

/// An immediate, by how it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imm {
    /// A byte.
    Byte(u8),
    /// 32 bits of a 32-bit operation.
    Int(i32),
    /// 32 bits that are extended to 64.
    Long(i32),
    /// 64 bits.
    Quad(u64),
}

/// Where an address starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base<R> {
    /// A register.
    Reg(R),
    /// An array on the stack.
    Stack(StackSlot),
    /// The constants behind the code, from this byte on.
    Pool(u32),
}

/// An address: base + index * scale + displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem<R> {
    /// Where it starts.
    pub base: Base<R>,
    /// An index and its scale: 1, 2, 4 or 8.
    pub index: Option<(R, u8)>,
    /// Added.
    pub offset: i32,
}

impl<R> Mem<R> {
    /// Constants.
    pub fn pool(at: u32) -> Mem<R> {
        Mem { base: Base::Pool(at), index: None, offset: 0 }
    }
}

/// One operand as the assembler sees it; registers are positions in the allocator's operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A register of the allocator's choice.
    Reg(u8, Width),
    /// Memory.
    Mem(Mem<u8>),
    /// An immediate.
    Imm(Imm),
    /// The mask register that a comparison leaves its result in for the next instruction.
    Mask,
    /// The mask of this number, behind the operands: all other lanes stay out of it, and a register has zeros there.
    Only(u8),
    /// The comparison's mask, behind the operands: all other lanes stay as they are.
    Where,
    /// The same mask, but a register has zeros in all other lanes.
    OnlyWhere,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which.
    pub code: Code,
    /// Its operands as the assembler sees them.
    pub slots: SmallVec<[Slot; 4]>,
    /// Its operands as the register allocator sees them.
    pub operands: SmallVec<[Operand; 4]>,
}

/// An instruction, or what ends a block. Blocks are numbered in the order of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inst {
    /// The function's parameters come in.
    Params(SmallVec<[Operand; 4]>),
    /// A machine instruction.
    Machine(Machine),
    /// Goes on to a block.
    Jump(usize),
    /// Goes on to the first block if the flags say so, else to the second.
    Branch(Flags, [usize; 2]),
    /// Leaves the function.
    Return,
}

/// One operand of an instruction under construction.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A register that is written.
    Def(VReg, Width),
    /// A register that is read.
    Use(VReg, Width),
    /// A register that is written (the first) and starts as a copy of another.
    Change(VReg, VReg, Width),
    /// A register that is written with what does not depend on what it held, and is named as operand three times.
    Zero(VReg, Width),
    /// Memory.
    Mem(Mem<VReg>),
    /// An immediate.
    Imm(Imm),
    /// The mask register.
    Mask,
    /// Behind the operands, the mask of the function's that is for the lanes to load or store.
    Only(u8),
    /// Behind the operands, the comparison's mask for the lanes to change.
    Where,
    /// Behind the operands, the comparison's mask for the lanes to load.
    OnlyWhere,
}

impl Machine {
    /// An instruction with operands in the assembler's order.
    pub fn new(code: Code, args: &[Arg]) -> Machine {
        let mut machine = Machine { code, slots: SmallVec::new(), operands: SmallVec::new() };
        for &arg in args {
            let slot = match arg {
                Arg::Def(reg, width) => Slot::Reg(machine.operand(Operand::reg_def(reg)), width),
                Arg::Use(reg, width) => Slot::Reg(machine.operand(Operand::reg_use(reg)), width),
                Arg::Change(to, from, width) => {
                    let from = machine.operand(Operand::reg_use(from));
                    let def = Operand::reg_reuse_def(to, usize::from(from));
                    Slot::Reg(machine.operand(def), width)
                }
                Arg::Zero(reg, width) => {
                    let slot = Slot::Reg(machine.operand(Operand::reg_def(reg)), width);
                    machine.slots.extend([slot, slot]);
                    slot
                }
                Arg::Imm(imm) => Slot::Imm(imm),
                Arg::Mask => Slot::Mask,
                Arg::Only(mask) => Slot::Only(mask),
                Arg::Where => Slot::Where,
                Arg::OnlyWhere => Slot::OnlyWhere,
                Arg::Mem(Mem { base, index, offset }) => {
                    let base = match base {
                        Base::Reg(reg) => Base::Reg(machine.operand(Operand::reg_use(reg))),
                        Base::Stack(slot) => Base::Stack(slot),
                        Base::Pool(at) => Base::Pool(at),
                    };
                    let index = index.map(|(reg, scale)| (machine.operand(Operand::reg_use(reg)), scale));
                    Slot::Mem(Mem { base, index, offset })
                }
            };
            machine.slots.push(slot);
        }
        machine
    }

    fn operand(&mut self, operand: Operand) -> u8 {
        self.operands.push(operand);
        self.operands.len() as u8 - 1
    }

    /// The same with another operand that the assembler does not see.
    pub fn with(mut self, operand: Operand) -> Machine {
        self.operands.push(operand);
        self
    }
}
