//! f16 and bf16: arithmetic in f32, and conversions on their bits.

use smallvec::SmallVec;

use super::{Scope, expand_apply};
use crate::dtype::DType;
use crate::loops::Val;
use crate::scalar::ScalarFn;

/// A function of halves: widened, computed in f32, rounded once.
pub(super) fn apply(s: &mut Scope<'_>, f: ScalarFn, args: &[Val], bits: &[Option<u64>]) -> Val {
    let dtype = s.dtype(args[0]);
    match f {
        // Signs are bits.
        ScalarFn::Neg | ScalarFn::Abs => {
            let x = s.bitcast(args[0], DType::U16);
            let y = if f == ScalarFn::Abs {
                s.and_k(x, 0x7fff)
            } else {
                let sign = s.bits(DType::U16, 0x8000);
                s.xor(x, sign)
            };
            return s.bitcast(y, dtype);
        }
        _ => {}
    }
    let wide: SmallVec<[Val; 3]> = args.iter().map(|&a| to_f32(s, a)).collect();
    let bits: SmallVec<[Option<u64>; 3]> = bits.iter().map(|b| b.map(|b| widen_constant(dtype, b))).collect();
    let y = expand_apply(s, f, &wide, &bits);
    match s.dtype(y) {
        DType::F32 => from_f32(s, y, dtype),
        _ => y,
    }
}

fn widen_constant(dtype: DType, bits: u64) -> u64 {
    let value = match dtype {
        DType::F16 => half::f16::from_bits(bits as u16).to_f32(),
        _ => half::bf16::from_bits(bits as u16).to_f32(),
    };
    u64::from(value.to_bits())
}

/// A half as f32, exactly.
pub(super) fn to_f32(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    if dtype == DType::F16 && s.native.half_casts {
        return s.cast(x, DType::F32);
    }
    let bits = s.bitcast(x, DType::U16);
    let bits = s.cast(bits, DType::U32);
    if dtype == DType::BF16 {
        let bits = s.shl_k(bits, 16);
        return s.bitcast(bits, DType::F32);
    }
    // Exponent and fraction in place are 2^-112 times the value, subnormals included; infinity and NaN
    // then need the largest exponent, and NaN to be quiet.
    let size = s.and_k(bits, 0x7fff);
    let y = s.shl_k(size, 13);
    let y = s.bitcast(y, DType::F32);
    let y = s.mul_k(y, 2f64.powi(112));
    let limit = s.bits(DType::U32, 0x7c00);
    let finite = s.lt(size, limit);
    let nan = s.lt(limit, size);
    let [none, all, quiet] = [0, 0x7f80_0000, 0x7fc0_0000].map(|bits| s.bits(DType::U32, bits));
    let special = s.select(nan, quiet, all);
    let exponent = s.select(finite, none, special);
    let y = s.bitcast(y, DType::U32);
    let y = s.or(y, exponent);
    let sign = s.and_k(bits, 0x8000);
    let sign = s.shl_k(sign, 16);
    let y = s.or(y, sign);
    s.bitcast(y, DType::F32)
}

/// An f32 rounded to nearest even.
pub(super) fn from_f32(s: &mut Scope<'_>, x: Val, to: DType) -> Val {
    if to == DType::F16 && s.native.half_casts {
        return s.cast(x, to);
    }
    let bits = s.bitcast(x, DType::U32);
    let y = if to == DType::BF16 {
        let odd = s.shr_k(bits, 16);
        let odd = s.and_k(odd, 1);
        let below_half = s.bits(DType::U32, 0x7fff);
        let y = s.add(bits, below_half);
        let y = s.add(y, odd);
        let y = s.shr_k(y, 16);
        let nan = s.ne(x, x);
        let quiet = s.bits(DType::U32, 0x7fc0);
        s.select(nan, quiet, y)
    } else {
        let size = s.and_k(bits, 0x7fff_ffff);
        // Normal: move the exponent's bias and round away 13 bits.
        let odd = s.shr_k(size, 13);
        let odd = s.and_k(odd, 1);
        let rebias = s.bits(DType::U32, 0xc800_0fff);
        let normal = s.add(size, rebias);
        let normal = s.add(normal, odd);
        let normal = s.shr_k(normal, 13);
        // Subnormal: adding 1/2 rounds to multiples of 2^-24.
        let float = s.bitcast(size, DType::F32);
        let sum = s.add_k(float, 0.5);
        let sum = s.bitcast(sum, DType::U32);
        let half = s.bits(DType::U32, 0x3f00_0000);
        let subnormal = s.sub(sum, half);
        let first_normal = s.bits(DType::U32, 0x3880_0000);
        let is_subnormal = s.lt(size, first_normal);
        let y = s.select(is_subnormal, subnormal, normal);
        let (too_large, infinity) = (s.bits(DType::U32, 0x4780_0000), s.bits(DType::U32, 0x7c00));
        let fits = s.lt(size, too_large);
        let y = s.select(fits, y, infinity);
        // Its exponent is all ones as well.
        let payload = s.shr_k(size, 13);
        let payload = s.and_k(payload, 0x7fff);
        let quiet = s.bits(DType::U32, 0x200);
        let quiet = s.or(payload, quiet);
        let nan = s.ne(x, x);
        let y = s.select(nan, quiet, y);
        let sign = s.shr_k(bits, 16);
        let sign = s.and_k(sign, 0x8000);
        s.or(y, sign)
    };
    let y = s.cast(y, DType::U16);
    s.bitcast(y, to)
}

/// An f64 rounded to nearest even, once: first to f32 with an odd last bit where that is inexact, so
/// that the second rounding sees on which side of a tie the number was.
pub(super) fn from_f64(s: &mut Scope<'_>, x: Val, to: DType) -> Val {
    let near = s.cast(x, DType::F32);
    let back = s.cast(near, DType::F64);
    let (size, reached) = (s.abs(x), s.abs(back));
    let bits = s.bitcast(near, DType::U32);
    let one = s.bits(DType::U32, 1);
    let below = s.sub(bits, one);
    let over = s.lt(size, reached);
    let cut = s.select(over, below, bits);
    let odd = s.or(cut, one);
    let inexact = s.ne(back, x);
    let y = s.select(inexact, odd, bits);
    let y = s.bitcast(y, DType::F32);
    from_f32(s, y, to)
}
