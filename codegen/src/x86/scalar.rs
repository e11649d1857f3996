//! Instructions on integers in general registers.
//!
//! The bits of a register beyond an integer's width are anything, so what depends on them (division, shifts to
//! the right, widening) extends its operand first.

use iced_x86::Code::{self, *};
use regalloc2::{Operand, VReg};

use super::allocate::{RAX, RDX};
use super::flags::Flags;
use super::inst::{Arg, Base, Imm, Machine, Mem, Width};
use super::lower::{Lower, byte, width};
use crate::ssa::{Condition, InstData, Op, Type, Value};

/// The part of a register that arithmetic works on.
fn wide(ty: Type) -> Width {
    if ty.bytes() == 8 { Width::B8 } else { Width::B4 }
}

/// One of two instructions, by whether 64 bits are worked on.
fn by_width(ty: Type, narrow: Code, wide: Code) -> Code {
    if ty.bytes() == 8 { wide } else { narrow }
}

impl Lower<'_> {
    /// A constant as a 32-bit immediate, if it fits.
    fn immediate(&self, value: Value) -> Option<i32> {
        let bits = self.ssa.as_const(value)?;
        let ty = self.ssa.ty(value);
        let shift = 64 - ty.lane_bits();
        i32::try_from((bits << shift) as i64 >> shift).ok()
    }

    /// Loads a constant.
    pub fn integer(&mut self, to: VReg, bits: u64) {
        match u32::try_from(bits) {
            Ok(low) => {
                let args = [Arg::Def(to, Width::B4), Arg::Imm(Imm::Int(low as i32))];
                self.push(Mov_r32_imm32, &args);
            }
            Err(_) => self.push(Mov_r64_imm64, &[Arg::Def(to, Width::B8), Arg::Imm(Imm::Quad(bits))]),
        }
    }

    pub fn store_constant(&mut self, memory: Mem<VReg>, bytes: usize, bits: u64) -> bool {
        let memory = Arg::Mem(memory);
        match bytes {
            1 => self.push(Mov_rm8_imm8, &[memory, Arg::Imm(Imm::Byte(bits as u8))]),
            4 => self.push(Mov_rm32_imm32, &[memory, Arg::Imm(Imm::Int(bits as u32 as i32))]),
            8 => match i32::try_from(bits as i64) {
                Ok(low) => self.push(Mov_rm64_imm32, &[memory, Arg::Imm(Imm::Long(low))]),
                Err(_) => return false,
            },
            _ => return false,
        }
        true
    }

    pub fn store_scalar(&mut self, memory: Mem<VReg>, bytes: usize, value: VReg) {
        let (code, width) = match bytes {
            1 => (Mov_rm8_r8, Width::B1),
            2 => (Mov_rm16_r16, Width::B2),
            4 => (Mov_rm32_r32, Width::B4),
            _ => (Mov_rm64_r64, Width::B8),
        };
        self.push(code, &[Arg::Mem(memory), Arg::Use(value, width)]);
    }

    /// A value with its sign, or zeros, in all 64 bits of a new register.
    pub fn extended(&mut self, signed: bool, value: Value, of: Type) -> VReg {
        let from = self.reg(value);
        if of.bytes() == 8 {
            return from;
        }
        let to = self.fresh(Type::I64);
        self.extend(signed, from, of, to);
        to
    }

    fn extend(&mut self, signed: bool, from: VReg, of: Type, to: VReg) {
        let (code, from_width) = match (of.bytes(), signed) {
            (1, true) => (Movsx_r64_rm8, Width::B1),
            (2, true) => (Movsx_r64_rm16, Width::B2),
            (_, true) => (Movsxd_r64_rm32, Width::B4),
            (1, false) => (Movzx_r32_rm8, Width::B1),
            (2, false) => (Movzx_r32_rm16, Width::B2),
            (_, false) => (Mov_r32_rm32, Width::B4),
        };
        let to_width = if signed { Width::B8 } else { Width::B4 };
        self.push(code, &[Arg::Def(to, to_width), Arg::Use(from, from_width)]);
    }

    /// A value whose bits beyond its width, up to 32, are its sign or zeros.
    fn settled(&mut self, signed: bool, value: Value, of: Type) -> VReg {
        let from = self.reg(value);
        if of.bytes() >= 4 {
            return from;
        }
        let to = self.fresh(Type::I32);
        self.extend(signed, from, of, to);
        to
    }

    pub fn xor64(&mut self, to: VReg, a: VReg, b: VReg) {
        self.push(Xor_r64_rm64, &[Arg::Change(to, a, Width::B8), Arg::Use(b, Width::B8)]);
    }

    pub fn or64(&mut self, to: VReg, a: VReg, b: VReg) {
        self.push(Or_r64_rm64, &[Arg::Change(to, a, Width::B8), Arg::Use(b, Width::B8)]);
    }

    /// `a << 63`
    pub fn shift_left_63(&mut self, a: VReg) -> VReg {
        let to = self.fresh(Type::I64);
        self.push(Shl_rm64_imm8, &[Arg::Change(to, a, Width::B8), byte(63)]);
        to
    }

    /// `a >> 1 | a & 1`, shifting in a zero.
    pub fn half_odd(&mut self, a: VReg) -> VReg {
        let (half, odd, joined) = (self.fresh(Type::I64), self.fresh(Type::I64), self.fresh(Type::I64));
        self.push(Shr_rm64_imm8, &[Arg::Change(half, a, Width::B8), byte(1)]);
        self.push(And_rm64_imm32, &[Arg::Change(odd, a, Width::B8), Arg::Imm(Imm::Long(1))]);
        self.or64(joined, half, odd);
        joined
    }

    /// Sets flags by whether a condition holds, and says which.
    pub fn test(&mut self, condition: Value) -> Flags {
        if let Some(InstData { op: Op::Compare(how), args, .. }) = self.ssa.def(condition) {
            let (how, a, b) = (*how, args[0], args[1]);
            let of = self.ssa.ty(a);
            if !of.is_float() {
                return self.compare_scalars(how, a, b, of);
            }
            // Above and not below hold for no NaN.
            match how {
                Condition::Gt => self.float_flags(a, b),
                Condition::Ge => self.float_flags(a, b),
                Condition::Lt | Condition::Le => self.float_flags(b, a),
                _ => {
                    let mask = self.float_mask(how, a, b);
                    let word = self.fresh(Type::I32);
                    self.push(VEX_Vmovd_rm32_xmm, &[Arg::Def(word, Width::B4), Arg::Use(mask, Width::X)]);
                    let word = Arg::Use(word, Width::B4);
                    self.push(Test_rm32_r32, &[word, word]);
                    return Flags::Ne;
                }
            }
            return match how {
                Condition::Gt | Condition::Lt => Flags::A,
                _ => Flags::Ae,
            };
        }
        let condition = Arg::Use(self.reg(condition), Width::B1);
        self.push(Test_rm8_r8, &[condition, condition]);
        Flags::Ne
    }

    fn compare_scalars(&mut self, how: Condition, a: Value, b: Value, of: Type) -> Flags {
        let codes = match of.bytes() {
            1 => (Cmp_rm8_imm8, Cmp_r8_rm8),
            2 => (INVALID, Cmp_r16_rm16),
            4 => (Cmp_rm32_imm32, Cmp_r32_rm32),
            _ => (Cmp_rm64_imm32, Cmp_r64_rm64),
        };
        let first = Arg::Use(self.reg(a), width(of));
        match self.immediate(b) {
            Some(c) if codes.0 != INVALID => {
                let imm = match of.bytes() {
                    1 => Imm::Byte(c as u8),
                    4 => Imm::Int(c),
                    _ => Imm::Long(c),
                };
                self.push(codes.0, &[first, Arg::Imm(imm)]);
            }
            _ => {
                let second = Arg::Use(self.reg(b), width(of));
                self.push(codes.1, &[first, second]);
            }
        }
        match how {
            Condition::Eq => Flags::E,
            Condition::Ne => Flags::Ne,
            Condition::Lt => Flags::L,
            Condition::Le => Flags::Le,
            Condition::Gt => Flags::G,
            Condition::Ge => Flags::Ge,
            Condition::Below => Flags::B,
            Condition::NotAbove => Flags::Be,
            Condition::Above => Flags::A,
            Condition::NotBelow => Flags::Ae,
        }
    }

    /// The truth of a comparison as 0 or 1.
    pub fn define_truth(&mut self, inst: &InstData, to: VReg) {
        let result = inst.result.expect("a comparison has a result");
        let set = self.test(result).set();
        self.push(set, &[Arg::Def(to, Width::B1)]);
    }

    /// A condition as a mask in the low bits of a vector register.
    pub fn truth_mask(&mut self, condition: Value) -> VReg {
        if let Some(InstData { op: Op::Compare(how), args, .. }) = self.ssa.def(condition)
            && self.ssa.ty(args[0]).is_float()
        {
            // A mask of 32 bits chooses from 64 by its top bit once it is spread.
            let mask = self.float_mask(*how, args[0], args[1]);
            return self.spread_low(mask);
        }
        let flag = self.reg(condition);
        let (word, negative) = (self.fresh(Type::I32), self.fresh(Type::I32));
        self.push(Movzx_r32_rm8, &[Arg::Def(word, Width::B4), Arg::Use(flag, Width::B1)]);
        self.push(Neg_rm32, &[Arg::Change(negative, word, Width::B4)]);
        let mask = self.fresh(Type::F32);
        self.push(VEX_Vmovd_xmm_rm32, &[Arg::Def(mask, Width::X), Arg::Use(negative, Width::B4)]);
        self.spread_low(mask)
    }

    /// The low 32 bits of a vector register in all of its low 128.
    fn spread_low(&mut self, mask: VReg) -> VReg {
        let to = self.fresh(Type::F32);
        self.push(VEX_Vpshufd_xmm_xmmm128_imm8, &[Arg::Def(to, Width::X), Arg::Use(mask, Width::X), byte(0)]);
        to
    }

    /// An instruction on integers.
    pub fn scalar(&mut self, inst: &InstData, ty: Type, of: Type, to: VReg) -> Option<()> {
        let args = &inst.args;
        match inst.op {
            Op::Const(bits) => self.integer(to, bits),
            Op::StackAddress(slot) => {
                let memory = Mem { base: Base::Stack(slot), index: None, offset: 0 };
                self.push(Lea_r64_m, &[Arg::Def(to, Width::B8), Arg::Mem(memory)]);
            }
            Op::Load { offset, bytes } => {
                let memory = Arg::Mem(self.address(args[0], offset));
                let (code, width) = match bytes {
                    1 => (Movzx_r32_rm8, Width::B4),
                    2 => (Movzx_r32_rm16, Width::B4),
                    4 => (Mov_r32_rm32, Width::B4),
                    _ => (Mov_r64_rm64, Width::B8),
                };
                self.push(code, &[Arg::Def(to, width), memory]);
            }
            Op::Add => self.add(args[0], args[1], to),
            Op::Sub => self.change(ty, (Sub_r32_rm32, Sub_r64_rm64), args, to),
            Op::Mul => match self.immediate(args[1]) {
                Some(c) => {
                    let a = self.reg(args[0]);
                    let imm = if ty.bytes() == 8 { Imm::Long(c) } else { Imm::Int(c) };
                    let code = by_width(ty, Imul_r32_rm32_imm32, Imul_r64_rm64_imm32);
                    self.push(code, &[Arg::Def(to, wide(ty)), Arg::Use(a, wide(ty)), Arg::Imm(imm)]);
                }
                None => self.change(ty, (Imul_r32_rm32, Imul_r64_rm64), args, to),
            },
            Op::And => self.change(ty, (And_r32_rm32, And_r64_rm64), args, to),
            Op::Or => self.change(ty, (Or_r32_rm32, Or_r64_rm64), args, to),
            Op::Xor => self.change(ty, (Xor_r32_rm32, Xor_r64_rm64), args, to),
            Op::AndNot => {
                let (a, b) = (self.reg(args[0]), self.reg(args[1]));
                let opposite = self.fresh(ty);
                self.push(Not_rm64, &[Arg::Change(opposite, b, Width::B8)]);
                let args = [Arg::Change(to, a, Width::B8), Arg::Use(opposite, Width::B8)];
                self.push(And_r64_rm64, &args);
            }
            Op::Not => {
                let a = self.reg(args[0]);
                self.push(Not_rm64, &[Arg::Change(to, a, Width::B8)]);
            }
            Op::Neg => {
                let a = self.reg(args[0]);
                self.push(Neg_rm64, &[Arg::Change(to, a, Width::B8)]);
            }
            Op::Div | Op::DivUnsigned => self.divide(inst.op == Op::Div, args, ty, to),
            Op::Shl => {
                let a = self.reg(args[0]);
                self.shift_scalar(Op::Shl, a, args[1], ty, to);
            }
            Op::ShrSigned | Op::ShrUnsigned => {
                let a = self.settled(inst.op == Op::ShrSigned, args[0], ty);
                self.shift_scalar(inst.op, a, args[1], ty, to);
            }
            Op::Compare(_) => self.define_truth(inst, to),
            Op::Select => self.select(args, ty, to),
            Op::SignExtend | Op::ZeroExtend => {
                let from = self.reg(args[0]);
                self.extend(inst.op == Op::SignExtend, from, of, to);
            }
            // The same type under another name.
            Op::Bitcast => {
                let from = self.reg(args[0]);
                self.push(Mov_r64_rm64, &[Arg::Def(to, Width::B8), Arg::Use(from, Width::B8)]);
            }
            _ => return None,
        }
        Some(())
    }

    fn add(&mut self, a: Value, b: Value, to: VReg) {
        let first = self.reg(a);
        let memory = match self.immediate(b) {
            Some(offset) => Mem { base: Base::Reg(first), index: None, offset },
            None => {
                let second = self.reg(b);
                Mem { base: Base::Reg(first), index: Some((second, 1)), offset: 0 }
            }
        };
        self.push(Lea_r64_m, &[Arg::Def(to, Width::B8), Arg::Mem(memory)]);
    }

    /// An instruction that changes its first operand.
    fn change(&mut self, ty: Type, (narrow, whole): (Code, Code), args: &[Value], to: VReg) {
        let (a, b) = (self.reg(args[0]), self.reg(args[1]));
        let code = by_width(ty, narrow, whole);
        self.push(code, &[Arg::Change(to, a, wide(ty)), Arg::Use(b, wide(ty))]);
    }

    fn divide(&mut self, signed: bool, args: &[Value], ty: Type, to: VReg) {
        let (a, b) = (self.settled(signed, args[0], ty), self.settled(signed, args[1], ty));
        let high = self.fresh(ty);
        if signed {
            let code = by_width(ty, Cdq, Cqo);
            let machine = Machine::new(code, &[])
                .with(Operand::reg_fixed_use(a, RAX))
                .with(Operand::reg_fixed_def(high, RDX));
            self.push_machine(machine);
        } else {
            self.integer(high, 0);
        }
        let code = match signed {
            true => by_width(ty, Idiv_rm32, Idiv_rm64),
            false => by_width(ty, Div_rm32, Div_rm64),
        };
        let rest = self.fresh(ty);
        let machine = Machine::new(code, &[Arg::Use(b, wide(ty))])
            .with(Operand::reg_fixed_use(a, RAX))
            .with(Operand::reg_fixed_use(high, RDX))
            .with(Operand::reg_fixed_def(to, RAX))
            .with(Operand::reg_fixed_def(rest, RDX));
        self.push_machine(machine);
    }

    fn shift_scalar(&mut self, op: Op, a: VReg, count: Value, ty: Type, to: VReg) {
        if let Some(count) = self.ssa.as_const(count) {
            let code = match op {
                Op::Shl => by_width(ty, Shl_rm32_imm8, Shl_rm64_imm8),
                Op::ShrSigned => by_width(ty, Sar_rm32_imm8, Sar_rm64_imm8),
                _ => by_width(ty, Shr_rm32_imm8, Shr_rm64_imm8),
            };
            return self.push(code, &[Arg::Change(to, a, wide(ty)), byte(count as usize)]);
        }
        let code = match op {
            Op::Shl => by_width(ty, VEX_Shlx_r32_rm32_r32, VEX_Shlx_r64_rm64_r64),
            Op::ShrSigned => by_width(ty, VEX_Sarx_r32_rm32_r32, VEX_Sarx_r64_rm64_r64),
            _ => by_width(ty, VEX_Shrx_r32_rm32_r32, VEX_Shrx_r64_rm64_r64),
        };
        let of = self.ssa.ty(count);
        let count = self.settled(false, count, of);
        self.push(code, &[Arg::Def(to, wide(ty)), Arg::Use(a, wide(ty)), Arg::Use(count, wide(ty))]);
    }

    fn select(&mut self, args: &[Value], ty: Type, to: VReg) {
        let (b, c) = (self.reg(args[1]), self.reg(args[2]));
        let code = self.test(args[0]).cmov(ty.bytes() == 8);
        self.push(code, &[Arg::Change(to, c, wide(ty)), Arg::Use(b, wide(ty))]);
    }
}
