//! What primitive scalar functions do to bits, exactly as generated code must do it.
//!
//! Values are bits zero-extended to 64. Integers wrap; division and shifts are total, as
//! [`ScalarFn`] says. Each float function is rounded once, to nearest even, with subnormals. Minimum
//! and maximum are those of IEEE 754-2019: NaN if either operand is, and -0 below +0.
//!
//! Whether a result is NaN is promised; *which* NaN is not, since processors differ in the sign and
//! payload they give. So results are compared with every NaN equal to every other, and a kernel
//! whose integer results depend on the bits of a computed NaN has no single meaning.

use crate::dtype::DType;
use crate::scalar::ScalarFn;

/// A function of up to three operands, by bits; those past its arity are ignored.
pub type MachineFn = fn(u64, u64, u64) -> u64;

/// Runs `$body` with `$T` the machine type of a [`DType`]; `$otherwise` for types that processors do
/// not compute with.
macro_rules! with_machine_type {
    ($dtype:expr, $T:ident => $body:expr, $otherwise:expr) => {
        match $dtype {
            DType::I8 => with_machine_type!(@ $T = i8, $body),
            DType::I16 => with_machine_type!(@ $T = i16, $body),
            DType::I32 => with_machine_type!(@ $T = i32, $body),
            DType::I64 => with_machine_type!(@ $T = i64, $body),
            DType::U8 => with_machine_type!(@ $T = u8, $body),
            DType::U16 => with_machine_type!(@ $T = u16, $body),
            DType::U32 => with_machine_type!(@ $T = u32, $body),
            DType::U64 => with_machine_type!(@ $T = u64, $body),
            DType::F32 => with_machine_type!(@ $T = f32, $body),
            DType::F64 => with_machine_type!(@ $T = f64, $body),
            DType::Bool | DType::F16 | DType::BF16 => $otherwise,
        }
    };
    (@ $T:ident = $t:ty, $body:expr) => {{
        type $T = $t;
        $body
    }};
}

