//! `pow`.

use super::Scope;
use super::exp::{Format, exp_reduced, scale_twice};
use super::log::{LN2_SPLIT, Split, log, split};
use crate::dtype::DType;
use crate::loops::Val;
use crate::scalar::ScalarFn;

/// `(2 atanh(t) - 2 t - 2 t^3 / 3) / t^5` in `t^2`, within 1.7e-22 relative to `2 atanh(t)`.
const LOG_TAIL: [f64; 8] = [
    0.39999999999999986,
    0.28571428571442004,
    0.222222222181639,
    0.18181818804518768,
    0.15384560789488444,
    0.13336183662708068,
    0.1167725861080401,
    0.11970559518416328,
];

/// 2/3, and what the nearest double leaves.
const TWO_THIRDS: [f64; 2] = [2.0 / 3.0, 3.700_743_415_417_188e-17];

/// `x` to the power `y`, within 2 ULP, with the special cases of C's `pow`.
pub(super) fn pow(s: &mut Scope<'_>, x: Val, y: Val, y_bits: Option<u64>) -> Val {
    let dtype = s.dtype(x);
    let exponent = y_bits.map(|bits| match dtype {
        DType::F32 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    });
    match exponent {
        Some(1.0) => return x,
        Some(2.0) => return s.mul(x, x),
        Some(3.0) => {
            let square = s.mul(x, x);
            return s.mul(square, x);
        }
        Some(-1.0) => {
            let one = s.number(x, 1.0);
            return s.div(one, x);
        }
        _ => {}
    }
    if dtype == DType::F32 {
        let (x, y) = (s.cast(x, DType::F64), s.cast(y, DType::F64));
        let size = s.abs(x);
        // The error of a double logarithm vanishes when an f32 is made of its exponential.
        let l = log(s, size);
        let product = s.mul(y, l);
        let power = exp_sum(s, product, None);
        let power = with_cases(s, x, y, power);
        return s.cast(power, DType::F32);
    }
    let size = s.abs(x);
    let (high, low) = log_in_two(s, size);
    let product = s.mul(y, high);
    let minus = s.neg(product);
    let lost = s.fma(y, high, minus);
    let lost = s.fma(y, low, lost);
    let power = exp_sum(s, product, Some(lost));
    with_cases(s, x, y, power)
}

/// `e^(high + low)`, in f64; `low` counts only where `high` is moderate.
fn exp_sum(s: &mut Scope<'_>, high: Val, low: Option<Val>) -> Val {
    let limited = s.at_most(high, 710.0);
    let limited = s.at_least(limited, -746.0);
    let magic = s.number(high, Format::of(DType::F64).magic + 2.0 * 1023.0);
    let shifted = s.fma_k(limited, std::f64::consts::LOG2_E, magic);
    let n = s.sub(shifted, magic);
    let [ln2, ln2_low] = Format::of(DType::F64).ln2;
    let r = s.fma_k(n, -ln2, limited);
    let mut r = s.fma_k(n, -ln2_low, r);
    if let Some(low) = low {
        let moderate = s.eq(limited, high);
        let zero = s.number(high, 0.0);
        let low = s.select(moderate, low, zero);
        r = s.add(r, low);
    }
    let y = exp_reduced(s, r);
    scale_twice(s, y, shifted)
}

/// The power from that of `|x|`: signs, and the cases where the logarithm means nothing.
fn with_cases(s: &mut Scope<'_>, x: Val, y: Val, power: Val) -> Val {
    let (zero, one, infinity) = (s.number(x, 0.0), s.number(x, 1.0), s.number(x, f64::INFINITY));
    let whole = s.trunc(y);
    let is_whole = s.eq(whole, y);
    let half = s.mul_k(y, 0.5);
    let whole_half = s.trunc(half);
    let is_odd = s.ne(whole_half, half);
    let is_odd = s.and(is_odd, is_whole);
    // An odd power keeps the sign.
    let sign = s.sign_bits(x);
    let none = s.bits(DType::U64, 0);
    let sign = s.select(is_odd, sign, none);
    let power = s.flip_sign(power, sign);
    // A broken power of a finite negative number is NaN.
    let size = s.abs(x);
    let finite = s.lt(size, infinity);
    let negative = s.lt(x, zero);
    let broken = s.not(is_whole);
    let undefined = s.and(negative, finite);
    let undefined = s.and(undefined, broken);
    let nan = s.number(x, f64::NAN);
    let power = s.select(undefined, nan, power);
    // x^0, 1^y and (-1)^inf are 1, whatever else is NaN.
    let y_size = s.abs(y);
    let endless = s.eq(y_size, infinity);
    let unit = s.eq(size, one);
    let endless = s.and(unit, endless);
    let x_is_one = s.eq(x, one);
    let y_is_zero = s.eq(y, zero);
    let is_one = s.or(x_is_one, y_is_zero);
    let is_one = s.or(is_one, endless);
    s.select(is_one, one, power)
}

