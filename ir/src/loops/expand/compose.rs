//! Functions of a few steps: remainders, `sign`, `relu`, comparisons of bools, halves in a word.

use super::Scope;
use crate::dtype::DType;
use crate::loops::Val;
use crate::scalar::ScalarFn;

/// Compares bools, false below true.
pub(super) fn compare_bools(s: &mut Scope<'_>, f: ScalarFn, a: Val, b: Val) -> Val {
    match f {
        ScalarFn::Ne => s.xor(a, b),
        ScalarFn::Eq => {
            let differ = s.xor(a, b);
            s.not(differ)
        }
        ScalarFn::Lt => {
            let a = s.not(a);
            s.and(a, b)
        }
        ScalarFn::Le => {
            let a = s.not(a);
            s.or(a, b)
        }
        ScalarFn::Gt => compare_bools(s, ScalarFn::Lt, b, a),
        _ => compare_bools(s, ScalarFn::Le, b, a),
    }
}

/// -1, 0 or 1; -0 and NaN stay.
pub(super) fn sign(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    let zero = s.bits(dtype, 0);
    let one = s.number(x, 1.0);
    if dtype.is_unsigned_int() {
        return s.apply(ScalarFn::Min, &[x, one]);
    }
    let minus_one = s.number(x, -1.0);
    let (below, above) = (s.lt(x, zero), s.lt(zero, x));
    let y = s.select(below, minus_one, x);
    s.select(above, one, y)
}

/// `x` between two bounds; NaN stays.
pub(super) fn clamp(s: &mut Scope<'_>, x: Val, low: Val, high: Val) -> Val {
    if !s.dtype(x).is_float() {
        let x = s.apply(ScalarFn::Max, &[x, low]);
        return s.apply(ScalarFn::Min, &[x, high]);
    }
    // One instruction each where a machine selects the larger or the smaller.
    let under = s.apply(ScalarFn::Gt, &[low, x]);
    let x = s.select(under, low, x);
    let over = s.apply(ScalarFn::Lt, &[high, x]);
    s.select(over, high, x)
}

/// `max(x, 0)`: +0 for -0; NaN stays.
pub(super) fn relu(s: &mut Scope<'_>, x: Val) -> Val {
    let zero = s.bits(s.dtype(x), 0);
    if s.dtype(x).is_unsigned_int() {
        return x;
    }
    if !s.dtype(x).is_float() {
        return s.apply(ScalarFn::Max, &[x, zero]);
    }
    let under = s.apply(ScalarFn::Le, &[x, zero]);
    s.select(under, zero, x)
}

/// An integer of two halves.
pub(super) fn pack2(s: &mut Scope<'_>, low: Val, high: Val) -> Val {
    let (unsigned, whole, bits) = match s.dtype(low) {
        DType::I8 => (DType::U8, DType::I16, 8),
        _ => (DType::U16, DType::I32, 16),
    };
    let (low, high) = (s.bitcast(low, unsigned), s.cast(high, whole));
    let (low, high) = (s.cast(low, whole), s.shl_k(high, bits));
    s.or(low, high)
}

/// The remainder with the sign of `a`.
pub(super) fn rem(s: &mut Scope<'_>, a: Val, b: Val) -> Val {
    if s.dtype(a).is_float() {
        return float_rem(s, a, b);
    }
    let q = s.div(a, b);
    let product = s.mul(q, b);
    let r = s.sub(a, product);
    let zero = s.bits(s.dtype(a), 0);
    let undefined = s.eq(b, zero);
    s.select(undefined, zero, r)
}

/// The exact remainder.
///
/// Each step subtracts a quotient rounded to 53 bits times `b`, exactly, as one fma, and shrinks the
/// rest by a factor of 2^52. Six steps do for any two f32; f64 gets four, so quotients up to 2^200
/// are exact, and larger ones that do not overflow give some number between `-|b|` and `|b|`.
fn float_rem(s: &mut Scope<'_>, a: Val, b: Val) -> Val {
    let dtype = s.dtype(a);
    let steps = if dtype == DType::F32 { 6 } else { 4 };
    let wide = |s: &mut Scope<'_>, x: Val| if dtype == DType::F32 { s.cast(x, DType::F64) } else { x };
    let (top, bottom) = (wide(s, a), wide(s, b));
    let (size, divisor) = (s.abs(top), s.abs(bottom));
    let mut r = size;
    for _ in 0..steps {
        let q = s.div(r, divisor);
        let q = s.trunc(q);
        r = s.fnma(q, divisor, r);
    }
    // A rounded quotient may be one too large.
    let negative = s.lt_k(r, 0.0);
    let more = s.add(r, divisor);
    let r = s.select(negative, more, r);
    let infinity = s.number(top, f64::INFINITY);
    let whole = s.eq(divisor, infinity);
    let finite = s.lt(size, infinity);
    let whole = s.and(whole, finite);
    let r = s.select(whole, size, r);
    let r = s.abs(r);
    let r = if dtype == DType::F32 { s.cast(r, DType::F32) } else { r };
    let sign = s.sign_bits(a);
    s.flip_sign(r, sign)
}

/// The remainder with the sign of `b`.
pub(super) fn modulo(s: &mut Scope<'_>, a: Val, b: Val) -> Val {
    let dtype = s.dtype(a);
    let r = rem(s, a, b);
    if dtype.is_unsigned_int() {
        return r;
    }
    let zero = s.bits(dtype, 0);
    let (r_negative, b_negative) = (s.lt(r, zero), s.lt(b, zero));
    let differ = s.xor(r_negative, b_negative);
    let more = s.add(r, b);
    let moved = s.select(differ, more, r);
    let is_zero = s.eq(r, zero);
    let at_zero = if dtype.is_float() {
        let sign = s.sign_bits(b);
        let size = s.abs(r);
        s.flip_sign(size, sign)
    } else {
        r
    };
    s.select(is_zero, at_zero, moved)
}
