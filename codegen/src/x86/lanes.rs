//! Moving lanes: spreading, gathering and taking out scalars, and merging and packing vectors.

use iced_x86::Code::*;
use regalloc2::VReg;

use super::inst::{Arg, Base, Mem, Width};
use super::lower::{Lower, byte};
use super::vector::part_of;
use crate::ssa::{Element, Type, Value};

impl Lower<'_> {
    /// A scalar in every lane.
    pub fn splat(&mut self, value: Value, of: Type, to: VReg) {
        let (from_register, from_memory) = match of.element() {
            Element::F32 => (VEX_Vbroadcastss_ymm_xmm, VEX_Vbroadcastss_ymm_m32),
            Element::F64 => (VEX_Vbroadcastsd_ymm_xmm, VEX_Vbroadcastsd_ymm_m64),
            Element::I8 => (VEX_Vpbroadcastb_ymm_xmmm8, VEX_Vpbroadcastb_ymm_xmmm8),
            Element::I16 => (VEX_Vpbroadcastw_ymm_xmmm16, VEX_Vpbroadcastw_ymm_xmmm16),
            Element::I32 => (VEX_Vpbroadcastd_ymm_xmmm32, VEX_Vpbroadcastd_ymm_xmmm32),
            Element::I64 => (VEX_Vpbroadcastq_ymm_xmmm64, VEX_Vpbroadcastq_ymm_xmmm64),
        };
        if let Some(memory) = self.folded(value, of.bytes()) {
            return self.push(from_memory, &[Arg::Def(to, self.whole), Arg::Mem(memory)]);
        }
        let from = self.in_vector(value, of);
        self.push(from_register, &[Arg::Def(to, self.whole), Arg::Use(from, Width::X)]);
    }

    /// A scalar in the low lane of a vector register.
    fn in_vector(&mut self, value: Value, of: Type) -> VReg {
        let from = self.reg(value);
        if of.is_float() {
            return from;
        }
        let to = self.fresh(Type::F32);
        let (code, width) = match of.bytes() {
            8 => (VEX_Vmovq_xmm_rm64, Width::B8),
            _ => (VEX_Vmovd_xmm_rm32, Width::B4),
        };
        self.push(code, &[Arg::Def(to, Width::X), Arg::Use(from, width)]);
        to
    }

    /// Scalars as the low lanes.
    pub fn lanes(&mut self, args: &[Value], ty: Type, to: VReg) -> Option<()> {
        let parts: Vec<&[Value]> = args.chunks(16 / ty.element().bytes()).collect();
        let mut so_far = if parts.len() == 1 { to } else { self.fresh(ty) };
        self.low_part(parts[0], ty, so_far)?;
        for (at, part) in parts.iter().enumerate().skip(1) {
            let next = if at + 1 == parts.len() { to } else { self.fresh(ty) };
            let low = self.fresh(ty);
            self.low_part(part, ty, low)?;
            self.insert_part(next, so_far, Arg::Use(low, Width::X), 16 * at, 16);
            so_far = next;
        }
        Some(())
    }

    /// Scalars as the low lanes of 128 bits.
    fn low_part(&mut self, args: &[Value], ty: Type, to: VReg) -> Option<()> {
        let lane = ty.lane();
        let mut so_far = self.in_vector(args[0], lane);
        for (at, &arg) in args.iter().enumerate().skip(1) {
            let next = if at + 1 == args.len() { to } else { self.fresh(ty) };
            let general = |width| move |lower: &mut Self| Arg::Use(lower.reg(arg), width);
            let (code, operand, at) = match lane.element() {
                Element::F32 => {
                    let operand = self.operand(arg);
                    (VEX_Vinsertps_xmm_xmm_xmmm32_imm8, operand, at << 4)
                }
                Element::F64 => {
                    let operand = Arg::Use(self.reg(arg), Width::X);
                    let args = [Arg::Def(next, Width::X), Arg::Use(so_far, Width::X), operand];
                    self.push(VEX_Vunpcklpd_xmm_xmm_xmmm128, &args);
                    so_far = next;
                    continue;
                }
                Element::I8 => (VEX_Vpinsrb_xmm_xmm_r32m8_imm8, general(Width::B4)(self), at),
                Element::I16 => (VEX_Vpinsrw_xmm_xmm_r32m16_imm8, general(Width::B4)(self), at),
                Element::I32 => (VEX_Vpinsrd_xmm_xmm_rm32_imm8, general(Width::B4)(self), at),
                Element::I64 => (VEX_Vpinsrq_xmm_xmm_rm64_imm8, general(Width::B8)(self), at),
            };
            self.push(code, &[Arg::Def(next, Width::X), Arg::Use(so_far, Width::X), operand, byte(at)]);
            so_far = next;
        }
        if args.len() == 1 {
            self.copy(lane, to, so_far);
        }
        Some(())
    }

    /// One lane as a scalar.
    pub fn extract(&mut self, value: Value, of: Type, lane: usize, to: VReg) {
        let size = of.element().bytes();
        let per_part = 16 / size;
        let mut from = self.reg(value);
        if lane >= per_part {
            from = self.part(from, lane / per_part);
        }
        let lane = lane % per_part;
        let from = Arg::Use(from, Width::X);
        let (code, width) = match of.element() {
            Element::F32 | Element::F64 if lane == 0 => {
                return self.push(VEX_Vmovaps_xmm_xmmm128, &[Arg::Def(to, Width::X), from]);
            }
            Element::F32 => {
                let args = [Arg::Def(to, Width::X), from, byte(lane)];
                return self.push(VEX_Vpermilps_xmm_xmmm128_imm8, &args);
            }
            Element::F64 => {
                return self.push(VEX_Vpermilpd_xmm_xmmm128_imm8, &[Arg::Def(to, Width::X), from, byte(1)]);
            }
            Element::I8 => (VEX_Vpextrb_r32m8_xmm_imm8, Width::B4),
            Element::I16 => (VEX_Vpextrw_r32_xmm_imm8, Width::B4),
            Element::I32 => (VEX_Vpextrd_rm32_xmm_imm8, Width::B4),
            Element::I64 => (VEX_Vpextrq_rm64_xmm_imm8, Width::B8),
        };
        self.push(code, &[Arg::Def(to, width), from, byte(lane)]);
    }

    /// The 128 bits of this number, from the low ones on.
    fn part(&mut self, from: VReg, at: usize) -> VReg {
        let to = self.fresh(Type::F32);
        let code = match self.is_wide() {
            true => EVEX_Vextractf32x4_xmmm128_k1z_zmm_imm8,
            false => VEX_Vextractf128_xmmm128_ymm_imm8,
        };
        self.push(code, &[Arg::Def(to, Width::X), Arg::Use(from, self.whole), byte(at)]);
        to
    }

    /// A vector with 16 or 32 of its bytes, that begin at a multiple of that, from another.
    pub fn insert_part(&mut self, to: VReg, a: VReg, part: Arg, first: usize, bytes: usize) {
        let code = match (self.is_wide(), bytes) {
            (true, 32) => EVEX_Vinsertf64x4_zmm_k1z_zmm_ymmm256_imm8,
            (true, _) => EVEX_Vinsertf32x4_zmm_k1z_zmm_xmmm128_imm8,
            (false, _) => VEX_Vinsertf128_ymm_ymm_xmmm128_imm8,
        };
        let args = [Arg::Def(to, self.whole), Arg::Use(a, self.whole), part, byte(first / bytes)];
        self.push(code, &args);
    }

    /// A vector moved down by some bytes.
    pub fn drop_bytes(&mut self, to: VReg, a: VReg, bytes: usize) {
        let whole = self.whole;
        if self.is_wide() {
            // Around by words, then by bytes together with what is 16 bytes above.
            let around = |lower: &mut Self, to: VReg, a: VReg, words: usize| {
                let args = [Arg::Def(to, whole), Arg::Use(a, whole), Arg::Use(a, whole), byte(words)];
                lower.push(EVEX_Valignd_zmm_k1z_zmm_zmmm512b32_imm8, &args);
            };
            if bytes.is_multiple_of(4) {
                return around(self, to, a, bytes / 4);
            }
            let [low, high] = [self.fresh(Type::F32), self.fresh(Type::F32)];
            around(self, low, a, bytes / 4);
            around(self, high, low, 4);
            let args = [Arg::Def(to, whole), Arg::Use(high, whole), Arg::Use(low, whole), byte(bytes % 4)];
            return self.push(VEX_Vpalignr_ymm_ymm_ymmm256_imm8, &args);
        }
        let high = self.part(a, 1);
        match bytes {
            16 => self.copy(Type::F32, to, high),
            17.. => {
                let args = [Arg::Def(to, Width::X), Arg::Use(high, Width::X), byte(bytes - 16)];
                self.push(VEX_Vpsrldq_xmm_xmm_imm8, &args);
            }
            _ => {
                let args = [Arg::Def(to, whole), Arg::Use(high, whole), Arg::Use(a, whole), byte(bytes)];
                self.push(VEX_Vpalignr_ymm_ymm_ymmm256_imm8, &args);
            }
        }
    }

    /// Some bytes of `a`, the others of `b`.
    pub fn merge(&mut self, to: VReg, a: VReg, b: VReg, first: usize, bytes: usize) {
        let whole = self.whole;
        if !self.is_wide() && first.is_multiple_of(4) && bytes.is_multiple_of(4) {
            let mask = ((1usize << (bytes / 4)) - 1) << (first / 4);
            let args = [Arg::Def(to, whole), Arg::Use(b, whole), Arg::Use(a, whole), byte(mask)];
            return self.push(VEX_Vblendps_ymm_ymm_ymmm256_imm8, &args);
        }
        let size = if self.is_wide() { 64 } else { 32 };
        let mask = (0..size).map(|at| if (first..first + bytes).contains(&at) { 0xff } else { 0 }).collect();
        let memory = Mem { base: Base::Pool(self.pool.add(mask)), index: None, offset: 0 };
        let ty = Type::vector(Element::I8, size);
        let mask = self.fresh(ty);
        self.push(VEX_Vmovups_ymm_ymmm256, &[Arg::Def(mask, whole), Arg::Mem(memory)]);
        self.blend(ty, to, mask, a, b);
    }

    /// Every second lane of a row that begins with so many lanes of one vector and ends with as many of another.
    pub fn evens(&mut self, lanes: usize, args: &[Value], ty: Type, to: VReg) -> Option<()> {
        let whole = self.whole;
        let a = self.reg(args[0]);
        if !self.is_wide() {
            let last = lanes == 4;
            let b = Arg::Use(self.reg(args[1]), whole);
            // In each half the first and the third of one, the second and the fourth of the other; then the halves' pairs.
            let order = byte(0b11_01_10_00);
            let pairs = if last { to } else { self.fresh(ty) };
            let args = [Arg::Def(pairs, whole), Arg::Use(a, whole), b, order];
            self.push(VEX_Vshufps_ymm_ymm_ymmm256_imm8, &args);
            if !last {
                let args = [Arg::Def(to, whole), Arg::Use(pairs, whole), order];
                self.push(VEX_Vpermpd_ymm_ymmm256_imm8, &args);
            }
            return (last || lanes == 8).then_some(());
        }
        // Lanes of the second vector are numbered behind those of the first.
        let behind = ty.lanes() + 1 - lanes;
        let number = |lane: usize| match 2 * lane {
            at if at < lanes => at,
            at => (at + behind) % (2 * ty.lanes()),
        };
        let numbers = (0..ty.lanes()).flat_map(|lane| (number(lane) as u32).to_le_bytes()).collect();
        let memory = Arg::Mem(Mem::pool(self.pool.add(numbers)));
        let numbers = self.fresh(ty);
        self.push(VEX_Vmovups_ymm_ymmm256, &[Arg::Def(numbers, whole), memory]);
        let b = self.operand(args[1]);
        let args = [Arg::Change(to, a, whole), Arg::Use(numbers, whole), b];
        self.push(EVEX_Vpermt2ps_zmm_k1z_zmm_zmmm512b32, &args);
        Some(())
    }

    /// The low parts of lanes, packed to the low bytes of a register.
    pub fn truncate(&mut self, a: VReg, from: usize, size: usize, to: VReg) {
        if self.is_wide() {
            let code = match (from, size) {
                (2, _) => EVEX_Vpmovwb_ymmm256_k1z_zmm,
                (4, 1) => EVEX_Vpmovdb_xmmm128_k1z_zmm,
                (4, _) => EVEX_Vpmovdw_ymmm256_k1z_zmm,
                (_, 1) => EVEX_Vpmovqb_xmmm64_k1z_zmm,
                (_, 2) => EVEX_Vpmovqw_xmmm128_k1z_zmm,
                _ => EVEX_Vpmovqd_ymmm256_k1z_zmm,
            };
            let args = [Arg::Def(to, part_of(64 * size / from)), Arg::Use(a, self.whole)];
            return self.push(code, &args);
        }
        let bytes = Type::vector(Element::I8, 32);
        let packed = self.fresh(bytes);
        let halves: Vec<u8> = (0..16).filter(|&at| usize::from(at) % from < from / 2).collect();
        let order: Vec<u8> = halves.iter().chain(&halves).copied().cycle().take(32).collect();
        let order = Arg::Mem(Mem::pool(self.pool.add(order)));
        self.apply(VEX_Vpshufb_ymm_ymm_ymmm256, bytes, packed, a, order);
        let last = from / 2 == size;
        let half = if last { to } else { self.fresh(bytes) };
        // The first and the third of four.
        let args = [Arg::Def(half, self.whole), Arg::Use(packed, self.whole), byte(0b1000)];
        self.push(VEX_Vpermq_ymm_ymmm256_imm8, &args);
        if !last {
            self.truncate(half, from / 2, size, to);
        }
    }
}
