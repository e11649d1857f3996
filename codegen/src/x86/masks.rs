//! Comparisons, as masks of lanes or as flags, and what masks choose.

use iced_x86::Code::{self, *};
use regalloc2::VReg;

use super::inst::Arg;
use super::lower::{Lower, byte};
use super::table::float;
use super::vector::part;
use crate::ssa::{Condition, Type, Value};

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
        let spread = match (ty.is_vector(), ty.element().bytes()) {
            (true, 1) => EVEX_Vpmovm2b_zmm_kr,
            (true, 2) => EVEX_Vpmovm2w_zmm_kr,
            (true, 4) => EVEX_Vpmovm2d_zmm_kr,
            (true, _) => EVEX_Vpmovm2q_zmm_kr,
            (false, 8) => EVEX_Vpmovm2q_xmm_kr,
            (false, _) => EVEX_Vpmovm2d_xmm_kr,
        };
        self.push(spread, &[result, Arg::Mask]);
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
