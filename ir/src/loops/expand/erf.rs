//! `erf`: an odd polynomial up to 1, and from there 1 less the complement.
//!
//! In f32 the complement is `p(x)^-8` (the form of Abramowitz and Stegun 7.1.28, with coefficients of
//! our own); in f64 it is `e^(-x^2)` times a polynomial in `(x - 2) / (x + 2)`.

use super::Scope;
use super::exp::{Format, exp_reduced, power_of_two, reduce};
use crate::dtype::DType;
use crate::loops::Val;

/// `erf(x) / x` in `x^2` for `x <= 1`, within 4e-8.
const NEAR_F32: [f64; 6] = [
    1.1283791065216064,
    -0.37612324953079224,
    0.11280180513858795,
    -0.02671131305396557,
    0.004917553160339594,
    -0.0005631428794004023,
];

/// `erfc(x)^(-1/8)` for `1 <= x <= 3.95`, within what leaves `erf` 1.2e-8.
const FAR_F32: [f64; 8] = [
    0.9964868426322937,
    0.15921127796173096,
    0.0494157113134861,
    0.07373777776956558,
    -0.033032067120075226,
    0.01775115355849266,
    -0.004002249334007502,
    0.0005436750943772495,
];

/// `erf(x) / x` in `x^2` for `x <= 1`, within 7.3e-18.
const NEAR_F64: [f64; 12] = [
    1.1283791670955126,
    -0.3761263890318352,
    0.11283791670944185,
    -0.026866170643111482,
    0.005223977606118614,
    -0.000854832592932217,
    0.00012055293577152762,
    -1.4924712307185837e-05,
    1.6447131638251597e-06,
    -1.6206314289113782e-07,
    1.3710982748678367e-08,
    -7.779472948426816e-10,
];

/// `e^(x^2) erfc(x)` in `(x - 2) / (x + 2)` for `1 <= x <= 6`, within what leaves `erf` 4.3e-18.
const FAR_F64: [f64; 16] = [
    0.25539567631050575,
    -0.4271858474139583,
    0.2416581942424649,
    -0.07897858101576997,
    0.0037328924045428057,
    0.006997461743012143,
    -0.0008471432619706403,
    -0.000981977189500702,
    4.355588839764931e-05,
    0.00017436466490238316,
    2.7521126665389802e-05,
    -2.7619995191201174e-05,
    -1.3926977593975389e-05,
    1.6331828431637876e-06,
    3.5647686960489065e-06,
    5.289159669727873e-07,
];

/// The error function, within 3 ULP.
pub(super) fn erf(s: &mut Scope<'_>, x: Val) -> Val {
    let size = s.abs(x);
    let (near, far) = match s.dtype(x) {
        DType::F32 => {
            let size = s.at_most(size, 3.95);
            let z = s.mul(size, size);
            let near = s.polynomial(z, &NEAR_F32);
            let p = s.polynomial(size, &FAR_F32);
            let p = s.mul(p, p);
            let p = s.mul(p, p);
            let p = s.mul(p, p);
            let one = s.number(x, 1.0);
            let complement = s.div(one, p);
            (near, s.sub(one, complement))
        }
        _ => {
            let size = s.at_most(size, 6.0);
            let z = s.mul(size, size);
            let near = s.polynomial(z, &NEAR_F64);
            let above = s.add_k(size, -2.0);
            let below = s.add_k(size, 2.0);
            let t = s.div(above, below);
            let scaled = s.polynomial(t, &FAR_F64);
            let reduced = reduce(s, z, -1.0, Format::of(DType::F64).bias);
            let y = exp_reduced(s, reduced.r);
            let power = power_of_two(s, reduced.shifted);
            let y = s.mul(y, power);
            let complement = s.mul(scaled, y);
            let one = s.number(x, 1.0);
            (near, s.sub(one, complement))
        }
    };
    let near = s.mul(near, size);
    let is_near = s.lt_k(size, 1.0);
    let y = s.select(is_near, near, far);
    let sign = s.sign_bits(x);
    s.flip_sign(y, sign)
}
