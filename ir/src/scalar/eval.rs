//! The meaning of every scalar function, for the graph interpreter.
//!
//! Floats are computed in f64 and integers in i128; the caller rounds or wraps once into the
//! element type. (f64 results of transcendental functions are the reference only to within libm's
//! own error, a unit or so in the last place.)

use super::ScalarFn;
use crate::dtype::DType;

/// One operand or result, in the wide type of its kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A float of any width.
    Float(f64),
    /// An integer or bool (0 or 1).
    Int(i128),
}

impl Operand {
    fn float(self) -> f64 {
        match self {
            Operand::Float(x) => x,
            Operand::Int(x) => x as f64,
        }
    }

    fn int(self) -> i128 {
        match self {
            Operand::Float(x) => x as i128,
            Operand::Int(x) => x,
        }
    }
}

/// Applies `f` to operands of element type `dtype` (for `select` and casts: of the last operand).
///
/// The result is exact or an f64 approximation; it still has to be rounded to the result type.
pub fn eval(f: ScalarFn, dtype: DType, args: &[Operand]) -> Operand {
    if f == ScalarFn::Select {
        return if args[0].int() != 0 { args[1] } else { args[2] };
    }
    match args[0] {
        Operand::Float(_) => {
            let mut x = [0.0; 3];
            x.iter_mut().zip(args).for_each(|(x, arg)| *x = arg.float());
            eval_float(f, dtype, x)
        }
        Operand::Int(_) => {
            let mut x = [0; 3];
            x.iter_mut().zip(args).for_each(|(x, arg)| *x = arg.int());
            eval_int(f, dtype, x)
        }
    }
}

fn truth(b: bool) -> Operand {
    Operand::Int(i128::from(b))
}

fn eval_float(f: ScalarFn, dtype: DType, [a, b, c]: [f64; 3]) -> Operand {
    Operand::Float(match f {
        ScalarFn::Add => a + b,
        ScalarFn::Sub => a - b,
        ScalarFn::Mul => a * b,
        ScalarFn::Div => a / b,
        ScalarFn::Rem => a % b,
        ScalarFn::Mod => {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) {
                r + b
            } else if r == 0.0 {
                r.copysign(b)
            } else {
                r
            }
        }
        ScalarFn::Pow => libm::pow(a, b),
        ScalarFn::Min => min(a, b),
        ScalarFn::Max => max(a, b),
        ScalarFn::Fma => match dtype {
            // An f32 product is exact in f64 but the sum is not: fuse in the operand's own type.
            DType::F32 => f64::from((a as f32).mul_add(b as f32, c as f32)),
            _ => a.mul_add(b, c),
        },
        ScalarFn::Clamp => {
            let raised = if a < b { b } else { a };
            if raised > c { c } else { raised }
        }
        ScalarFn::Neg => -a,
        ScalarFn::Abs => a.abs(),
        ScalarFn::Sign => {
            if a > 0.0 {
                1.0
            } else if a < 0.0 {
                -1.0
            } else {
                a
            }
        }
        ScalarFn::Relu => max(a, 0.0),
        ScalarFn::Sqrt => a.sqrt(),
        ScalarFn::Floor => a.floor(),
        ScalarFn::Ceil => a.ceil(),
        ScalarFn::Trunc => a.trunc(),
        ScalarFn::Round => a.round_ties_even(),
        ScalarFn::Exp => libm::exp(a),
        ScalarFn::Expm1 => libm::expm1(a),
        ScalarFn::Log => libm::log(a),
        ScalarFn::Log1p => libm::log1p(a),
        ScalarFn::Sin => libm::sin(a),
        ScalarFn::Cos => libm::cos(a),
        ScalarFn::Tan => libm::tan(a),
        ScalarFn::Asin => libm::asin(a),
        ScalarFn::Acos => libm::acos(a),
        ScalarFn::Atan => libm::atan(a),
        ScalarFn::Sinh => libm::sinh(a),
        ScalarFn::Cosh => libm::cosh(a),
        ScalarFn::Tanh => libm::tanh(a),
        ScalarFn::Asinh => libm::asinh(a),
        // libm's is not NaN everywhere below 1.
        ScalarFn::Acosh if a < 1.0 => f64::NAN,
        ScalarFn::Acosh => libm::acosh(a),
        ScalarFn::Atanh => libm::atanh(a),
        ScalarFn::Erf => libm::erf(a),
        ScalarFn::Sigmoid if a < 0.0 => libm::exp(a) / (1.0 + libm::exp(a)),
        ScalarFn::Sigmoid => 1.0 / (1.0 + libm::exp(-a)),
        ScalarFn::Eq => return truth(a == b),
        ScalarFn::Ne => return truth(a != b),
        ScalarFn::Lt => return truth(a < b),
        ScalarFn::Le => return truth(a <= b),
        ScalarFn::Gt => return truth(a > b),
        ScalarFn::Ge => return truth(a >= b),
        ScalarFn::IsNan => return truth(a.is_nan()),
        ScalarFn::Cast(to) => {
            return match to {
                DType::Bool => truth(a != 0.0),
                _ if to.is_float() => Operand::Float(a),
                _ => {
                    let (low, high) = to.int_range();
                    Operand::Int((a as i128).clamp(low, high))
                }
            };
        }
        ScalarFn::And
        | ScalarFn::Or
        | ScalarFn::Xor
        | ScalarFn::Not
        | ScalarFn::Shl
        | ScalarFn::Shr
        | ScalarFn::Pack2
        | ScalarFn::Unpack2
        | ScalarFn::Dot2
        | ScalarFn::Dot4 => unreachable!("{f} is not defined on floats"),
        ScalarFn::Select | ScalarFn::Bitcast(_) => unreachable!("{f} is handled by the caller"),
    })
}

