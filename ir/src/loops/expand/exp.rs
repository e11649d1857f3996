//! `exp`, `expm1` and `sigmoid`.
//!
//! `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `n` is rounded by adding `1.5 * 2^(p-1)`, which leaves it in
//! the low bits of the sum, where shifts turn it into `2^n`. `e^r` is a polynomial. Results may be
//! subnormal or overflow, so `2^n` is applied as two factors, each of them normal.

use super::Scope;
use crate::dtype::DType;
use crate::loops::Val;

/// `(e^r - 1 - r) / r^2` on `|r| <= ln 2 / 2`, relative to `e^r` within 1.1e-7.
const EXP_F32: [f64; 4] =
    [0.49999240040779114, 0.16667118668556213, 0.04188936948776245, 0.00831203069537878];

/// The same within 3.6e-18.
pub(super) const EXP_F64: [f64; 10] = [
    0.5000000000000012,
    0.166666666666667,
    0.04166666666652186,
    0.008333333333307892,
    0.0013888888945574032,
    0.00019841269916108872,
    2.4801491259973885e-05,
    2.7557217301623317e-06,
    2.7630856475746974e-07,
    2.5117577286361012e-08,
];

/// `(e^r - 1 - r) / r^2` on `|r| <= ln 2 / 2`, within 1.5e-8 relative to `e^r - 1`.
const EXPM1_F32: [f64; 5] =
    [0.5, 0.1666654497385025, 0.041666291654109955, 0.008366347290575504, 0.0013946000253781676];

/// Numbers that describe a float type.
pub(super) struct Format {
    /// Explicit bits of the significand.
    pub fraction: u64,
    /// The exponent of 1.
    pub bias: u64,
    /// `1.5 * 2^fraction`: adding it rounds to an integer and leaves that in the low bits.
    pub magic: f64,
    /// `ln 2` as a number of this type and what that leaves.
    pub ln2: [f64; 2],
}

impl Format {
    pub fn of(dtype: DType) -> Format {
        match dtype {
            DType::F32 => Format {
                fraction: 23,
                bias: 127,
                magic: 12_582_912.0,
                ln2: [0.693_147_182_464_599_6, -1.904_654_212_125_934e-9],
            },
            _ => Format {
                fraction: 52,
                bias: 1023,
                magic: 6_755_399_441_055_744.0,
                ln2: [std::f64::consts::LN_2, 2.319_046_813_846_299_6e-17],
            },
        }
    }
}

/// `x = n ln 2 + r`: what [`reduce`] finds.
pub(super) struct Reduced {
    /// `n` plus the wanted offset, in the low bits of a float.
    pub shifted: Val,
    /// The rest, in `-ln 2 / 2 ..= ln 2 / 2`.
    pub r: Val,
}

/// Splits `scale * x` off multiples of `ln 2`; `x * scale` must be exact.
pub(super) fn reduce(s: &mut Scope<'_>, x: Val, scale: f64, offset: u64) -> Reduced {
    let format = Format::of(s.dtype(x));
    let magic = s.number(x, format.magic + offset as f64);
    let shifted = s.fma_k(x, scale * std::f64::consts::LOG2_E, magic);
    let n = s.sub(shifted, magic);
    let r = if scale == 1.0 { x } else { s.mul_k(x, scale) };
    let r = s.fma_k(n, -format.ln2[0], r);
    let r = s.fma_k(n, -format.ln2[1], r);
    Reduced { shifted, r }
}

/// `(e^r - 1 - r) / r^2`.
pub(super) fn tail(s: &mut Scope<'_>, r: Val) -> Val {
    match s.dtype(r) {
        DType::F32 => s.polynomial(r, &EXP_F32),
        _ => s.polynomial(r, &EXP_F64),
    }
}

/// `e^r` for a reduced `r`.
pub(super) fn exp_reduced(s: &mut Scope<'_>, r: Val) -> Val {
    let tail = tail(s, r);
    let one = s.number(r, 1.0);
    let slope = s.fma(tail, r, one);
    s.fma(slope, r, one)
}

