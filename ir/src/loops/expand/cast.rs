//! Casts, by way of those that emitters implement.

use super::{Scope, half, is_half};
use crate::dtype::DType;
use crate::loops::Val;
use crate::scalar::ScalarFn;

/// `x` as another type.
pub(super) fn cast(s: &mut Scope<'_>, x: Val, to: DType) -> Val {
    let from = s.dtype(x);
    if from == to || super::is_emitted(ScalarFn::Cast(to), &[from], s.native) {
        return if from == to { x } else { s.cast(x, to) };
    }
    match (from, to) {
        (DType::F16 | DType::BF16, _) => {
            let wide = half::to_f32(s, x);
            cast(s, wide, to)
        }
        (DType::F32, DType::F16 | DType::BF16) => half::from_f32(s, x, to),
        (DType::F64, DType::F16 | DType::BF16) => half::from_f64(s, x, to),
        (DType::Bool, _) => {
            // Through the bits of one and zero, so that a half is chosen as well.
            let (one, zero) = (s.bits(to, one_bits(to)), s.bits(to, 0));
            super::expand_apply(s, ScalarFn::Select, &[x, one, zero], &[None; 3])
        }
        (_, DType::Bool) => {
            let zero = s.bits(from, 0);
            s.ne(x, zero)
        }
        (_, DType::F16 | DType::BF16) => {
            // Up to 16 bits are exact in f32.
            let wide = cast(s, x, if from.size() <= 2 { DType::F32 } else { DType::F64 });
            cast(s, wide, to)
        }
        (_, DType::F32 | DType::F64) => to_float(s, x, to),
        (DType::F32 | DType::F64, _) => from_float(s, x, to),
        _ => s.bitcast(x, to),
    }
}

fn one_bits(dtype: DType) -> u64 {
    crate::loops::nest::const_bits(dtype, 1.0)
}

/// From an integer of at most 32 bits.
fn to_float(s: &mut Scope<'_>, x: Val, to: DType) -> Val {
    match (s.dtype(x), to) {
        (DType::U32, DType::F32) => {
            // Two exact halves, added with one rounding.
            let high = s.shr_k(x, 16);
            let high = s.bitcast(high, DType::I32);
            let high = s.cast(high, DType::F32);
            let low = s.and_k(x, 0xffff);
            let low = s.bitcast(low, DType::I32);
            let low = s.cast(low, DType::F32);
            s.fma_k(high, 65536.0, low)
        }
        (DType::U32, _) => {
            // The low bits of 2^52.
            let wide = s.cast(x, DType::U64);
            let magic = s.bits(DType::U64, 0x4330_0000_0000_0000);
            let sum = s.or(wide, magic);
            let sum = s.bitcast(sum, DType::F64);
            s.add_k(sum, -4_503_599_627_370_496.0)
        }
        _ => {
            let wide = s.cast(x, DType::I32);
            s.cast(wide, to)
        }
    }
}

/// To an integer of at most 32 bits that is not i32: to one that holds them all, and limited.
fn from_float(s: &mut Scope<'_>, x: Val, to: DType) -> Val {
    debug_assert!(!is_half(to));
    let (low, high) = to.int_range();
    if to == DType::U32 {
        let wide = s.cast(x, DType::I64);
        let (low, high) = (s.bits(DType::I64, low as u64), s.bits(DType::I64, high as u64));
        let y = s.apply(ScalarFn::Max, &[wide, low]);
        let y = s.apply(ScalarFn::Min, &[y, high]);
        return s.cast(y, to);
    }
    // Every float type has these limits. NaN becomes 0 here or in the cast.
    let limit = s.number(x, low as f64);
    let y = match low {
        0 => {
            let inside = s.apply(ScalarFn::Gt, &[x, limit]);
            s.select(inside, x, limit)
        }
        _ => s.apply(ScalarFn::Max, &[x, limit]),
    };
    let limit = s.number(x, high as f64);
    let y = s.apply(ScalarFn::Min, &[y, limit]);
    let word = s.cast(y, DType::I32);
    let y = s.cast(word, to);
    s.words[y] = word.into();
    y
}