/// IEEE 754-2019 minimum: NaN if either is, and -0 below +0.
fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

/// IEEE 754-2019 maximum: NaN if either is, and +0 above -0.
fn max(a: f64, b: f64) -> f64 {
    -min(-a, -b)
}

fn eval_int(f: ScalarFn, dtype: DType, [a, b, c]: [i128; 3]) -> Operand {
    let bits = 8 * dtype.size() as i128;
    Operand::Int(match f {
        ScalarFn::Add => a + b,
        ScalarFn::Sub => a - b,
        ScalarFn::Mul => a.wrapping_mul(b),
        ScalarFn::Div => a.checked_div(b).unwrap_or(0),
        ScalarFn::Rem => a.checked_rem(b).unwrap_or(0),
        ScalarFn::Mod => match a.checked_rem(b) {
            None => 0,
            Some(r) if r != 0 && (r < 0) != (b < 0) => r + b,
            Some(r) => r,
        },
        ScalarFn::Pow => int_pow(a, b),
        ScalarFn::Min => a.min(b),
        ScalarFn::Max => a.max(b),
        ScalarFn::Clamp => a.max(b).min(c),
        ScalarFn::Neg => -a,
        ScalarFn::Abs => a.abs(),
        ScalarFn::Sign => a.signum(),
        ScalarFn::Relu => a.max(0),
        ScalarFn::And => a & b,
        ScalarFn::Or => a | b,
        ScalarFn::Xor => a ^ b,
        ScalarFn::Not if dtype == DType::Bool => i128::from(a == 0),
        ScalarFn::Not => !a,
        // Counts are read as unsigned, so a negative one is past the width.
        ScalarFn::Shl if b < 0 || b >= bits => 0,
        ScalarFn::Shl => a << b,
        ScalarFn::Shr if b < 0 || b >= bits => a >> 127,
        ScalarFn::Shr => a >> b,
        ScalarFn::Eq => i128::from(a == b),
        ScalarFn::Ne => i128::from(a != b),
        ScalarFn::Lt => i128::from(a < b),
        ScalarFn::Le => i128::from(a <= b),
        ScalarFn::Gt => i128::from(a > b),
        ScalarFn::Ge => i128::from(a >= b),
        ScalarFn::Pack2 => a.rem_euclid(1 << bits) + (b << bits),
        ScalarFn::Unpack2 => i128::from(a as i8).rem_euclid(1 << 16) + (a.div_euclid(1 << 8) << 16),
        ScalarFn::Dot4 => {
            let product = |at: i32| i128::from((a >> (8 * at)) as u8) * i128::from((b >> (8 * at)) as i8);
            (0..4).map(product).sum()
        }
        ScalarFn::Dot2 => {
            let halves = |word: i128| (i128::from(word as i16), word >> 16);
            let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
            a_low * b_low + a_high * b_high
        }
        ScalarFn::Cast(DType::Bool) => i128::from(a != 0),
        // The caller rounds an integer into a float type once.
        ScalarFn::Cast(_) => a,
        ScalarFn::Fma
        | ScalarFn::Sqrt
        | ScalarFn::Floor
        | ScalarFn::Ceil
        | ScalarFn::Trunc
        | ScalarFn::Round
        | ScalarFn::Exp
        | ScalarFn::Expm1
        | ScalarFn::Log
        | ScalarFn::Log1p
        | ScalarFn::Sin
        | ScalarFn::Cos
        | ScalarFn::Tan
        | ScalarFn::Asin
        | ScalarFn::Acos
        | ScalarFn::Atan
        | ScalarFn::Sinh
        | ScalarFn::Cosh
        | ScalarFn::Tanh
        | ScalarFn::Asinh
        | ScalarFn::Acosh
        | ScalarFn::Atanh
        | ScalarFn::Erf
        | ScalarFn::Sigmoid
        | ScalarFn::IsNan => unreachable!("{f} is not defined on integers"),
        ScalarFn::Select | ScalarFn::Bitcast(_) => unreachable!("{f} is handled by the caller"),
    })
}

/// Integer power modulo 2^128, by squaring.
fn int_pow(base: i128, exponent: i128) -> i128 {
    if exponent < 0 {
        return match base {
            1 => 1,
            -1 => 1 - 2 * (exponent & 1),
            _ => 0,
        };
    }
    let (mut result, mut square, mut rest) = (1i128, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        rest >>= 1;
    }
    result
}
