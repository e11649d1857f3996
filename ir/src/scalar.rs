//! Scalar functions: what one element of the result is, given one element of each operand.
//!
//! This one list serves both levels. In a graph, an [`crate::ops::Elementwise`] op applies a scalar
//! function over broadcast tensors; in loops, it is an instruction. The *meaning* stands in
//! `scalar/eval.rs` for the graph interpreter. Functions that no CPU has as an instruction
//! ([`ScalarFn::is_primitive`] is false) are expanded to ones it has by `loops/expand`, before
//! either the loop interpreter or an emitter sees them.

mod eval;

pub use eval::{Operand, eval};

use std::fmt;

use crate::dtype::DType;

/// How a scalar function's result type follows from its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeRule {
    /// Float operands of one type; result of that type.
    Float,
    /// Operands of one numeric type (not bool); result of that type.
    Number,
    /// Operands of one integer type or all bool; result of that type.
    Bits,
    /// Operands of one integer type; result of that type.
    Int,
    /// Operands of one type, any; bool result.
    Compare,
    /// A float operand; bool result.
    FloatTest,
    /// bool, then two of one type; result of that type.
    Select,
    /// Operands of i8 or of i16; a result of i16 or of i32.
    Halves,
    /// i32 operands; i32 result.
    Words,
    /// An i16 operand; i32 result.
    Bytes,
    /// Any operand; result of the type the function carries.
    Convert,
}

macro_rules! scalar_fns {
    ($($(#[$doc:meta])* $variant:ident $name:literal $arity:literal $rule:ident $class:ident;)*) => {
        /// A scalar function.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ScalarFn {
            $($(#[$doc])* $variant,)*
            /// Value conversion. Float to integer truncates and saturates, NaN becomes 0; integer to
            /// integer wraps; to bool is `x != 0`; to a narrower float rounds to nearest even.
            Cast(DType),
            /// The same bits as another type of the same size.
            Bitcast(DType),
        }

        impl ScalarFn {
            /// Every function but the two that carry a type.
            pub const PLAIN: &'static [ScalarFn] = &[$(ScalarFn::$variant,)*];

            /// Names of [`Self::PLAIN`] in order, then `cast` and `bitcast`.
            pub const NAMES: &'static [&'static str] = &[$($name,)* "cast", "bitcast"];

            /// The spelling in IR text, at both levels.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ScalarFn::$variant => $name,)*
                    ScalarFn::Cast(_) => "cast",
                    ScalarFn::Bitcast(_) => "bitcast",
                }
            }

            /// The number of operands.
            pub const fn arity(self) -> usize {
                match self {
                    $(ScalarFn::$variant => $arity,)*
                    ScalarFn::Cast(_) | ScalarFn::Bitcast(_) => 1,
                }
            }

            /// How the result type follows from the operands.
            pub const fn rule(self) -> TypeRule {
                match self {
                    $(ScalarFn::$variant => TypeRule::$rule,)*
                    ScalarFn::Cast(_) | ScalarFn::Bitcast(_) => TypeRule::Convert,
                }
            }

            /// Whether emitters implement it directly; the others are expanded to these first.
            pub const fn is_primitive(self) -> bool {
                match self {
                    $(ScalarFn::$variant => scalar_fns!(@$class),)*
                    ScalarFn::Cast(_) | ScalarFn::Bitcast(_) => true,
                }
            }
        }
    };
    (@machine) => { true };
    (@expanded) => { false };
}

