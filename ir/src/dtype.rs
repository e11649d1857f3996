//! Element types. [`DType`] names them at run time, [`Element`] ties each to its Rust type.
//!
//! The interpreter computes floats in f64 and integers in i128, then rounds or wraps once into the
//! element type. For f32, f16 and bf16 one add, subtract, multiply, divide or square root done in f64
//! and rounded once is the correctly rounded result (53 >= 2 * 24 + 2), so this loses nothing.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool,
    /// Signed 8 bits.
    I8,
    /// Signed 16 bits.
    I16,
    /// Signed 32 bits.
    I32,
    /// Signed 64 bits.
    I64,
    /// Unsigned 8 bits.
    U8,
    /// Unsigned 16 bits.
    U16,
    /// Unsigned 32 bits.
    U32,
    /// Unsigned 64 bits.
    U64,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl DType {
    /// Every element type, in declaration order.
    pub const ALL: [DType; 13] = [
        DType::Bool,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::Bool | DType::I8 | DType::U8 => 1,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::U32 | DType::F32 => 4,
            DType::I64 | DType::U64 | DType::F64 => 8,
        }
    }

    /// The spelling used in IR text.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    /// f16, bf16, f32 or f64.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// Any integer type; bool is not one.
    pub const fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool)
    }

    /// A signed integer.
    pub const fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64)
    }

    /// An unsigned integer.
    pub const fn is_unsigned_int(self) -> bool {
        matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64)
    }

    /// A float or a signed integer: something that can be negative.
    pub const fn is_signed(self) -> bool {
        self.is_float() || self.is_signed_int()
    }

    /// The type in which sums of this type are accumulated: f32 for f16 and bf16, else the type itself.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        }
    }

    /// The smallest and largest value of an integer type (bool: 0 and 1).
    ///
    /// # Panics
    /// For float types.
    pub const fn int_range(self) -> (i128, i128) {
        match self {
            DType::Bool => (0, 1),
            DType::I8 => (i8::MIN as i128, i8::MAX as i128),
            DType::I16 => (i16::MIN as i128, i16::MAX as i128),
            DType::I32 => (i32::MIN as i128, i32::MAX as i128),
            DType::I64 => (i64::MIN as i128, i64::MAX as i128),
            DType::U8 => (0, u8::MAX as i128),
            DType::U16 => (0, u16::MAX as i128),
            DType::U32 => (0, u32::MAX as i128),
            DType::U64 => (0, u64::MAX as i128),
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => panic!("not an integer type"),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or(())
    }
}

/// A bool as stored: one byte, 0 or 1. Reading treats any non-zero byte as true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Bool8(pub u8);

/// A Rust type that a tensor may hold.
pub trait Element: bytemuck::Pod + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Its run-time name.
    const DTYPE: DType;
    /// The value as f64 (64-bit integers round to nearest).
    fn to_f64(self) -> f64;
    /// The nearest value; integers truncate towards zero and saturate, NaN becomes 0; bool is `x != 0`.
    ///
    /// Call it as `<T as Element>::from_f64`: halves have a method of that name which rounds wrongly
    /// near ties.
    fn from_f64(x: f64) -> Self;
    /// The value as an integer; floats truncate and saturate.
    fn to_i128(self) -> i128;
    /// The value modulo 2^bits; floats round to nearest; bool is `x != 0`.
    fn from_i128(x: i128) -> Self;
}

macro_rules! int_elements {
    ($($t:ty => $d:ident),*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(x: f64) -> Self { x as $t }
            fn to_i128(self) -> i128 { i128::from(self) }
            fn from_i128(x: i128) -> Self { x as $t }
        }
    )*};
}
int_elements!(i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64);

impl Element for Bool8 {
    const DTYPE: DType = DType::Bool;
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self.0 != 0))
    }
    fn from_f64(x: f64) -> Self {
        Bool8(u8::from(x != 0.0))
    }
    fn to_i128(self) -> i128 {
        i128::from(self.0 != 0)
    }
    fn from_i128(x: i128) -> Self {
        Bool8(u8::from(x != 0))
    }
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_i128(self) -> i128 {
        self as i128
    }
    fn from_i128(x: i128) -> Self {
        x as f64
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_i128(self) -> i128 {
        self as i128
    }
    fn from_i128(x: i128) -> Self {
        x as f32
    }
}

macro_rules! half_elements {
    ($($t:ty => $d:ident),*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { self.to_f64() }
            fn from_f64(x: f64) -> Self { <$t>::from_f32(to_odd_f32(x)) }
            fn to_i128(self) -> i128 { self.to_f64() as i128 }
            fn from_i128(x: i128) -> Self { <Self as Element>::from_f64(x as f64) }
        }
    )*};
}
half_elements!(f16 => F16, bf16 => BF16);

/// An f64 as f32, with an odd last bit if that is inexact: then rounding to a half rounds the f64 once.
fn to_odd_f32(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return near;
    }
    let cut = if back.abs() > x.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(cut | 1)
}

/// Runs `$body` with `$T` bound to the Rust type of a [`DType`] known only at run time.
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Bool => {
                type $T = $crate::Bool8;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::I16 => {
                type $T = i16;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::U16 => {
                type $T = u16;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::DType::U64 => {
                type $T = u64;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}
