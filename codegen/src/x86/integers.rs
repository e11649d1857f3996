//! Operations on vectors of integers that take more than one instruction.

use iced_x86::Code::*;
use regalloc2::VReg;

use super::inst::Arg;
use super::lower::{Lower, byte};
use super::table::{integer, shift, two};
use crate::ssa::{Condition, Element, InstData, Op, Type, Value};

impl Lower<'_> {
    /// A negation, an absolute value, a product or extreme of 64 bits, or a shift.
    pub fn integers(&mut self, inst: &InstData, ty: Type, to: VReg) -> Option<()> {
        let args = &inst.args;
        let whole = self.whole;
        let y = |v: VReg| Arg::Use(v, whole);
        match inst.op {
            Op::Neg if !ty.is_float() => {
                let zero = self.zero(ty);
                let a = self.operand(args[0]);
                self.apply(two(Op::Sub, ty)?, ty, to, zero, a);
            }
            Op::Abs if !ty.is_float() => {
                let codes = [VEX_Vpabsb_ymm_ymmm256, VEX_Vpabsw_ymm_ymmm256, VEX_Vpabsd_ymm_ymmm256, INVALID];
                let a = self.reg(args[0]);
                match integer(ty, codes) {
                    Some(code) => self.push(code, &[Arg::Def(to, whole), y(a)]),
                    None => {
                        // With m all ones where a < 0: (a ^ m) - m.
                        let zero = self.zero(ty);
                        let mask = self.fresh(ty);
                        self.push_comparison(VEX_Vpcmpgtq_ymm_ymm_ymmm256, ty, mask, &[y(zero), y(a)]);
                        let flipped = self.make(VEX_Vpxor_ymm_ymm_ymmm256, ty, a, y(mask));
                        self.apply(VEX_Vpsubq_ymm_ymm_ymmm256, ty, to, flipped, y(mask));
                    }
                }
            }
            Op::Mul | Op::Min | Op::Max | Op::MinUnsigned | Op::MaxUnsigned
                if ty.element() == Element::I64 && self.is_wide() =>
            {
                let code = match inst.op {
                    Op::Mul => EVEX_Vpmullq_zmm_k1z_zmm_zmmm512b64,
                    Op::Min => EVEX_Vpminsq_zmm_k1z_zmm_zmmm512b64,
                    Op::Max => EVEX_Vpmaxsq_zmm_k1z_zmm_zmmm512b64,
                    Op::MinUnsigned => EVEX_Vpminuq_zmm_k1z_zmm_zmmm512b64,
                    _ => EVEX_Vpmaxuq_zmm_k1z_zmm_zmmm512b64,
                };
                let (a, b) = (self.reg(args[0]), self.operand(args[1]));
                self.apply(code, ty, to, a, b);
            }
            Op::Mul if ty.element() == Element::I64 => {
                // a * b = low * low + (low * high + high * low) << 32
                let (a, b) = (self.reg(args[0]), self.reg(args[1]));
                let high =
                    |lower: &mut Self, v: VReg| lower.make_immediate(VEX_Vpsrlq_ymm_ymm_imm8, ty, v, 32);
                let (a_high, b_high) = (high(self, a), high(self, b));
                let cross = self.make(VEX_Vpmuludq_ymm_ymm_ymmm256, ty, a_high, y(b));
                let other = self.make(VEX_Vpmuludq_ymm_ymm_ymmm256, ty, a, y(b_high));
                let sum = self.make(VEX_Vpaddq_ymm_ymm_ymmm256, ty, cross, y(other));
                let shifted = self.make_immediate(VEX_Vpsllq_ymm_ymm_imm8, ty, sum, 32);
                let low = self.make(VEX_Vpmuludq_ymm_ymm_ymmm256, ty, a, y(b));
                self.apply(VEX_Vpaddq_ymm_ymm_ymmm256, ty, to, low, y(shifted));
            }
            Op::Shl | Op::ShrSigned | Op::ShrUnsigned => {
                let count = self.ssa.as_const(args[1])? as usize;
                let a = self.reg(args[0]);
                self.shift(inst.op, ty, to, a, count)?;
            }
            _ => return None,
        }
        Some(())
    }

    fn shift(&mut self, op: Op, ty: Type, to: VReg, a: VReg, count: usize) -> Option<()> {
        let whole = self.whole;
        let y = |v: VReg| Arg::Use(v, whole);
        if let Some(code) = shift(op, ty) {
            self.push(code, &[Arg::Def(to, whole), y(a), byte(count)]);
            return Some(());
        }
        if op == Op::ShrSigned {
            // With m what becomes of the sign bit: ((a >> count) ^ m) - m, shifting in zeros.
            let sign = (1u64 << (ty.lane_bits() - 1)) >> count;
            let sign = self.constant(ty, sign);
            let shifted = self.fresh(ty);
            self.shift(Op::ShrUnsigned, ty, shifted, a, count)?;
            let flipped = self.make(VEX_Vpxor_ymm_ymm_ymmm256, ty, shifted, sign);
            self.apply(two(Op::Sub, ty)?, ty, to, flipped, sign);
            return Some(());
        }
        // Bytes are shifted in pairs; what crosses over is cleared.
        let words = ty.with_element(Element::I16);
        let shifted = self.fresh(ty);
        self.shift(op, words, shifted, a, count)?;
        let kept = if op == Op::Shl { 0xffu64 << count } else { 0xff >> count };
        let kept = self.constant(ty, kept & 0xff);
        self.apply(VEX_Vpand_ymm_ymm_ymmm256, ty, to, shifted, kept);
        Some(())
    }

    pub fn compare_integers(
        &mut self,
        condition: Condition,
        args: &[Value],
        of: Type,
        to: VReg,
    ) -> Option<()> {
        let (a, b) = (args[0], args[1]);
        // Each is one of two comparisons, or the opposite of one.
        let (op, a, b, opposite) = match condition {
            Condition::Eq => (Condition::Eq, a, b, false),
            Condition::Ne => (Condition::Eq, a, b, true),
            Condition::Gt => (Condition::Gt, a, b, false),
            Condition::Le => (Condition::Gt, a, b, true),
            Condition::Lt => (Condition::Gt, b, a, false),
            Condition::Ge => (Condition::Gt, b, a, true),
            unsigned => {
                // a >= b where the greater is a, a <= b where the lesser is.
                let op = match unsigned {
                    Condition::NotBelow | Condition::Below => Op::MaxUnsigned,
                    _ => Op::MinUnsigned,
                };
                let (a, b) = (self.reg(a), self.reg(b));
                let extreme = self.combine(op, of, a, Arg::Use(b, self.whole))?;
                let opposite = matches!(unsigned, Condition::Below | Condition::Above);
                return self.equal(Condition::Eq, of, to, extreme, Arg::Use(a, self.whole), opposite);
            }
        };
        let a = self.reg(a);
        let b = self.operand(b);
        self.equal(op, of, to, a, b, opposite)
    }

    fn equal(&mut self, how: Condition, of: Type, to: VReg, a: VReg, b: Arg, opposite: bool) -> Option<()> {
        let code = two(Op::Compare(how), of)?;
        let args = [Arg::Use(a, self.whole), b];
        if !opposite {
            self.push_comparison(code, of, to, &args);
            return Some(());
        }
        let mask = self.fresh(of);
        self.push_comparison(code, of, mask, &args);
        let ones = self.constant(of, u64::MAX);
        self.apply(VEX_Vpxor_ymm_ymm_ymmm256, of, to, mask, ones);
        Some(())
    }
}
