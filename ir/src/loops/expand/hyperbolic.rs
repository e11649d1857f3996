//! `sinh`, `cosh`, `tanh` and their inverses.

use super::Scope;
use super::exp::{Format, exp_reduced, power_of_two, reduce, scale_twice, tail};
use super::log::log1p;
use crate::dtype::DType;
use crate::loops::Val;
use crate::scalar::ScalarFn;

/// `(e^(-2u) - 1 + 2u) / u^2` on `|u| <= ln 2 / 4`, within 1.5e-8 relative to `e^(-2u) - 1`.
const TANH_F32: [f64; 5] =
    [2.0, -1.33332359790802, 0.6666606664657593, -0.26772311329841614, 0.08925440162420273];

/// `(sinh(x) - x) / x^3` in `x^2` for `x <= 1`, within 1e-19.
const SINH: [f64; 7] = [
    0.16666666666666669,
    0.00833333333333314,
    0.00019841269841436456,
    2.7557319155664143e-06,
    2.5052123353159916e-08,
    1.6057243492709575e-10,
    7.759225609300673e-13,
];

/// The hyperbolic tangent, within 3 ULP: `-t / (t + 2)` for `t = e^(-2 |x|) - 1`.
pub(super) fn tanh(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    let format = Format::of(dtype);
    let size = s.abs(x);
    let (small, shifted) = match dtype {
        DType::F32 => {
            // 2 |x| = 2 u - n ln 2: one product suffices, an error of n rounds away beside 2^n - 1.
            let size = s.at_most(size, 10.0);
            let magic = s.number(x, format.magic + format.bias as f64);
            let shifted = s.fma_k(size, -2.0 * std::f64::consts::LOG2_E, magic);
            let n = s.sub(shifted, magic);
            let u = s.fma_k(n, 0.5 * std::f64::consts::LN_2, size);
            let tail = s.polynomial(u, &TANH_F32);
            let minus_two = s.number(x, -2.0);
            let slope = s.fma(tail, u, minus_two);
            (s.mul(slope, u), shifted)
        }
        _ => {
            let size = s.at_most(size, 20.0);
            let reduced = reduce(s, size, -2.0, format.bias);
            let r = reduced.r;
            let tail = tail(s, r);
            let square = s.mul(r, r);
            (s.fma(tail, square, r), reduced.shifted)
        }
    };
    let power = power_of_two(s, shifted);
    let rest = s.add_k(power, -1.0);
    let t = s.fma(power, small, rest);
    let below = s.add_k(t, 2.0);
    let y = s.div(t, below);
    // t is negative or zero, so its sign goes and that of x comes.
    let y = s.abs(y);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}

/// `e^|x| / 2`, which overflows only where the hyperbolic functions do, and `|x|`.
fn half_exp(s: &mut Scope<'_>, x: Val) -> (Val, Val) {
    let size = s.abs(x);
    let limited = s.at_most(size, 711.0);
    let reduced = reduce(s, limited, 1.0, 2 * Format::of(DType::F64).bias - 1);
    let y = exp_reduced(s, reduced.r);
    (scale_twice(s, y, reduced.shifted), size)
}

/// In f64, within 2 ULP.
pub(super) fn cosh(s: &mut Scope<'_>, x: Val) -> Val {
    let (half, _) = half_exp(s, x);
    let quarter = s.number(x, 0.25);
    let other = s.div(quarter, half);
    s.add(half, other)
}

/// In f64, within 3 ULP.
pub(super) fn sinh(s: &mut Scope<'_>, x: Val) -> Val {
    let (half, size) = half_exp(s, x);
    let quarter = s.number(x, 0.25);
    let other = s.div(quarter, half);
    let far = s.sub(half, other);
    let z = s.mul(size, size);
    let tail = s.polynomial(z, &SINH);
    let cube = s.mul(z, size);
    let near = s.fma(tail, cube, size);
    let is_near = s.lt_k(size, 1.0);
    let y = s.select(is_near, near, far);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}

/// In f64, within 4 ULP. Past 2^28, `log(2 x)` is all there is.
pub(super) fn asinh(s: &mut Scope<'_>, x: Val) -> Val {
    let size = s.abs(x);
    let square = s.mul(size, size);
    let root = s.add_k(square, 1.0);
    let root = s.sqrt(root);
    let below = s.add_k(root, 1.0);
    let part = s.div(square, below);
    let near = s.add(size, part);
    let y = log_of_sum(s, size, near, size);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}

/// In f64, within 4 ULP; NaN below 1.
pub(super) fn acosh(s: &mut Scope<'_>, x: Val) -> Val {
    let t = s.add_k(x, -1.0);
    let double = s.add(t, t);
    let square = s.fma(t, t, double);
    let root = s.sqrt(square);
    let near = s.add(t, root);
    let y = log_of_sum(s, x, near, x);
    let outside = s.lt_k(x, 1.0);
    let nan = s.number(x, f64::NAN);
    s.select(outside, nan, y)
}

/// `ln(1 + near)`, or `ln(2 * size)` where `far` is past 2^28.
fn log_of_sum(s: &mut Scope<'_>, far: Val, near: Val, size: Val) -> Val {
    let limit = s.number(far, 268_435_456.0);
    let is_far = s.lt(limit, far);
    let less = s.add_k(size, -1.0);
    let arg = s.select(is_far, less, near);
    let y = log1p(s, arg);
    let extra = s.select_k(is_far, y, std::f64::consts::LN_2, 0.0);
    s.add(y, extra)
}

/// In f64, within 4 ULP: `log1p(2x / (1 - x)) / 2`.
pub(super) fn atanh(s: &mut Scope<'_>, x: Val) -> Val {
    let size = s.abs(x);
    let above = s.add(size, size);
    let one = s.number(x, 1.0);
    let below = s.apply(ScalarFn::Sub, &[one, size]);
    let ratio = s.div(above, below);
    let y = log1p(s, ratio);
    let y = s.mul_k(y, 0.5);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}
