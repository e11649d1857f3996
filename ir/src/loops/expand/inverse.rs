//! `asin`, `acos` and `atan`, in f64.

use super::Scope;
use crate::loops::Val;
use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, PI};

/// `(asin(t) - t) / t^3` in `t^2` for `t <= 1/2`, within 1.7e-17.
const ASIN: [f64; 12] = [
    0.16666666666665647,
    0.07500000000296222,
    0.04464285685467197,
    0.030381958248093404,
    0.022371776013379797,
    0.017359471599238365,
    0.013887249366754936,
    0.012157505858878157,
    0.006573237119889712,
    0.019416629820520507,
    -0.01606531509488405,
    0.0318128728869809,
];

/// `(atan(t) - t) / t^3` in `t^2` for `t <= tan(pi / 8)`, within 1.4e-18.
const ATAN: [f64; 11] = [
    -0.3333333333333323,
    0.1999999999996133,
    -0.14285714280843892,
    0.11111110811375188,
    -0.09090898467354325,
    0.07692071566456879,
    -0.06663221549824136,
    0.05848675317806089,
    -0.0504258535962145,
    0.03814224415062011,
    -0.01798689909334547,
];

/// What the nearest doubles to pi/2 and pi/4 leave.
const PI_2_LOW: f64 = 6.123_233_995_736_766e-17;
const PI_4_LOW: f64 = 3.061_616_997_868_383e-17;

/// Whether `|x| > 1/2`, and the inverse sine of `|x|` or else of `sqrt((1 - |x|) / 2)`, which is half
/// the inverse cosine.
fn asin_core(s: &mut Scope<'_>, x: Val) -> (Val, Val) {
    let size = s.abs(x);
    let half = s.number(x, 0.5);
    let big = s.lt(half, size);
    let square = s.mul(size, size);
    let other = s.fma_k(size, -0.5, half);
    let z = s.select(big, other, square);
    let root = s.sqrt(z);
    let t = s.select(big, root, size);
    let tail = s.polynomial(z, &ASIN);
    let cube = s.mul(t, z);
    (big, s.fma(tail, cube, t))
}

/// Within 2 ULP; NaN outside -1 ..= 1.
pub(super) fn asin(s: &mut Scope<'_>, x: Val) -> Val {
    let (big, p) = asin_core(s, x);
    let low = s.number(x, PI_2_LOW);
    let far = s.fma_k(p, -2.0, low);
    let far = s.add_k(far, FRAC_PI_2);
    let y = s.select(big, far, p);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}

/// Within 2 ULP; NaN outside -1 ..= 1.
pub(super) fn acos(s: &mut Scope<'_>, x: Val) -> Val {
    let (big, p) = asin_core(s, x);
    let sign = s.sign_bits(x);
    let negative = s.lt_k(x, 0.0);
    // Small: pi/2 - asin(x). Big: 2 p, or pi - 2 p on the left.
    let signed = s.flip_sign(p, sign);
    let low = s.number(x, PI_2_LOW);
    let near = s.sub(low, signed);
    let near = s.add_k(near, FRAC_PI_2);
    let double = s.add(p, p);
    let low = s.number(x, 2.0 * PI_2_LOW);
    let left = s.sub(low, double);
    let left = s.add_k(left, PI);
    let far = s.select(negative, left, double);
    s.select(big, far, near)
}

/// Within 2 ULP. `atan(a) = base + atan(t)` with `t` one of `a`, `(a - 1) / (a + 1)`, `-1 / a`.
pub(super) fn atan(s: &mut Scope<'_>, x: Val) -> Val {
    let a = s.abs(x);
    let (near, far) = (s.number(x, 0.414_213_562_373_095_1), s.number(x, 2.414_213_562_373_095));
    let (middle, far) = (s.lt(near, a), s.lt(far, a));
    let (less, more) = (s.add_k(a, -1.0), s.add_k(a, 1.0));
    let one = s.number(x, 1.0);
    let minus_one = s.number(x, -1.0);
    let above = s.select(middle, less, a);
    let above = s.select(far, minus_one, above);
    let below = s.select(middle, more, one);
    let below = s.select(far, a, below);
    let t = s.div(above, below);
    let z = s.mul(t, t);
    let tail = s.polynomial(z, &ATAN);
    let cube = s.mul(t, z);
    let y = s.fma(tail, cube, t);
    let low = s.select_k(middle, x, PI_4_LOW, 0.0);
    let pi_2_low = s.number(x, PI_2_LOW);
    let low = s.select(far, pi_2_low, low);
    let base = s.select_k(middle, x, FRAC_PI_4, 0.0);
    let pi_2 = s.number(x, FRAC_PI_2);
    let base = s.select(far, pi_2, base);
    let y = s.add(y, low);
    let y = s.add(y, base);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}
