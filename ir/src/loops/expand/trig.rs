//! `sin`, `cos` and `tan`, computed in f64 for both types.
//!
//! `x = (pi / 2)(n + r)`. For f32 any finite `x` is reduced exactly enough: with `x = w 2^E` and `w` an
//! integer, only `(2^E 2/pi) mod 4` matters, of which two doubles are kept for each of five `E`; a
//! product and its rounding error then give the fraction to 2^-57. For f64, `pi/2` in three parts is
//! subtracted by fma, which is good for `|x| <= 2^45`; **beyond that f64 results are not accurate**.

use super::Scope;
use crate::dtype::DType;
use crate::loops::Val;

/// `(sin(t) - t) / t^3` in `t^2` for `t <= 0.9`, within 1.8e-20.
const SIN: [f64; 7] = [
    -0.16666666666666666,
    0.008333333333333281,
    -0.00019841269841213078,
    2.7557319195204475e-06,
    -2.5052100587081944e-08,
    1.6057882911047345e-10,
    -7.557549187722907e-13,
];

/// `(cos(t) - 1 + t^2 / 2) / t^4` in `t^2` for `t <= 0.9`, within 4.4e-19.
const COS: [f64; 6] = [
    0.04166666666666635,
    -0.0013888888888834285,
    2.4801587266885456e-05,
    -2.755730845476967e-07,
    2.087500035069412e-09,
    -1.1325883634939666e-11,
];

/// pi/2, in three parts.
const PI_2: [f64; 3] = [std::f64::consts::FRAC_PI_2, 6.123_233_995_736_766e-17, -1.497_384_904_859_169_8e-33];

/// For `x` from the first number on: `2^-E`, and `(2^E 2/pi) mod 4` in two parts.
const WINDOWS: [(f64, f64, f64, f64); 5] = [
    (0.0, 1.0, 0.6366197723675814, -3.935735335036497e-17),
    (281_474_976_710_656.0, 5.960_464_477_539_063e-8, -0.5691182564096516, -9.117048055938418e-18),
    (4.722_366_482_869_645e21, 3.552_713_678_800_501e-15, 0.08267188988231296, 2.8658837463471963e-18),
    (7.922_816_251_426_434e28, 2.117_582_368_135_751e-22, 0.1536837791107848, 1.1892889840965575e-17),
    (1.329_227_995_784_916e36, 1.262_177_448_353_619e-29, 1.9578379245607584, 7.769584704001829e-17),
];

/// 1.5 * 2^52: adding it leaves an integer in the low bits.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// The quadrant in the low bits of an integer, and sine and cosine of the rest.
struct Quadrant {
    n: Val,
    sin: Val,
    cos: Val,
}

/// Reduces `|x|`; `exact` if `x` was an f32.
fn reduce(s: &mut Scope<'_>, size: Val, exact: bool) -> Quadrant {
    let magic = s.number(size, MAGIC);
    let (shifted, r) = if exact {
        let (_, scale, high, low) = WINDOWS[0];
        let mut parts = [scale, high, low].map(|v| s.number(size, v));
        for (from, scale, high, low) in &WINDOWS[1..] {
            let from = s.number(size, *from);
            let below = s.lt(size, from);
            for (part, value) in parts.iter_mut().zip([scale, high, low]) {
                let value = s.number(size, *value);
                *part = s.select(below, *part, value);
            }
        }
        let [scale, high, low] = parts;
        let w = s.mul(size, scale);
        let product = s.mul(w, high);
        let minus = s.neg(product);
        let lost = s.fma(w, high, minus);
        let shifted = s.add(product, magic);
        let n = s.sub(shifted, magic);
        let r = s.sub(product, n);
        let lost = s.fma(w, low, lost);
        let r = s.add(r, lost);
        (shifted, s.mul_k(r, PI_2[0]))
    } else {
        let shifted = s.fma_k(size, std::f64::consts::FRAC_2_PI, magic);
        let n = s.sub(shifted, magic);
        let r = PI_2.iter().fold(size, |r, &part| s.fma_k(n, -part, r));
        (shifted, r)
    };
    let z = s.mul(r, r);
    let tail = s.polynomial(z, &SIN);
    let cube = s.mul(r, z);
    let sin = s.fma(tail, cube, r);
    let tail = s.polynomial(z, &COS);
    let square = s.mul(z, z);
    let one = s.number(r, 1.0);
    let base = s.fma_k(z, -0.5, one);
    let cos = s.fma(tail, square, base);
    Quadrant { n: s.bitcast(shifted, DType::U64), sin, cos }
}

fn widen(s: &mut Scope<'_>, x: Val) -> (Val, bool) {
    match s.dtype(x) {
        DType::F32 => (s.cast(x, DType::F64), true),
        _ => (x, false),
    }
}

/// `a` if bit 0 of `n` is clear, else `b`.
fn by_parity(s: &mut Scope<'_>, n: Val, a: Val, b: Val) -> Val {
    let odd = s.and_k(n, 1);
    let zero = s.bits(DType::U64, 0);
    let even = s.eq(odd, zero);
    s.select(even, a, b)
}

fn narrow(s: &mut Scope<'_>, y: Val, to: DType) -> Val {
    if to == DType::F64 { y } else { s.cast(y, to) }
}

/// Within 1 ULP in f32 everywhere, and 2 in f64 for `|x| <= 2^45`.
pub(super) fn sin(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    let (wide, exact) = widen(s, x);
    let size = s.abs(wide);
    let q = reduce(s, size, exact);
    let y = by_parity(s, q.n, q.sin, q.cos);
    let turn = s.shl_k(q.n, 62);
    let turn = s.and_k(turn, 1 << 63);
    let sign = s.sign_bits(wide);
    let sign = s.xor(sign, turn);
    let y = s.flip_sign(y, sign);
    narrow(s, y, dtype)
}

/// Within 1 ULP in f32 everywhere, and 2 in f64 for `|x| <= 2^45`.
pub(super) fn cos(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    let (wide, exact) = widen(s, x);
    let size = s.abs(wide);
    let q = reduce(s, size, exact);
    let y = by_parity(s, q.n, q.cos, q.sin);
    let one = s.bits(DType::U64, 1);
    let turn = s.add(q.n, one);
    let turn = s.shl_k(turn, 62);
    let sign = s.and_k(turn, 1 << 63);
    let y = s.flip_sign(y, sign);
    narrow(s, y, dtype)
}

/// Within 1 ULP in f32 everywhere, and 4 in f64 for `|x| <= 2^45`.
pub(super) fn tan(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    let (wide, exact) = widen(s, x);
    let size = s.abs(wide);
    let q = reduce(s, size, exact);
    let above = by_parity(s, q.n, q.sin, q.cos);
    let below = by_parity(s, q.n, q.cos, q.sin);
    let y = s.div(above, below);
    let turn = s.shl_k(q.n, 63);
    let sign = s.sign_bits(wide);
    let sign = s.xor(sign, turn);
    let y = s.flip_sign(y, sign);
    narrow(s, y, dtype)
}