/// `2^n * y`, for `n + 2 * bias` in the low bits of `shifted`.
pub(super) fn scale_twice(s: &mut Scope<'_>, y: Val, shifted: Val) -> Val {
    let dtype = s.dtype(y);
    let fraction = Format::of(dtype).fraction;
    let whole = s.bits_of(shifted);
    let half = s.shr_k(whole, 1);
    let other = s.sub(whole, half);
    let half = s.shl_k(half, fraction);
    let half = s.bitcast(half, dtype);
    let other = s.shl_k(other, fraction);
    let other = s.bitcast(other, dtype);
    let y = s.mul(y, half);
    s.mul(y, other)
}

/// `2^n`, for `n + bias` in the low bits of `shifted`, a normal number.
pub(super) fn power_of_two(s: &mut Scope<'_>, shifted: Val) -> Val {
    let dtype = s.dtype(shifted);
    let bits = s.bits_of(shifted);
    let bits = s.shl_k(bits, Format::of(dtype).fraction);
    s.bitcast(bits, dtype)
}

/// Below the logarithm of half the smallest subnormal, and above that of the largest number.
fn limits(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F32 => (-104.0, 89.0),
        _ => (-746.0, 710.0),
    }
}

/// `e^x` within 3 ULP in f32 and 2 in f64, subnormal results included.
pub(super) fn exp(s: &mut Scope<'_>, x: Val) -> Val {
    let (low, high) = limits(s.dtype(x));
    let x = s.at_most(x, high);
    let x = s.at_least(x, low);
    let reduced = reduce(s, x, 1.0, 2 * Format::of(s.dtype(x)).bias);
    let y = exp_reduced(s, reduced.r);
    scale_twice(s, y, reduced.shifted)
}

/// `1 / (1 + e^-x)` within 4 ULP.
///
/// It is `2^-k / (2^-k + 2^-k e^-x)`, with a `k` in the middle of the exponents that `e^-x` has before the result is 1 or
/// less than half the smallest subnormal: so `2^-k e^-x` is a normal number, made by one factor.
pub(super) fn sigmoid(s: &mut Scope<'_>, x: Val) -> Val {
    let (low, _) = limits(s.dtype(x));
    // From `high` on the result is 1: `e^-x` is less than half of what the numbers below 1 are apart.
    let (high, k) = match s.dtype(x) {
        DType::F32 => (17.4, 63),
        _ => (37.5, 540),
    };
    let limited = s.at_most(x, high);
    let limited = s.at_least(limited, low);
    let reduced = reduce(s, limited, -1.0, Format::of(s.dtype(x)).bias - k);
    let y = exp_reduced(s, reduced.r);
    let factor = power_of_two(s, reduced.shifted);
    let small = s.number(x, (-(k as f64)).exp2());
    let below = s.fma(y, factor, small);
    s.div(small, below)
}

/// `e^x - 1`, within 2 ULP.
///
/// `2^n (e^r - 1) + (2^n - 1)`, with half of `2^n` so that it does not overflow before the result.
pub(super) fn expm1(s: &mut Scope<'_>, x: Val) -> Val {
    let dtype = s.dtype(x);
    let (_, high) = limits(dtype);
    // Below it the result rounds to -1.
    let low = if dtype == DType::F32 { -18.0 } else { -40.0 };
    let limited = s.at_most(x, high);
    let limited = s.at_least(limited, low);
    let reduced = reduce(s, limited, 1.0, Format::of(dtype).bias - 1);
    let r = reduced.r;
    let tail = match dtype {
        DType::F32 => s.polynomial(r, &EXPM1_F32),
        _ => tail(s, r),
    };
    let square = s.mul(r, r);
    let small = s.fma(tail, square, r);
    let half = power_of_two(s, reduced.shifted);
    let rest = s.add_k(half, -0.5);
    let y = s.fma(half, small, rest);
    let y = s.mul_k(y, 2.0);
    // Keeps the sign of zero.
    let zero = s.eq_k(x, 0.0);
    s.select(zero, x, y)
}