scalar_fns! {
    /// `a + b`; integers wrap.
    Add "add" 2 Number machine;
    /// `a - b`; integers wrap.
    Sub "sub" 2 Number machine;
    /// `a * b`; integers wrap.
    Mul "mul" 2 Number machine;
    /// `a / b`; integers truncate, and `x / 0` is 0 and `MIN / -1` is MIN, so that it is total.
    Div "div" 2 Number machine;
    /// Remainder with the sign of the dividend (C's `fmod` and `%`); integer `x % 0` is 0.
    Rem "rem" 2 Number expanded;
    /// Remainder with the sign of the divisor (Python's `%`); integer `x mod 0` is 0.
    Mod "mod" 2 Number expanded;
    /// `a` to the power `b`; negative integer exponents give 0 unless `a` is 1 or -1.
    Pow "pow" 2 Number expanded;
    /// The smaller; NaN if either is NaN; -0 below +0.
    Min "min" 2 Number machine;
    /// The larger; NaN if either is NaN; +0 above -0.
    Max "max" 2 Number machine;
    /// `a * b + c`, rounded once.
    Fma "fma" 3 Float machine;
    /// `low` if `x < low`, then `high` if that is more: NaN stays, and a bound that is NaN limits nothing.
    Clamp "clamp" 3 Number expanded;
    /// `-x`; integers wrap.
    Neg "neg" 1 Number machine;
    /// `|x|`; integers wrap.
    Abs "abs" 1 Number machine;
    /// -1, 0 or 1 (-0 and NaN stay as they are).
    Sign "sign" 1 Number expanded;
    /// `max(x, 0)`; NaN stays NaN.
    Relu "relu" 1 Number expanded;
    /// Square root, correctly rounded.
    Sqrt "sqrt" 1 Float machine;
    /// Largest integer not above.
    Floor "floor" 1 Float machine;
    /// Smallest integer not below.
    Ceil "ceil" 1 Float machine;
    /// Towards zero.
    Trunc "trunc" 1 Float machine;
    /// Nearest integer, ties to even.
    Round "round" 1 Float machine;
    /// `e^x`.
    Exp "exp" 1 Float expanded;
    /// `e^x - 1` without cancellation near 0.
    Expm1 "expm1" 1 Float expanded;
    /// Natural logarithm.
    Log "log" 1 Float expanded;
    /// `ln(1 + x)` without cancellation near 0.
    Log1p "log1p" 1 Float expanded;
    /// Sine of radians.
    Sin "sin" 1 Float expanded;
    /// Cosine of radians.
    Cos "cos" 1 Float expanded;
    /// Tangent of radians.
    Tan "tan" 1 Float expanded;
    /// Inverse sine, in radians.
    Asin "asin" 1 Float expanded;
    /// Inverse cosine, in radians.
    Acos "acos" 1 Float expanded;
    /// Inverse tangent, in radians.
    Atan "atan" 1 Float expanded;
    /// Hyperbolic sine.
    Sinh "sinh" 1 Float expanded;
    /// Hyperbolic cosine.
    Cosh "cosh" 1 Float expanded;
    /// Hyperbolic tangent.
    Tanh "tanh" 1 Float expanded;
    /// Inverse hyperbolic sine.
    Asinh "asinh" 1 Float expanded;
    /// Inverse hyperbolic cosine.
    Acosh "acosh" 1 Float expanded;
    /// Inverse hyperbolic tangent.
    Atanh "atanh" 1 Float expanded;
    /// The error function.
    Erf "erf" 1 Float expanded;
    /// `1 / (1 + e^-x)`.
    Sigmoid "sigmoid" 1 Float expanded;
    /// Bitwise and; logical on bool.
    And "and" 2 Bits machine;
    /// Bitwise or; logical on bool.
    Or "or" 2 Bits machine;
    /// Bitwise exclusive or; logical on bool.
    Xor "xor" 2 Bits machine;
    /// Bitwise complement; logical on bool.
    Not "not" 1 Bits machine;
    /// Left shift; 0 once the count reaches the width.
    Shl "shl" 2 Int machine;
    /// Right shift, arithmetic if signed; 0 (or the sign) once the count reaches the width.
    Shr "shr" 2 Int machine;
    /// `a == b`.
    Eq "eq" 2 Compare machine;
    /// `a != b`.
    Ne "ne" 2 Compare machine;
    /// `a < b`.
    Lt "lt" 2 Compare machine;
    /// `a <= b`.
    Le "le" 2 Compare machine;
    /// `a > b`.
    Gt "gt" 2 Compare machine;
    /// `a >= b`.
    Ge "ge" 2 Compare machine;
    /// Whether `x` is NaN.
    IsNan "is_nan" 1 FloatTest expanded;
    /// `if c then a else b`; both are evaluated.
    Select "select" 3 Select machine;
    /// An integer of two halves, `a` the low one.
    Pack2 "pack2" 2 Halves expanded;
    /// A word whose halves are the two bytes of `x`, which are signed.
    Unpack2 "unpack2" 1 Bytes machine;
    /// The sum of the products of low halves and of high halves, which are signed; it wraps.
    Dot2 "dot2" 2 Words machine;
    /// The sum of the products of the four bytes of each, those of `a` unsigned and those of `b` signed.
    Dot4 "dot4" 2 Words machine;
}

