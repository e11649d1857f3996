//! Comparisons, as masks of lanes or as flags, and what masks choose.

use iced_x86::Code::{self, *};
use regalloc2::VReg;

use super::inst::Arg;
use super::lower::{Lower, byte};
use super::table::float;
use super::vector::part;
use crate::ssa::{Condition, Op, Type, Value};

/// Which comparison an instruction on floats makes: quiet, and false for NaN except `Ne`.
pub fn predicate(condition: Condition) -> usize {
    match condition {
        Condition::Eq => 0x00,
        Condition::Ne => 0x04,
        Condition::Lt | Condition::Below => 0x11,
        Condition::Le | Condition::NotAbove => 0x12,
        Condition::Ge | Condition::NotBelow => 0x1d,
        Condition::Gt | Condition::Above => 0x1e,
    }
}

/// Which comparison an instruction on integers makes, and whether they are unsigned.
fn integer_predicate(condition: Condition) -> (usize, bool) {
    match condition {
        Condition::Eq => (0, false),
        Condition::Lt => (1, false),
        Condition::Le => (2, false),
        Condition::Ne => (4, false),
        Condition::Ge => (5, false),
        Condition::Gt => (6, false),
        Condition::Below => (1, true),
        Condition::NotAbove => (2, true),
        Condition::NotBelow => (5, true),
        Condition::Above => (6, true),
    }
}

/// Lanes are unordered where one of two floats is NaN, and ordered elsewhere.
pub const UNORDERED: usize = 0x03;
pub const ORDERED: usize = 0x07;

/// The truth table of `a ? b : c`, bit by bit.
const CHOOSE: usize = 0xca;

/// The truth table of what is always true.
const ONES: usize = 0xff;

/// Which of two floats `vrange` gives: the larger, with its sign.
const MAXIMUM: usize = 0b0101;

/// The comparison of floats of a type.
fn comparison(ty: Type) -> Code {
    let codes = [
        VEX_Vcmpss_xmm_xmm_xmmm32_imm8,
        VEX_Vcmpsd_xmm_xmm_xmmm64_imm8,
        VEX_Vcmpps_ymm_ymm_ymmm256_imm8,
        VEX_Vcmppd_ymm_ymm_ymmm256_imm8,
    ];
    float(ty, codes)
}

/// The instruction for lanes of a type's size.
fn by_lane(ty: Type, codes: [Code; 4]) -> Code {
    codes[ty.element().bytes().trailing_zeros() as usize]
}

