//! `log` and `log1p`.
//!
//! `x = 2^k m` with `m` in `sqrt(1/2) .. sqrt(2)`, by integer arithmetic on the bits; `log m` is a
//! polynomial (f32) or an odd one in `f / (2 + f)` (f64, as in fdlibm's `e_log.c`), and `k ln 2` is
//! added in two parts.

use super::Scope;
use crate::dtype::DType;
use crate::loops::Val;

/// `(log(1 + f) - f) / f^2` within 3.2e-8 relative to `log(1 + f)`.
const LOG_F32: [f64; 8] = [
    -0.49999985098838806,
    0.3333391547203064,
    -0.25002551078796387,
    0.1996401697397232,
    -0.1655244529247284,
    0.14878982305526733,
    -0.14422127604484558,
    0.08987368643283844,
];

/// `(2 atanh(t) - 2 t) / t^3` in `t^2`, within 2.6e-18.
const LOG_F64: [f64; 7] = [
    0.6666666666666731,
    0.39999999999436225,
    0.28571428738333754,
    0.22222198938463114,
    0.18183547258981878,
    0.15314449508975211,
    0.14792259643892142,
];

/// `ln 2` with 40 bits, so that multiples by exponents are exact, and what that leaves.
pub(super) const LN2_SPLIT: [f64; 2] = [0.693_147_180_559_208_2, 7.371_002_565_167_799e-13];

/// `x = 2^k m`: what [`split`] finds.
pub(super) struct Split {
    pub k: Val,
    pub m: Val,
}

/// The exponent and significand of a positive finite number, subnormals included.
pub(super) fn split(s: &mut Scope<'_>, x: Val) -> Split {
    let dtype = s.dtype(x);
    match dtype {
        DType::F32 => {
            let small = s.lt_k(x, f64::from(f32::MIN_POSITIVE));
            let grown = s.mul_k(x, 16_777_216.0);
            let x = s.select(small, grown, x);
            let bits = s.bitcast(x, DType::I32);
            let root = s.bits(DType::I32, 0x3f35_04f3);
            let above = s.sub(bits, root);
            let k = s.shr_k(above, 23);
            let k = s.cast(k, DType::F32);
            let shift = s.select_k(small, k, -24.0, 0.0);
            let k = s.add(k, shift);
            let m = s.and_k(above, 0x007f_ffff);
            let m = s.add(m, root);
            Split { k, m: s.bitcast(m, DType::F32) }
        }
        _ => {
            let small = s.lt_k(x, f64::MIN_POSITIVE);
            let grown = s.mul_k(x, 18_014_398_509_481_984.0);
            let x = s.select(small, grown, x);
            let bits = s.bitcast(x, DType::U64);
            let root = 0x3fe6_a09e_667f_3bcdu64;
            let to_one = s.bits(DType::U64, 0x3ff0_0000_0000_0000 - root);
            let above = s.add(bits, to_one);
            // k + 1023, or k + 1023 + 54, as the low bits of 2^52 + them.
            let k = s.shr_k(above, 52);
            let magic = s.bits(DType::U64, 0x4330_0000_0000_0000);
            let k = s.or(k, magic);
            let k = s.bitcast(k, DType::F64);
            let bias = 4_503_599_627_370_496.0 + 1023.0;
            let bias = s.select_k(small, k, bias + 54.0, bias);
            let k = s.sub(k, bias);
            let m = s.and_k(above, 0x000f_ffff_ffff_ffff);
            let root = s.bits(DType::U64, root);
            let m = s.add(m, root);
            Split { k, m: s.bitcast(m, DType::F64) }
        }
    }
}

/// `y`, but `x` where that is infinite or NaN, `-inf` at 0 and NaN below.
pub(super) fn at_edges(s: &mut Scope<'_>, x: Val, y: Val) -> Val {
    let infinity = s.number(x, f64::INFINITY);
    let finite = s.lt(x, infinity);
    let y = s.select(finite, y, x);
    let zero = s.eq_k(x, 0.0);
    let edge = s.select_k(zero, x, f64::NEG_INFINITY, f64::NAN);
    let zero = s.number(x, 0.0);
    let positive = s.lt(zero, x);
    s.select(positive, y, edge)
}

/// The natural logarithm, within 2 ULP in f32 and 1 in f64.
pub(super) fn log(s: &mut Scope<'_>, x: Val) -> Val {
    let Split { k, m } = split(s, x);
    let f = s.add_k(m, -1.0);
    let y = match s.dtype(x) {
        DType::F32 => {
            let square = s.mul(f, f);
            let tail = s.polynomial(f, &LOG_F32);
            let low = s.mul_k(k, -1.904_654_212_125_934e-9);
            let y = s.fma(tail, square, low);
            let y = s.add(y, f);
            s.fma_k(k, 0.693_147_182_464_599_6, y)
        }
        _ => {
            let below = s.add_k(f, 2.0);
            let t = s.div(f, below);
            let z = s.mul(t, t);
            let tail = s.polynomial(z, &LOG_F64);
            let half = s.mul_k(f, 0.5);
            let half = s.mul(half, f);
            let r = s.fma(tail, z, half);
            let low = s.mul_k(k, LN2_SPLIT[1]);
            let r = s.fma(t, r, low);
            let r = s.sub(half, r);
            let r = s.sub(r, f);
            let high = s.mul_k(k, LN2_SPLIT[0]);
            s.sub(high, r)
        }
    };
    at_edges(s, x, y)
}

/// `ln(1 + x)`, within 2 ULP in f32 and 3 in f64: the logarithm of the rounded sum, corrected by what rounding lost.
pub(super) fn log1p(s: &mut Scope<'_>, x: Val) -> Val {
    let u = s.add_k(x, 1.0);
    let y = log(s, u);
    let back = s.add_k(u, -1.0);
    let lost = s.sub(x, back);
    let lost = s.div(lost, u);
    let sum = s.add(y, lost);
    // At 0 and infinity there is nothing to correct; where the sum is 1 the result is x.
    let size = s.abs(y);
    let infinity = s.number(x, f64::INFINITY);
    let finite = s.lt(size, infinity);
    let y = s.select(finite, sum, y);
    let one = s.eq_k(u, 1.0);
    s.select(one, x, y)
}