impl ScalarFn {
    /// The function of that name; the two that carry a type carry `to`.
    pub fn from_name(name: &str, to: DType) -> Option<ScalarFn> {
        match name {
            "cast" => Some(ScalarFn::Cast(to)),
            "bitcast" => Some(ScalarFn::Bitcast(to)),
            _ => ScalarFn::PLAIN.iter().copied().find(|f| f.name() == name),
        }
    }

    /// The result type for operands of these types, or why they do not fit.
    pub fn result_type(self, ins: &[DType]) -> Result<DType, String> {
        if ins.len() != self.arity() {
            return Err(format!("{self} takes {} operands, found {}", self.arity(), ins.len()));
        }
        let all_same = |types: &[DType]| types.iter().all(|&t| t == types[0]);
        let require = |ok: bool, wanted: &str| match ok {
            true => Ok(()),
            false => {
                let found: Vec<_> = ins.iter().map(|t| t.name()).collect();
                Err(format!("{self} takes {wanted}, found {}", found.join(", ")))
            }
        };
        match self.rule() {
            TypeRule::Float => require(all_same(ins) && ins[0].is_float(), "floats of one type")?,
            TypeRule::Number => require(all_same(ins) && ins[0] != DType::Bool, "numbers of one type")?,
            TypeRule::Bits => require(all_same(ins) && !ins[0].is_float(), "integers of one type or bool")?,
            TypeRule::Int => require(all_same(ins) && ins[0].is_int(), "integers of one type")?,
            TypeRule::Compare => {
                require(all_same(ins), "operands of one type")?;
                return Ok(DType::Bool);
            }
            TypeRule::FloatTest => {
                require(ins[0].is_float(), "a float")?;
                return Ok(DType::Bool);
            }
            TypeRule::Select => {
                require(ins[0] == DType::Bool && ins[1] == ins[2], "bool and two of one type")?;
                return Ok(ins[1]);
            }
            TypeRule::Halves => {
                let halves = all_same(ins) && matches!(ins[0], DType::I8 | DType::I16);
                require(halves, "operands of i8 or of i16")?;
                return Ok(if ins[0] == DType::I8 { DType::I16 } else { DType::I32 });
            }
            TypeRule::Bytes => {
                require(ins[0] == DType::I16, "i16")?;
                return Ok(DType::I32);
            }
            TypeRule::Words => require(ins.iter().all(|&t| t == DType::I32), "i32")?,
            TypeRule::Convert => {
                return match self {
                    ScalarFn::Bitcast(to) => {
                        let fits = to.size() == ins[0].size() && to != DType::Bool && ins[0] != DType::Bool;
                        require(fits, "an operand as wide as its result")?;
                        Ok(to)
                    }
                    ScalarFn::Cast(to) => Ok(to),
                    _ => unreachable!("only cast and bitcast convert"),
                };
            }
        }
        Ok(ins[0])
    }
}

impl fmt::Display for ScalarFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