impl Lower<'_> {
    /// A comparison of floats as a mask in a new register; a scalar's is in its low bits.
    pub fn mask(&mut self, ty: Type, how: usize, a: VReg, b: Arg) -> VReg {
        let to = self.fresh(ty);
        self.compare(ty, how, to, a, b);
        to
    }

    /// The same in a given one.
    pub fn compare(&mut self, ty: Type, how: usize, to: VReg, a: VReg, b: Arg) {
        self.push_comparison(comparison(ty), ty, to, &[Arg::Use(a, part(ty)), b, byte(how)]);
    }

    /// A comparison as a mask of lanes, or in the low bits for a scalar.
    pub fn push_comparison(&mut self, code: Code, ty: Type, to: VReg, args: &[Arg]) {
        let result = Arg::Def(to, part(ty));
        if !self.is_wide() {
            return self.push(code, &[&[result], args].concat());
        }
        self.push(code, &[&[Arg::Mask], args].concat());
        self.spread(ty, to);
    }

    /// A comparison of vectors in the mask register, in AVX-512.
    fn compare_lanes(&mut self, condition: Condition, of: Type, args: [Value; 2]) {
        let (code, how) = match (of.is_float(), integer_predicate(condition)) {
            (true, _) => (comparison(of), predicate(condition)),
            (false, (how, false)) => {
                let codes = [
                    EVEX_Vpcmpb_kr_k1_zmm_zmmm512_imm8,
                    EVEX_Vpcmpw_kr_k1_zmm_zmmm512_imm8,
                    EVEX_Vpcmpd_kr_k1_zmm_zmmm512b32_imm8,
                    EVEX_Vpcmpq_kr_k1_zmm_zmmm512b64_imm8,
                ];
                (by_lane(of, codes), how)
            }
            (false, (how, true)) => {
                let codes = [
                    EVEX_Vpcmpub_kr_k1_zmm_zmmm512_imm8,
                    EVEX_Vpcmpuw_kr_k1_zmm_zmmm512_imm8,
                    EVEX_Vpcmpud_kr_k1_zmm_zmmm512b32_imm8,
                    EVEX_Vpcmpuq_kr_k1_zmm_zmmm512b64_imm8,
                ];
                (by_lane(of, codes), how)
            }
        };
        let a = Arg::Use(self.reg(args[0]), self.whole);
        let b = self.operand(args[1]);
        self.push(code, &[Arg::Mask, a, b, byte(how)]);
    }

    /// A comparison of vectors as a mask of lanes, in AVX-512.
    pub fn compare_wide(&mut self, condition: Condition, of: Type, args: [Value; 2], to: VReg) {
        self.compare_lanes(condition, of, args);
        self.spread(of, to);
    }

    /// The comparison that gives a mask, if only the instruction being lowered asks for it, which can then do without the
    /// mask's lanes.
    fn compared(&self, mask: Value) -> Option<(Condition, Type, [Value; 2])> {
        let (Op::Compare(condition), operands) = self.only_use(mask)? else { return None };
        (self.is_wide() && self.is_here(mask)).then(|| (condition, self.ssa.ty(operands[0]), operands))
    }

    /// `b` where a mask has ones, `c` where it has zeros.
    pub fn choose(&mut self, ty: Type, to: VReg, mask: Value, b: Value, c: Value) {
        let Some((condition, of, operands)) = self.compared(mask) else {
            let (mask, b, c) = (self.reg(mask), self.reg(b), self.reg(c));
            return self.blend(ty, to, mask, b, c);
        };
        let codes = [
            EVEX_Vpblendmb_zmm_k1z_zmm_zmmm512,
            EVEX_Vpblendmw_zmm_k1z_zmm_zmmm512,
            EVEX_Vpblendmd_zmm_k1z_zmm_zmmm512b32,
            EVEX_Vpblendmq_zmm_k1z_zmm_zmmm512b64,
        ];
        let (with, without) = (self.operand(b), Arg::Use(self.reg(c), self.whole));
        self.compare_lanes(condition, of, operands);
        self.push(by_lane(of, codes), &[Arg::Def(to, self.whole), without, with, Arg::Where]);
    }

    /// The lanes of the mask register as a mask in a register.
    fn spread(&mut self, ty: Type, to: VReg) {
        let spread = match (ty.is_vector(), ty.element().bytes()) {
            (true, 1) => EVEX_Vpmovm2b_zmm_kr,
            (true, 2) => EVEX_Vpmovm2w_zmm_kr,
            (true, 4) => EVEX_Vpmovm2d_zmm_kr,
            (true, _) => EVEX_Vpmovm2q_zmm_kr,
            (false, 8) => EVEX_Vpmovm2q_xmm_kr,
            (false, _) => EVEX_Vpmovm2d_xmm_kr,
        };
        self.push(spread, &[Arg::Def(to, part(ty)), Arg::Mask]);
    }

    /// The larger of two floats, +0 above -0, in AVX-512; all ones where one of them is NaN.
    pub fn maximum(&mut self, ty: Type, to: VReg, a: VReg, b: VReg) {
        let width = part(ty);
        let larger = self.fresh(ty);
        let [a, b] = [a, b].map(|v| Arg::Use(v, width));
        let code = float(
            ty,
            [
                EVEX_Vrangess_xmm_k1z_xmm_xmmm32_imm8_sae,
                EVEX_Vrangesd_xmm_k1z_xmm_xmmm64_imm8_sae,
                EVEX_Vrangeps_zmm_k1z_zmm_zmmm512b32_imm8_sae,
                EVEX_Vrangepd_zmm_k1z_zmm_zmmm512b64_imm8_sae,
            ],
        );
        self.push(code, &[Arg::Def(larger, width), a, b, byte(MAXIMUM)]);
        self.push(comparison(ty), &[Arg::Mask, a, b, byte(UNORDERED)]);
        let code = match (ty.is_vector(), ty.element().bytes()) {
            (true, 4) => EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8,
            (true, _) => EVEX_Vpternlogq_zmm_k1z_zmm_zmmm512b64_imm8,
            (false, 4) => EVEX_Vpternlogd_xmm_k1z_xmm_xmmm128b32_imm8,
            (false, _) => EVEX_Vpternlogq_xmm_k1z_xmm_xmmm128b64_imm8,
        };
        let same = Arg::Use(larger, width);
        self.push(code, &[Arg::Change(to, larger, width), same, same, byte(ONES), Arg::Where]);
    }

    /// `b` where a mask has ones, `c` where it has zeros, in lanes of so many bytes.
    pub fn blend(&mut self, ty: Type, to: VReg, mask: VReg, b: VReg, c: VReg) {
        let width = part(ty);
        let [with, without] = [b, c].map(|v| Arg::Use(v, width));
        if self.is_wide() {
            let code = match ty.is_vector() {
                true => EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8,
                false => EVEX_Vpternlogd_xmm_k1z_xmm_xmmm128b32_imm8,
            };
            return self.push(code, &[Arg::Change(to, mask, width), with, without, byte(CHOOSE)]);
        }
        let code = match (ty.is_vector(), ty.element().bytes()) {
            (false, _) => VEX_Vblendvps_xmm_xmm_xmmm128_xmm,
            (true, 4) => VEX_Vblendvps_ymm_ymm_ymmm256_ymm,
            (true, 8) => VEX_Vblendvpd_ymm_ymm_ymmm256_ymm,
            (true, _) => VEX_Vpblendvb_ymm_ymm_ymmm256_ymm,
        };
        self.push(code, &[Arg::Def(to, width), without, with, Arg::Use(mask, width)]);
    }

    /// A comparison of scalar floats as a mask in the low bits of a vector register.
    pub fn float_mask(&mut self, condition: Condition, a: Value, b: Value) -> VReg {
        let ty = self.ssa.ty(a);
        let a = self.reg(a);
        let b = self.operand(b);
        self.mask(ty, predicate(condition), a, b)
    }

    /// Compares scalar floats as flags.
    pub fn float_flags(&mut self, a: Value, b: Value) {
        let ty = self.ssa.ty(a);
        let code = if ty.bytes() == 4 { VEX_Vucomiss_xmm_xmmm32 } else { VEX_Vucomisd_xmm_xmmm64 };
        let a = self.low(a, 1);
        let b = self.operand(b);
        self.push(code, &[a, b]);
    }
}
