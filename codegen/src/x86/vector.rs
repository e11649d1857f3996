//! Instructions on floats and on vectors.
//!
//! Tables name the instruction of an operation for each element type. Where there is none, a few others do
//! its work.

use iced_x86::Code::{self, *};
use regalloc2::VReg;

use super::inst::{Arg, Mem, Width};
use super::lower::{Lower, byte};
use super::masks::{UNORDERED, predicate};
use super::table::{extend, float, two};
use crate::ssa::{Element, InstData, Op, Type, Value};

/// The part of a vector register that a type takes.
pub fn part(ty: Type) -> Width {
    if ty.is_vector() { part_of(ty.bytes()) } else { Width::X }
}

/// The least part of a vector register that has so many bytes.
pub fn part_of(bytes: usize) -> Width {
    match bytes {
        64 => Width::Z,
        32 => Width::Y,
        _ => Width::X,
    }
}

/// How a rounding to f16 is asked for: to nearest, ties to even, whatever the processor's mode.
const TO_NEAREST: usize = 0;

impl Lower<'_> {
    /// A vector of the same bits in every lane, as an operand in memory; a scalar alone.
    pub fn constant(&mut self, ty: Type, bits: u64) -> Arg {
        let lane = &bits.to_le_bytes()[..ty.element().bytes()];
        let bytes = lane.iter().copied().cycle().take(ty.bytes()).collect();
        Arg::Mem(Mem::pool(self.pool.add(bytes)))
    }

    /// A value as the last operand: memory, or a register.
    pub fn operand(&mut self, value: Value) -> Arg {
        let ty = self.ssa.ty(value);
        match self.ssa.as_const(value) {
            Some(bits) if bits != 0 => self.constant(ty, bits),
            _ => match self.folded(value, ty.bytes()) {
                Some(memory) => Arg::Mem(memory),
                None => Arg::Use(self.reg(value), part(ty)),
            },
        }
    }

    /// Whether instructions are those of AVX-512.
    pub fn is_wide(&self) -> bool {
        self.whole == Width::Z
    }

    /// A scalar, or the low lanes of a vector: what lanes that are `times` as wide are made from.
    pub fn low(&mut self, value: Value, times: usize) -> Arg {
        let ty = self.ssa.ty(value);
        if !ty.is_vector() {
            return Arg::Use(self.reg(value), Width::X);
        }
        match self.folded(value, ty.bytes() / times) {
            Some(memory) => Arg::Mem(memory),
            None => Arg::Use(self.reg(value), part_of(ty.bytes() / times)),
        }
    }

    /// `to = code(a, b)`
    pub fn apply(&mut self, code: Code, ty: Type, to: VReg, a: VReg, b: Arg) {
        self.push(code, &[Arg::Def(to, part(ty)), Arg::Use(a, part(ty)), b]);
    }

    /// `code(a, b)` in a new register.
    pub fn make(&mut self, code: Code, ty: Type, a: VReg, b: Arg) -> VReg {
        let to = self.fresh(ty);
        self.apply(code, ty, to, a, b);
        to
    }

    /// A binary operation of the tables in a new register.
    pub fn combine(&mut self, op: Op, ty: Type, a: VReg, b: Arg) -> Option<VReg> {
        Some(self.make(two(op, ty)?, ty, a, b))
    }

    pub fn copy(&mut self, ty: Type, to: VReg, from: VReg) {
        let code = if ty.is_vector() { VEX_Vmovaps_ymm_ymmm256 } else { VEX_Vmovaps_xmm_xmmm128 };
        self.push(code, &[Arg::Def(to, part(ty)), Arg::Use(from, part(ty))]);
    }

    /// Zeros in a new register.
    pub fn zero(&mut self, ty: Type) -> VReg {
        let to = self.fresh(ty);
        self.define_constant(ty, to, 0);
        to
    }

    fn define_constant(&mut self, ty: Type, to: VReg, bits: u64) {
        if bits == 0 {
            // Whatever the register holds cancels; the allocator has to be told that it holds something.
            return self.push(VEX_Vxorps_xmm_xmm_xmmm128, &[Arg::Zero(to, Width::X)]);
        }
        let code = match (ty.is_vector(), ty.element().bytes()) {
            (true, 8) => VEX_Vbroadcastsd_ymm_m64,
            (true, 4) => VEX_Vbroadcastss_ymm_m32,
            (true, 2) => VEX_Vpbroadcastw_ymm_xmmm16,
            (true, _) => VEX_Vpbroadcastb_ymm_xmmm8,
            (false, 8) => VEX_Vmovsd_xmm_m64,
            (false, _) => VEX_Vmovss_xmm_m32,
        };
        let lane = self.constant(ty.lane(), bits);
        self.push(code, &[Arg::Def(to, part(ty)), lane]);
    }

    /// An instruction on scalar floats.
    pub fn float(&mut self, inst: &InstData, ty: Type, of: Type, to: VReg) -> Option<()> {
        let args = &inst.args;
        match inst.op {
            Op::Load { offset, bytes } => {
                let memory = self.address(args[0], offset);
                self.load_vector(memory, usize::from(bytes), ty, to);
            }
            Op::Compare(_) => self.define_truth(inst, to),
            Op::Select => {
                let mask = self.truth_mask(args[0]);
                let (b, c) = (self.reg(args[1]), self.reg(args[2]));
                self.blend(ty, to, mask, b, c);
            }
            Op::Promote | Op::Demote => {
                let code = match inst.op {
                    Op::Promote => VEX_Vcvtss2sd_xmm_xmm_xmmm32,
                    _ => VEX_Vcvtsd2ss_xmm_xmm_xmmm64,
                };
                let from = self.low(args[0], 1);
                self.push(code, &[Arg::Def(to, Width::X), from, from]);
            }
            Op::FromHalf => {
                let (from, bits) = (self.reg(args[0]), self.fresh(ty));
                self.push(VEX_Vmovd_xmm_rm32, &[Arg::Def(bits, Width::X), Arg::Use(from, Width::B4)]);
                let args = [Arg::Def(to, Width::X), Arg::Use(bits, Width::X)];
                self.push(VEX_Vcvtph2ps_xmm_xmmm64, &args);
            }
            Op::ToHalf => {
                let (from, bits) = (self.reg(args[0]), self.fresh(of));
                let args = [Arg::Def(bits, Width::X), Arg::Use(from, Width::X), byte(TO_NEAREST)];
                self.push(VEX_Vcvtps2ph_xmmm64_xmm_imm8, &args);
                self.push(VEX_Vmovd_rm32_xmm, &[Arg::Def(to, Width::B4), Arg::Use(bits, Width::X)]);
            }
            Op::Bitcast => {
                let code = match (ty.is_float(), ty.bytes()) {
                    (true, 4) => VEX_Vmovd_xmm_rm32,
                    (true, _) => VEX_Vmovq_xmm_rm64,
                    (false, 4) => VEX_Vmovd_rm32_xmm,
                    (false, _) => VEX_Vmovq_rm64_xmm,
                };
                let from = self.reg(args[0]);
                let general = if ty.bytes() == 4 { Width::B4 } else { Width::B8 };
                let (a, b) = if ty.is_float() { (Width::X, general) } else { (general, Width::X) };
                self.push(code, &[Arg::Def(to, a), Arg::Use(from, b)]);
            }
            Op::ToSigned | Op::ToUnsigned => {
                self.integer_of_float(inst.op == Op::ToSigned, args[0], of, ty, to)
            }
            Op::FromSigned | Op::FromUnsigned => {
                self.float_of_integer(inst.op == Op::FromSigned, args[0], of, ty, to);
            }
            _ => return self.lanewise(inst, ty, to),
        }
        Some(())
    }

    /// Operations that are the same on scalar floats and on every lane of a vector.
    fn lanewise(&mut self, inst: &InstData, ty: Type, to: VReg) -> Option<()> {
        let args = &inst.args;
        match inst.op {
            Op::Const(bits) => self.define_constant(ty, to, bits),
            Op::Max if ty.is_float() && self.is_wide() => {
                let (a, b) = (self.reg(args[0]), self.reg(args[1]));
                self.maximum(ty, to, a, b);
            }
            Op::Min | Op::Max if ty.is_float() => {
                let (a, b) = (self.reg(args[0]), self.reg(args[1]));
                let least = inst.op == Op::Min;
                let code = two(if least { Op::SelectLess } else { Op::SelectGreater }, ty)?;
                let one = self.make(code, ty, a, Arg::Use(b, part(ty)));
                let other = self.make(code, ty, b, Arg::Use(a, part(ty)));
                // They differ where one operand is NaN, or where both are zeros of different signs.
                if least {
                    self.apply(two(Op::Or, ty)?, ty, to, one, Arg::Use(other, part(ty)));
                } else {
                    let both = self.combine(Op::And, ty, one, Arg::Use(other, part(ty)))?;
                    let nan = self.mask(ty, UNORDERED, a, Arg::Use(b, part(ty)));
                    self.apply(two(Op::Or, ty)?, ty, to, both, Arg::Use(nan, part(ty)));
                }
            }
            Op::Fma => self.fma(ty, args, to),
            Op::Neg if ty.is_float() => {
                let sign = self.constant(ty.as_int(), 1 << (ty.lane_bits() - 1));
                let sign = self.in_register(ty, sign);
                let a = self.reg(args[0]);
                self.apply(two(Op::Xor, ty)?, ty, to, a, sign);
            }
            Op::Abs if ty.is_float() => {
                let rest = self.constant(ty.as_int(), (1 << (ty.lane_bits() - 1)) - 1);
                let rest = self.in_register(ty, rest);
                let a = self.reg(args[0]);
                self.apply(two(Op::And, ty)?, ty, to, a, rest);
            }
            Op::Sqrt => {
                let code = float(
                    ty,
                    [
                        VEX_Vsqrtss_xmm_xmm_xmmm32,
                        VEX_Vsqrtsd_xmm_xmm_xmmm64,
                        VEX_Vsqrtps_ymm_ymmm256,
                        VEX_Vsqrtpd_ymm_ymmm256,
                    ],
                );
                self.one(code, ty, to, args[0], None);
            }
            Op::Nearest | Op::Floor | Op::Ceil | Op::Trunc => {
                let mode = match inst.op {
                    Op::Nearest => 0,
                    Op::Floor => 1,
                    Op::Ceil => 2,
                    _ => 3,
                };
                let code = float(
                    ty,
                    [
                        VEX_Vroundss_xmm_xmm_xmmm32_imm8,
                        VEX_Vroundsd_xmm_xmm_xmmm64_imm8,
                        VEX_Vroundps_ymm_ymmm256_imm8,
                        VEX_Vroundpd_ymm_ymmm256_imm8,
                    ],
                );
                // Without raising the flag for an inexact result.
                self.one(code, ty, to, args[0], Some(8 | mode));
            }
            // These work on whole registers, and their operands in memory would have to be as large.
            Op::And | Op::Or | Op::Xor if !ty.is_vector() => return None,
            op => {
                let code = two(op, ty)?;
                // Either operand may come from memory.
                let swapped = matches!(op, Op::Add | Op::Mul | Op::Dot2 | Op::And | Op::Or | Op::Xor)
                    && self.ssa.as_const(args[0]).is_some();
                let (a, b) = if swapped { (args[1], args[0]) } else { (args[0], args[1]) };
                let a = self.reg(a);
                let b = self.operand(b);
                self.apply(code, ty, to, a, b);
            }
        }
        Some(())
    }

    /// An operand for instructions on whole registers: one in memory has to be as large.
    pub fn in_register(&mut self, ty: Type, operand: Arg) -> Arg {
        if ty.is_vector() {
            return operand;
        }
        let to = self.fresh(ty);
        let code = if ty.bytes() == 4 { VEX_Vmovss_xmm_m32 } else { VEX_Vmovsd_xmm_m64 };
        self.push(code, &[Arg::Def(to, Width::X), operand]);
        Arg::Use(to, Width::X)
    }

    /// An instruction of one operand, which scalars name twice.
    fn one(&mut self, code: Code, ty: Type, to: VReg, a: Value, mode: Option<usize>) {
        let a = Arg::Use(self.reg(a), part(ty));
        let mut args = vec![Arg::Def(to, part(ty)), a];
        if !ty.is_vector() {
            args.push(a);
        }
        args.extend(mode.map(byte));
        self.push(code, &args);
    }

    /// `a * b + c`: overwrites the sum, unless that comes from memory.
    fn fma(&mut self, ty: Type, args: &[Value], to: VReg) {
        let (mut a, mut b, c) = (args[0], args[1], args[2]);
        let in_memory = |lower: &Self, v: Value| lower.ssa.as_const(v).is_some_and(|bits| bits != 0);
        if in_memory(self, a) {
            std::mem::swap(&mut a, &mut b);
        }
        if in_memory(self, c) && !in_memory(self, b) {
            let code = float(
                ty,
                [
                    VEX_Vfmadd213ss_xmm_xmm_xmmm32,
                    VEX_Vfmadd213sd_xmm_xmm_xmmm64,
                    VEX_Vfmadd213ps_ymm_ymm_ymmm256,
                    VEX_Vfmadd213pd_ymm_ymm_ymmm256,
                ],
            );
            let (a, b) = (self.reg(a), self.reg(b));
            let c = self.operand(c);
            return self.push(code, &[Arg::Change(to, a, part(ty)), Arg::Use(b, part(ty)), c]);
        }
        let code = float(
            ty,
            [
                VEX_Vfmadd231ss_xmm_xmm_xmmm32,
                VEX_Vfmadd231sd_xmm_xmm_xmmm64,
                VEX_Vfmadd231ps_ymm_ymm_ymmm256,
                VEX_Vfmadd231pd_ymm_ymm_ymmm256,
            ],
        );
        let (sum, a) = (self.reg(c), self.reg(a));
        let b = self.operand(b);
        self.push(code, &[Arg::Change(to, sum, part(ty)), Arg::Use(a, part(ty)), b]);
    }

    /// An instruction on vectors.
    pub fn vector(&mut self, inst: &InstData, ty: Type, of: Type, to: VReg) -> Option<()> {
        let args = &inst.args;
        let whole = Arg::Def(to, self.whole);
        match inst.op {
            Op::Load { offset, bytes } => {
                let memory = self.address(args[0], offset);
                self.load_vector(memory, usize::from(bytes), ty, to);
            }
            Op::LoadWhere { offset } => {
                let memory = self.address(args[0], offset);
                let mask = self.reg(args[1]);
                self.load_where(memory, mask, to);
            }
            Op::Iota { step, group } => {
                let size = ty.element().bytes();
                let lane =
                    |i: i64| (i / i64::from(group)).wrapping_mul(step).to_le_bytes().into_iter().take(size);
                let bytes = (0..ty.lanes() as i64).flat_map(lane).collect();
                let memory = Arg::Mem(Mem::pool(self.pool.add(bytes)));
                self.push(VEX_Vmovups_ymm_ymmm256, &[whole, memory]);
            }
            Op::Splat => self.splat(args[0], of, to),
            Op::Lanes => self.lanes(args, ty, to)?,
            Op::Extract(lane) => self.extract(args[0], of, usize::from(lane), to),
            Op::Insert(lane) => {
                let (a, size) = (self.reg(args[0]), ty.element().bytes());
                let spread = self.fresh(ty);
                self.splat(args[1], ty.lane(), spread);
                self.merge(to, spread, a, size * usize::from(lane), size);
            }
            Op::Drop(lanes) => {
                let a = self.reg(args[0]);
                self.drop_bytes(to, a, usize::from(lanes) * ty.element().bytes());
            }
            Op::Merge { at, count } => {
                let [first, bytes] = [at, count].map(|lanes| usize::from(lanes) * ty.element().bytes());
                let b = self.reg(args[1]);
                if matches!(bytes, 16 | 32) && bytes < ty.bytes() && first.is_multiple_of(bytes) {
                    let part = self.low(args[0], ty.bytes() / bytes);
                    self.insert_part(to, b, part, first, bytes);
                } else {
                    debug_assert!(first == 0, "{at} and {count} are no part of a vector");
                    let a = self.reg(args[0]);
                    self.merge(to, a, b, 0, bytes);
                }
            }
            Op::Permute => {
                let numbers = Arg::Use(self.reg(args[1]), self.whole);
                let a = self.operand(args[0]);
                self.push(VEX_Vpermps_ymm_ymm_ymmm256, &[whole, numbers, a]);
            }
            Op::Evens(lanes) => self.evens(usize::from(lanes), args, ty, to)?,
            Op::Blend => self.choose(ty, to, args[0], args[1], args[2]),
            Op::Compare(condition) if self.is_wide() => {
                self.compare_wide(condition, of, [args[0], args[1]], to);
            }
            Op::Compare(condition) if of.is_float() => {
                let a = self.reg(args[0]);
                let b = self.operand(args[1]);
                self.compare(of, predicate(condition), to, a, b);
            }
            Op::Compare(condition) => self.compare_integers(condition, args, of, to)?,
            Op::Not => {
                let ones = self.constant(ty.as_int(), u64::MAX);
                let a = self.reg(args[0]);
                self.apply(VEX_Vpxor_ymm_ymm_ymmm256, ty, to, a, ones);
            }
            Op::AndNot => {
                // The instruction negates its first operand.
                let (a, b) = (args[0], self.reg(args[1]));
                let a = self.operand(a);
                self.apply(VEX_Vpandn_ymm_ymm_ymmm256, ty, to, b, a);
            }
            Op::Dot4 => {
                let sum = self.zero(ty);
                self.add_products(Op::Dot4, [args[0], args[1]], sum, to)?;
            }
            Op::Add if let Some((op, factors, sum)) = self.products(args) => {
                let sum = self.reg(sum);
                self.add_products(op, factors, sum, to)?;
            }
            Op::Neg | Op::Abs if !ty.is_float() => self.integers(inst, ty, to)?,
            Op::Mul | Op::Min | Op::Max | Op::MinUnsigned | Op::MaxUnsigned
                if ty.element() == Element::I64 =>
            {
                self.integers(inst, ty, to)?;
            }
            Op::Shl | Op::ShrSigned | Op::ShrUnsigned => self.integers(inst, ty, to)?,
            Op::SignExtend | Op::ZeroExtend => {
                let code = extend(inst.op == Op::SignExtend, of, ty)?;
                let low = self.low(args[0], ty.element().bytes() / of.element().bytes());
                self.push(code, &[whole, low]);
            }
            Op::Truncate => {
                let a = self.reg(args[0]);
                self.truncate(a, of.element().bytes(), ty.element().bytes(), to);
            }
            Op::FromHalf => {
                let low = self.low(args[0], 2);
                self.push(VEX_Vcvtph2ps_ymm_xmmm128, &[whole, low]);
            }
            Op::ToHalf => {
                let a = self.reg(args[0]);
                let half = Arg::Def(to, part_of(of.bytes() / 2));
                let args = [half, Arg::Use(a, self.whole), byte(TO_NEAREST)];
                self.push(VEX_Vcvtps2ph_xmmm128_ymm_imm8, &args);
            }
            Op::Promote => {
                let low = self.low(args[0], 2);
                self.push(VEX_Vcvtps2pd_ymm_xmmm128, &[whole, low]);
            }
            Op::Demote => {
                let a = self.reg(args[0]);
                let half = Arg::Def(to, part_of(of.bytes() / 2));
                self.push(VEX_Vcvtpd2ps_xmm_ymmm256, &[half, Arg::Use(a, self.whole)]);
            }
            Op::ToSigned if ty.element() == Element::I64 => self.longs_of_floats(args[0], of, ty, to),
            Op::FromSigned if of.element() == Element::I64 => self.floats_of_longs(args[0], of, ty, to),
            Op::ToSigned | Op::ToUnsigned => {
                self.words_of_floats(inst.op == Op::ToSigned, args[0], of, to)?
            }
            Op::FromSigned | Op::FromUnsigned => {
                self.floats_of_words(inst.op == Op::FromSigned, args[0], of, ty, to);
            }
            _ => return self.lanewise(inst, ty, to),
        }
        Some(())
    }

    /// The sum of products, if one of two addends is one and there is an instruction that adds it to the other.
    fn products(&self, addends: &[Value]) -> Option<(Op, [Value; 2], Value)> {
        let &[a, b] = addends else { return None };
        [(a, b), (b, a)].into_iter().filter(|_| self.has_products).find_map(|(sum, products)| {
            let (op, factors) = self.only_use(products)?;
            matches!(op, Op::Dot2 | Op::Dot4).then_some((op, factors, sum))
        })
    }

    /// Adds the products of pairs of halves, or of fours of bytes, to a sum.
    fn add_products(&mut self, op: Op, [a, b]: [Value; 2], sum: VReg, to: VReg) -> Option<()> {
        let code = match op {
            Op::Dot2 => EVEX_Vpdpwssd_zmm_k1z_zmm_zmmm512b32,
            Op::Dot4 => EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32,
            _ => return None,
        };
        let a = self.reg(a);
        let b = self.operand(b);
        self.push(code, &[Arg::Change(to, sum, self.whole), Arg::Use(a, self.whole), b]);
        Some(())
    }

    pub fn make_immediate(&mut self, code: Code, ty: Type, a: VReg, immediate: usize) -> VReg {
        let to = self.fresh(ty);
        self.push(code, &[Arg::Def(to, self.whole), Arg::Use(a, self.whole), byte(immediate)]);
        to
    }
}
