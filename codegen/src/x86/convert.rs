//! Conversions between floats and integers.

use iced_x86::Code::*;
use regalloc2::VReg;

use super::inst::{Arg, Width};
use super::lower::{Lower, byte};
use super::masks::{ORDERED, predicate};
use super::vector::part_of;
use crate::ssa::{Condition, Element, Op, Type, Value};

/// What is known of floats.
struct Limits {
    /// None is NaN.
    numbers: bool,
    /// All, or all but NaN, are below 2^31.
    above: bool,
}

impl Lower<'_> {
    /// Scalar floats to integers, saturating, NaN to 0.
    pub fn integer_of_float(&mut self, signed: bool, value: Value, of: Type, ty: Type, to: VReg) {
        let f64s = Type::scalar(Element::F64);
        // Every f32 is an f64.
        let mut x = self.reg(value);
        if of.bytes() == 4 {
            let wide = self.fresh(f64s);
            let from = Arg::Use(x, Width::X);
            self.push(VEX_Vcvtss2sd_xmm_xmm_xmmm32, &[Arg::Def(wide, Width::X), from, from]);
            x = wide;
        }
        let bits = |x: f64| x.to_bits();
        let ordered = self.mask(f64s, ORDERED, x, Arg::Use(x, Width::X));
        let x = self.make(VEX_Vandpd_xmm_xmm_xmmm128, f64s, x, Arg::Use(ordered, Width::X));
        let convert = |lower: &mut Self, x: VReg, to: VReg| {
            lower.push(VEX_Vcvttsd2si_r64_xmmm64, &[Arg::Def(to, Width::B8), Arg::Use(x, Width::X)]);
        };
        if ty.bytes() == 4 {
            let (low, high) =
                if signed { (i32::MIN.into(), i32::MAX.into()) } else { (0.0, u32::MAX.into()) };
            let (low, high) = (self.constant(f64s, bits(low)), self.constant(f64s, bits(high)));
            let x = self.make(VEX_Vmaxsd_xmm_xmm_xmmm64, f64s, x, low);
            let x = self.make(VEX_Vminsd_xmm_xmm_xmmm64, f64s, x, high);
            return convert(self, x, to);
        }
        let two_63 = self.constant(f64s, bits(9_223_372_036_854_775_808.0));
        let large = self.mask(f64s, predicate(Condition::Ge), x, two_63);
        if signed {
            // Out of range, the instruction gives the least integer; above, that is one more than the greatest.
            let low = self.fresh(Type::I64);
            convert(self, x, low);
            let large = self.general(large);
            return self.xor64(to, low, large);
        }
        let zero = self.zero(f64s);
        let x = self.make(VEX_Vmaxsd_xmm_xmm_xmmm64, f64s, x, Arg::Use(zero, Width::X));
        // Above 2^63, the rest is converted, and the top bit set.
        let two_63 = self.in_register(f64s, two_63);
        let excess = self.make(VEX_Vandpd_xmm_xmm_xmmm128, f64s, large, two_63);
        let rest = self.make(VEX_Vsubsd_xmm_xmm_xmmm64, f64s, x, Arg::Use(excess, Width::X));
        let low = self.fresh(Type::I64);
        convert(self, rest, low);
        let top = self.general(large);
        let top = self.shift_left_63(top);
        let joined = self.fresh(Type::I64);
        self.xor64(joined, low, top);
        let two_64 = self.constant(f64s, bits(18_446_744_073_709_551_616.0));
        let past = self.mask(f64s, predicate(Condition::Ge), x, two_64);
        let past = self.general(past);
        self.or64(to, joined, past);
    }

    /// A vector register's low 64 bits.
    fn general(&mut self, from: VReg) -> VReg {
        let to = self.fresh(Type::I64);
        self.push(VEX_Vmovq_rm64_xmm, &[Arg::Def(to, Width::B8), Arg::Use(from, Width::X)]);
        to
    }

    /// Scalar integers to floats.
    pub fn float_of_integer(&mut self, signed: bool, value: Value, of: Type, ty: Type, to: VReg) {
        let code = match ty.bytes() {
            4 => VEX_Vcvtsi2ss_xmm_xmm_rm64,
            _ => VEX_Vcvtsi2sd_xmm_xmm_rm64,
        };
        let wide = self.extended(signed, value, of);
        let zero = self.zero(ty);
        let convert = |lower: &mut Self, from: VReg, to: VReg| {
            let args = [Arg::Def(to, Width::X), Arg::Use(zero, Width::X), Arg::Use(from, Width::B8)];
            lower.push(code, &args);
        };
        if signed || of.bytes() < 8 {
            return convert(self, wide, to);
        }
        if self.is_wide() {
            let code = match ty.bytes() {
                4 => EVEX_Vcvtusi2ss_xmm_xmm_rm64_er,
                _ => EVEX_Vcvtusi2sd_xmm_xmm_rm64_er,
            };
            let args = [Arg::Def(to, Width::X), Arg::Use(zero, Width::X), Arg::Use(wide, Width::B8)];
            return self.push(code, &args);
        }
        // Half of it, with the last bit or'ed in so that it rounds as the whole would, and twice that.
        let half = self.half_odd(wide);
        let halved = self.fresh(ty);
        convert(self, half, halved);
        let twice = match ty.bytes() {
            4 => self.make(VEX_Vaddss_xmm_xmm_xmmm32, ty, halved, Arg::Use(halved, Width::X)),
            _ => self.make(VEX_Vaddsd_xmm_xmm_xmmm64, ty, halved, Arg::Use(halved, Width::X)),
        };
        let whole = self.fresh(ty);
        convert(self, wide, whole);
        // The top bit of the integer chooses.
        let top = self.fresh(ty);
        self.push(VEX_Vmovq_xmm_rm64, &[Arg::Def(top, Width::X), Arg::Use(wide, Width::B8)]);
        let [whole, twice] = [whole, twice].map(|v| Arg::Use(v, Width::X));
        if ty.bytes() == 4 {
            // Bit 63 to bit 31.
            let high = self.fresh(ty);
            let args = [Arg::Def(high, Width::X), Arg::Use(top, Width::X), byte(1)];
            self.push(VEX_Vpshufd_xmm_xmmm128_imm8, &args);
            let args = [Arg::Def(to, Width::X), whole, twice, Arg::Use(high, Width::X)];
            return self.push(VEX_Vblendvps_xmm_xmm_xmmm128_xmm, &args);
        }
        let args = [Arg::Def(to, Width::X), whole, twice, Arg::Use(top, Width::X)];
        self.push(VEX_Vblendvpd_xmm_xmm_xmmm128_xmm, &args);
    }

    /// Lanes of f32 to integers, saturating, NaN to 0.
    pub fn words_of_floats(&mut self, signed: bool, value: Value, of: Type, to: VReg) -> Option<()> {
        if of.element() != Element::F32 {
            return None;
        }
        let words = of.as_int();
        let whole = self.whole;
        let y = |v: VReg| Arg::Use(v, whole);
        let two_31 = self.constant(of, u64::from(2_147_483_648f32.to_bits()));
        if signed {
            let limits = self.limits(value);
            let x = self.reg(value);
            let convert = |lower: &mut Self, to| {
                lower.push(VEX_Vcvttps2dq_ymm_ymmm256, &[Arg::Def(to, whole), y(x)]);
            };
            if limits.numbers && limits.above {
                convert(self, to);
                return Some(());
            }
            // Out of range, the instruction gives the least integer; above, that is one more than the greatest.
            let mut word = self.fresh(words);
            convert(self, word);
            if !limits.above {
                let large = self.mask(of, predicate(Condition::Ge), x, two_31);
                word = self.make(VEX_Vpxor_ymm_ymm_ymmm256, words, word, y(large));
            }
            let ordered = self.mask(of, ORDERED, x, y(x));
            self.apply(VEX_Vpand_ymm_ymm_ymmm256, words, to, word, y(ordered));
            return Some(());
        }
        let x = self.reg(value);
        // The second operand where one is NaN.
        let zero = self.zero(of);
        let x = self.make(VEX_Vmaxps_ymm_ymm_ymmm256, of, x, y(zero));
        let large = self.mask(of, predicate(Condition::Ge), x, two_31);
        let excess = self.make(VEX_Vandps_ymm_ymm_ymmm256, of, large, two_31);
        let rest = self.make(VEX_Vsubps_ymm_ymm_ymmm256, of, x, y(excess));
        let word = self.fresh(words);
        self.push(VEX_Vcvttps2dq_ymm_ymmm256, &[Arg::Def(word, whole), y(rest)]);
        let top = self.make_immediate(VEX_Vpslld_ymm_ymm_imm8, words, large, 31);
        let word = self.make(VEX_Vpxor_ymm_ymm_ymmm256, words, word, y(top));
        let two_32 = self.constant(of, u64::from(4_294_967_296f32.to_bits()));
        let past = self.mask(of, predicate(Condition::Ge), x, two_32);
        self.apply(VEX_Vpor_ymm_ymm_ymmm256, words, to, word, y(past));
        Some(())
    }

    /// Lanes of floats, the low ones of f32, to integers of 64 bits, in AVX-512: saturating, NaN to 0.
    pub fn longs_of_floats(&mut self, value: Value, of: Type, ty: Type, to: VReg) {
        let whole = self.whole;
        let mut x = self.reg(value);
        let f64s = ty.with_element(Element::F64);
        if of.element() == Element::F32 {
            let wide = self.fresh(f64s);
            let low = Arg::Use(x, part_of(of.bytes() / 2));
            self.push(VEX_Vcvtps2pd_ymm_xmmm128, &[Arg::Def(wide, whole), low]);
            x = wide;
        }
        let y = |v: VReg| Arg::Use(v, whole);
        // NaN gives zeros. Out of range, the instruction gives the least integer; above, that is one more than the greatest.
        let long = self.fresh(ty);
        self.push(EVEX_Vcmppd_kr_k1_zmm_zmmm512b64_imm8_sae, &[Arg::Mask, y(x), y(x), byte(ORDERED)]);
        self.push(EVEX_Vcvttpd2qq_zmm_k1z_zmmm512b64_sae, &[Arg::Def(long, whole), y(x), Arg::OnlyWhere]);
        let two_63 = self.constant(f64s, 9_223_372_036_854_775_808f64.to_bits());
        let large = self.mask(f64s, predicate(Condition::Ge), x, two_63);
        self.apply(VEX_Vpxor_ymm_ymm_ymmm256, ty, to, long, y(large));
    }

    /// Lanes of signed integers of 64 bits to floats, in AVX-512.
    pub fn floats_of_longs(&mut self, value: Value, of: Type, ty: Type, to: VReg) {
        let a = self.operand(value);
        let (code, size) = match ty.element() {
            Element::F32 => (EVEX_Vcvtqq2ps_ymm_k1z_zmmm512b64_er, of.bytes() / 2),
            _ => (EVEX_Vcvtqq2pd_zmm_k1z_zmmm512b64_er, of.bytes()),
        };
        self.push(code, &[Arg::Def(to, part_of(size)), a]);
    }

    /// What is known of lanes of f32 from how they are made.
    fn limits(&self, value: Value) -> Limits {
        let mut limits = Limits { numbers: false, above: false };
        let mut value = value;
        while let Some(def) = self.ssa.def(value)
            && let Op::SelectLess | Op::SelectGreater = def.op
        {
            let limit = |at: usize| {
                let limit = f32::from_bits(self.ssa.as_const(def.args[at])? as u32);
                (limit.abs() < 2_147_483_648.0).then_some(limit)
            };
            limits.above |= def.op == Op::SelectLess && (limit(0).is_some() || limit(1).is_some());
            // The second operand where one is NaN.
            if limit(1).is_some() {
                limits.numbers = true;
                value = def.args[0];
            } else if limit(0).is_some() {
                value = def.args[1];
            } else {
                break;
            }
        }
        limits
    }

    /// Lanes of 32-bit integers to f32.
    pub fn floats_of_words(&mut self, signed: bool, value: Value, of: Type, ty: Type, to: VReg) {
        if signed {
            let a = self.operand(value);
            return self.push(VEX_Vcvtdq2ps_ymm_ymmm256, &[Arg::Def(to, self.whole), a]);
        }
        // The high half is exact, and stays so times 2^16; adding the low half rounds once.
        let a = self.reg(value);
        let high = self.make_immediate(VEX_Vpsrld_ymm_ymm_imm8, of, a, 16);
        let low = self.constant(of, 0xffff);
        let low = self.make(VEX_Vpand_ymm_ymm_ymmm256, of, a, low);
        let [high, low] = [high, low].map(|half| {
            let float = self.fresh(ty);
            self.push(VEX_Vcvtdq2ps_ymm_ymmm256, &[Arg::Def(float, self.whole), Arg::Use(half, self.whole)]);
            float
        });
        let scale = self.constant(ty, u64::from(65536f32.to_bits()));
        let args = [Arg::Change(to, high, self.whole), Arg::Use(low, self.whole), scale];
        self.push(VEX_Vfmadd132ps_ymm_ymm_ymmm256, &args);
    }
}