/// A machine type as zero-extended bits.
trait Word: Copy {
    fn read(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! words {
    ($($t:ty, $unsigned:ty);*) => {$(
        impl Word for $t {
            fn read(bits: u64) -> $t {
                bits as $t
            }
            fn bits(self) -> u64 {
                u64::from(self as $unsigned)
            }
        }
    )*};
}
words!(i8, u8; i16, u16; i32, u32; i64, u64; u8, u8; u16, u16; u32, u32; u64, u64);

impl Word for f32 {
    fn read(bits: u64) -> f32 {
        f32::from_bits(bits as u32)
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Word for f64 {
    fn read(bits: u64) -> f64 {
        f64::from_bits(bits)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

macro_rules! compare {
    ($t:ty, $f:expr) => {
        match $f {
            ScalarFn::Eq => |a, b, _| u64::from(<$t>::read(a) == <$t>::read(b)),
            ScalarFn::Ne => |a, b, _| u64::from(<$t>::read(a) != <$t>::read(b)),
            ScalarFn::Lt => |a, b, _| u64::from(<$t>::read(a) < <$t>::read(b)),
            ScalarFn::Le => |a, b, _| u64::from(<$t>::read(a) <= <$t>::read(b)),
            ScalarFn::Gt => |a, b, _| u64::from(<$t>::read(a) > <$t>::read(b)),
            ScalarFn::Ge => |a, b, _| u64::from(<$t>::read(a) >= <$t>::read(b)),
            _ => return None,
        }
    };
}

macro_rules! int_fns {
    ($($name:ident, $t:ty, $abs:expr;)*) => {$(
        fn $name(f: ScalarFn) -> Option<MachineFn> {
            const WIDTH: u64 = <$t>::BITS as u64;
            Some(match f {
                ScalarFn::Add => |a, b, _| <$t>::read(a).wrapping_add(<$t>::read(b)).bits(),
                ScalarFn::Sub => |a, b, _| <$t>::read(a).wrapping_sub(<$t>::read(b)).bits(),
                ScalarFn::Mul => |a, b, _| <$t>::read(a).wrapping_mul(<$t>::read(b)).bits(),
                ScalarFn::Div => |a, b, _| match <$t>::read(b) {
                    0 => 0,
                    b => <$t>::read(a).wrapping_div(b).bits(),
                },
                ScalarFn::Min => |a, b, _| <$t>::read(a).min(<$t>::read(b)).bits(),
                ScalarFn::Max => |a, b, _| <$t>::read(a).max(<$t>::read(b)).bits(),
                ScalarFn::Neg => |a, _, _| <$t>::read(a).wrapping_neg().bits(),
                ScalarFn::Abs => |a, _, _| $abs(<$t>::read(a)).bits(),
                ScalarFn::And => |a, b, _| a & b,
                ScalarFn::Or => |a, b, _| a | b,
                ScalarFn::Xor => |a, b, _| a ^ b,
                ScalarFn::Not => |a, _, _| (!<$t>::read(a)).bits(),
                ScalarFn::Shl => |a, b, _| if b >= WIDTH { 0 } else { (<$t>::read(a) << b).bits() },
                ScalarFn::Shr => |a, b, _| match b >= WIDTH {
                    true => (<$t>::read(a) >> (WIDTH - 1) >> 1).bits(),
                    false => (<$t>::read(a) >> b).bits(),
                },
                _ => compare!($t, f),
            })
        }
    )*};
}
int_fns! {
    i8_fn, i8, i8::wrapping_abs;
    i16_fn, i16, i16::wrapping_abs;
    i32_fn, i32, i32::wrapping_abs;
    i64_fn, i64, i64::wrapping_abs;
    u8_fn, u8, std::convert::identity::<u8>;
    u16_fn, u16, std::convert::identity::<u16>;
    u32_fn, u32, std::convert::identity::<u32>;
    u64_fn, u64, std::convert::identity::<u64>;
}

macro_rules! float_fns {
    ($($name:ident, $t:ty;)*) => {$(
        fn $name(f: ScalarFn) -> Option<MachineFn> {
            fn min(a: $t, b: $t) -> $t {
                if a.is_nan() || b.is_nan() {
                    <$t>::NAN
                } else if a < b || (a == b && a.is_sign_negative()) {
                    a
                } else {
                    b
                }
            }
            Some(match f {
                ScalarFn::Add => |a, b, _| (<$t>::read(a) + <$t>::read(b)).bits(),
                ScalarFn::Sub => |a, b, _| (<$t>::read(a) - <$t>::read(b)).bits(),
                ScalarFn::Mul => |a, b, _| (<$t>::read(a) * <$t>::read(b)).bits(),
                ScalarFn::Div => |a, b, _| (<$t>::read(a) / <$t>::read(b)).bits(),
                ScalarFn::Min => |a, b, _| min(<$t>::read(a), <$t>::read(b)).bits(),
                ScalarFn::Max => |a, b, _| (-min(-<$t>::read(a), -<$t>::read(b))).bits(),
                ScalarFn::Fma => |a, b, c| <$t>::read(a).mul_add(<$t>::read(b), <$t>::read(c)).bits(),
                ScalarFn::Neg => |a, _, _| (-<$t>::read(a)).bits(),
                ScalarFn::Abs => |a, _, _| <$t>::read(a).abs().bits(),
                ScalarFn::Sqrt => |a, _, _| <$t>::read(a).sqrt().bits(),
                ScalarFn::Floor => |a, _, _| <$t>::read(a).floor().bits(),
                ScalarFn::Ceil => |a, _, _| <$t>::read(a).ceil().bits(),
                ScalarFn::Trunc => |a, _, _| <$t>::read(a).trunc().bits(),
                ScalarFn::Round => |a, _, _| <$t>::read(a).round_ties_even().bits(),
                _ => compare!($t, f),
            })
        }
    )*};
}
float_fns! {
    f32_fn, f32;
    f64_fn, f64;
}

fn bool_fn(f: ScalarFn) -> Option<MachineFn> {
    Some(match f {
        ScalarFn::And => |a, b, _| a & b,
        ScalarFn::Or => |a, b, _| a | b,
        ScalarFn::Xor => |a, b, _| a ^ b,
        ScalarFn::Not => |a, _, _| a ^ 1,
        _ => compare!(u8, f),
    })
}

fn cast_fn(from: DType, to: DType) -> Option<MachineFn> {
    if from == to {
        return Some(|a, _, _| a);
    }
    // A bool is the byte 0 or 1.
    let from = if from == DType::Bool { DType::U8 } else { from };
    if to == DType::Bool {
        return with_machine_type!(from, F => Some(|a, _, _| u64::from(F::read(a) != 0 as F)), None);
    }
    // `as` truncates and saturates floats, takes NaN to 0, wraps integers and rounds to nearest even.
    with_machine_type!(
        from,
        F => with_machine_type!(to, T => Some(|a, _, _| (F::read(a) as T).bits()), None),
        None
    )
}

/// The function `f` on operands of type `dtype` (of `select`: any), or `None` if it is not one that
/// machines have.
pub fn machine_fn(f: ScalarFn, dtype: DType) -> Option<MachineFn> {
    match f {
        ScalarFn::Select => return Some(|c, a, b| if c != 0 { a } else { b }),
        ScalarFn::Bitcast(_) => return Some(|a, _, _| a),
        ScalarFn::Cast(to) => return cast_fn(dtype, to),
        ScalarFn::Unpack2 => {
            return Some(|x, _, _| {
                let bytes = (x as u16).to_le_bytes().map(|byte| i16::from(byte as i8) as u16);
                (i32::from(bytes[0]) | i32::from(bytes[1]) << 16).bits()
            });
        }
        ScalarFn::Dot2 => {
            return Some(|a, b, _| {
                let product = |shift: u64| {
                    let half = |word: u64| i32::from((word >> shift) as i16);
                    half(a).wrapping_mul(half(b))
                };
                product(0).wrapping_add(product(16)).bits()
            });
        }
        ScalarFn::Dot4 => {
            return Some(|a, b, _| {
                let product = |at: u32| i32::from((a >> (8 * at)) as u8) * i32::from((b >> (8 * at)) as i8);
                (0..4).map(product).sum::<i32>().bits()
            });
        }
        _ if !f.is_primitive() => return None,
        _ => {}
    }
    match dtype {
        DType::Bool => bool_fn(f),
        DType::I8 => i8_fn(f),
        DType::I16 => i16_fn(f),
        DType::I32 => i32_fn(f),
        DType::I64 => i64_fn(f),
        DType::U8 => u8_fn(f),
        DType::U16 => u16_fn(f),
        DType::U32 => u32_fn(f),
        DType::U64 => u64_fn(f),
        DType::F32 => f32_fn(f),
        DType::F64 => f64_fn(f),
        DType::F16 | DType::BF16 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(f: ScalarFn, dtype: DType, args: [u64; 3]) -> u64 {
        machine_fn(f, dtype).expect("a machine function")(args[0], args[1], args[2])
    }

    #[test]
    fn integer_division_and_shifts_are_total() {
        let min = i32::MIN as u32 as u64;
        assert_eq!(call(ScalarFn::Div, DType::I32, [7, 0, 0]), 0);
        assert_eq!(call(ScalarFn::Div, DType::I32, [min, u32::MAX as u64, 0]), min);
        assert_eq!(call(ScalarFn::Shl, DType::U8, [255, 8, 0]), 0);
        assert_eq!(call(ScalarFn::Shr, DType::U8, [255, 8, 0]), 0);
        assert_eq!(call(ScalarFn::Shr, DType::I8, [0x80, 200, 0]), 0xff);
        assert_eq!(call(ScalarFn::Shr, DType::U64, [u64::MAX, 64, 0]), 0);
    }

    #[test]
    fn casts_saturate_and_wrap() {
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(call(ScalarFn::Cast(DType::I8), DType::F32, [bits(300.0), 0, 0]), 127);
        assert_eq!(call(ScalarFn::Cast(DType::U8), DType::F32, [bits(-3.0), 0, 0]), 0);
        assert_eq!(call(ScalarFn::Cast(DType::I32), DType::F32, [bits(f32::NAN), 0, 0]), 0);
        assert_eq!(call(ScalarFn::Cast(DType::Bool), DType::F32, [bits(f32::NAN), 0, 0]), 1);
        assert_eq!(call(ScalarFn::Cast(DType::U8), DType::I32, [0x1ff, 0, 0]), 0xff);
        assert_eq!(call(ScalarFn::Cast(DType::I64), DType::I8, [0xff, 0, 0]), u64::MAX);
    }

    #[test]
    fn minimum_is_that_of_ieee_754_2019() {
        let bits = |x: f64| x.to_bits();
        assert_eq!(call(ScalarFn::Min, DType::F64, [bits(0.0), bits(-0.0), 0]), bits(-0.0));
        assert_eq!(call(ScalarFn::Max, DType::F64, [bits(-0.0), bits(0.0), 0]), bits(0.0));
        assert!(f64::from_bits(call(ScalarFn::Max, DType::F64, [bits(1.0), bits(f64::NAN), 0])).is_nan());
    }
}