/// `log x` for `x >= 0` as a sum of two doubles, to about 2^-66.
///
/// As in [`log`], but `t = f / (2 + f)`, the first two terms of the series and the sum are carried
/// in two parts.
fn log_in_two(s: &mut Scope<'_>, x: Val) -> (Val, Val) {
    let Split { k, m } = split(s, x);
    let f = s.add_k(m, -1.0);
    let d = s.add_k(m, 1.0);
    let back = s.add_k(d, -1.0);
    let d_low = s.sub(m, back);
    let t = s.div(f, d);
    let rest = s.fnma(t, d, f);
    let rest = s.fnma(t, d_low, rest);
    let t_low = s.div(rest, d);
    // z = t^2
    let z = s.mul(t, t);
    let minus = s.neg(z);
    let z_low = s.fma(t, t, minus);
    let double = s.add(t, t);
    let z_low = s.fma(double, t_low, z_low);
    // u = 2/3 + z P(z)
    let tail = s.polynomial(z, &LOG_TAIL);
    let tail = s.mul(tail, z);
    let u = s.add_k(tail, TWO_THIRDS[0]);
    let back = s.add_k(u, -TWO_THIRDS[0]);
    let u_low = s.sub(tail, back);
    let u_low = s.add_k(u_low, TWO_THIRDS[1]);
    let (v, v_low) = multiply(s, (z, z_low), (u, u_low));
    let (a, a_low) = multiply(s, (t, t_low), (v, v_low));
    // log m = 2 t + a
    let sum = s.add(double, a);
    let back = s.sub(sum, double);
    let lost = s.sub(a, back);
    let low = s.add(t_low, t_low);
    let low = s.add(low, a_low);
    let low = s.add(low, lost);
    // + k ln 2
    let base = s.mul_k(k, LN2_SPLIT[0]);
    let low = s.fma_k(k, LN2_SPLIT[1], low);
    let high = s.add(base, sum);
    let back = s.sub(high, base);
    let lost = s.sub(sum, back);
    let low = s.add(low, lost);
    let high = super::log::at_edges(s, x, high);
    (high, low)
}

/// The product of two sums, as a sum.
fn multiply(s: &mut Scope<'_>, (a, a_low): (Val, Val), (b, b_low): (Val, Val)) -> (Val, Val) {
    let high = s.mul(a, b);
    let minus = s.neg(high);
    let low = s.fma(a, b, minus);
    let low = s.fma(a, b_low, low);
    (high, s.fma(a_low, b, low))
}

/// Integer power by squaring, a step a bit of the exponent; negative exponents as [`ScalarFn::Pow`] says.
pub(super) fn int_pow(s: &mut Scope<'_>, x: Val, y: Val, y_bits: Option<u64>) -> Val {
    let dtype = s.dtype(x);
    let width = 8 * dtype.size() as u64;
    let (zero, one) = (s.bits(dtype, 0), s.bits(dtype, 1));
    let negative = |bits: u64| dtype.is_signed_int() && bits >> (width - 1) & 1 == 1;
    let mut power = one;
    let mut square = x;
    if let Some(bits) = y_bits.filter(|&bits| !negative(bits)) {
        for bit in 0..64 - bits.leading_zeros() {
            if bit > 0 {
                square = s.mul(square, square);
            }
            if bits >> bit & 1 == 1 {
                power = if power == one { square } else { s.mul(power, square) };
            }
        }
        return power;
    }
    let last = if dtype.is_signed_int() { width - 1 } else { width };
    for bit in 0..last {
        if bit > 0 {
            square = s.mul(square, square);
        }
        let mask = s.and_k(y, 1 << bit);
        let unset = s.eq(mask, zero);
        let factor = s.select(unset, one, square);
        power = s.mul(power, factor);
    }
    if dtype.is_unsigned_int() {
        return power;
    }
    let minus_one = s.number(x, -1.0);
    let odd = s.and_k(y, 1);
    let even = s.eq(odd, zero);
    let unit = s.select(even, one, minus_one);
    let is_minus_one = s.eq(x, minus_one);
    let inverse = s.select(is_minus_one, unit, zero);
    let is_one = s.eq(x, one);
    let inverse = s.select(is_one, one, inverse);
    let is_negative = s.apply(ScalarFn::Lt, &[y, zero]);
    s.select(is_negative, inverse, power)
}
