//! What scalar functions want.

use windlass_ir::{DType, Op, ScalarFn, TypeRule};

use super::{any, is_float, is_number};
use crate::generate::Precision::{Approximate, Exact};
use crate::generate::Wanted::New;
use crate::generate::values::Values;
use crate::generate::{Growing, Proposal, Wanted};

impl Growing<'_> {
    /// A scalar function over operands that broadcast, in a domain where it is smooth.
    pub(super) fn elementwise(&mut self, f: ScalarFn) -> Option<Proposal> {
        use ScalarFn as F;
        let filter: fn(DType) -> bool = match f.rule() {
            TypeRule::Float | TypeRule::FloatTest => is_float,
            TypeRule::Number => is_number,
            TypeRule::Bits => |d| !d.is_float(),
            TypeRule::Int => DType::is_int,
            TypeRule::Halves => |d| matches!(d, DType::I8 | DType::I16),
            TypeRule::Words => |d| d == DType::I32,
            TypeRule::Bytes => |d| d == DType::I16,
            TypeRule::Compare | TypeRule::Select | TypeRule::Convert => any,
        };
        let jumps = matches!(
            f,
            F::Floor | F::Ceil | F::Trunc | F::Round | F::Sign | F::Rem | F::Mod | F::Cast(_) | F::Bitcast(_)
        ) || f.rule() == TypeRule::Compare;
        // Which values each operand may have where the function is defined and not steep.
        let domain = |dtype: DType| -> [Values; 3] {
            let first = |values| [values, Values::Any, Values::Any];
            match f {
                F::Div | F::Rem | F::Mod if dtype.is_float() => {
                    [Values::Any, Values::Magnitude(0.5, 8.0), Values::Any]
                }
                F::Pow if dtype.is_float() => {
                    [Values::Within(0.5, 3.0), Values::Within(-2.0, 2.0), Values::Any]
                }
                F::Pow => [Values::Within(0.0, 4.0), Values::Within(0.0, 3.0), Values::Any],
                F::Sqrt => first(Values::Within(0.25, 64.0)),
                F::Exp | F::Expm1 | F::Sinh | F::Cosh => first(Values::Within(-4.0, 4.0)),
                F::Log => first(Values::Within(0.25, 64.0)),
                F::Log1p => first(Values::Within(-0.5, 64.0)),
                F::Tan => first(Values::Within(-1.25, 1.25)),
                F::Sin | F::Cos => first(Values::Within(-64.0, 64.0)),
                F::Asin | F::Acos | F::Atanh => first(Values::Within(-0.875, 0.875)),
                F::Acosh => first(Values::Within(1.25, 64.0)),
                // No rule gives the sign of a sum that is zero.
                F::Bitcast(_) if dtype.is_float() => first(Values::Magnitude(0.0625, 4096.0)),
                F::Clamp => [Values::Any, Values::Within(0.0, 1.0), Values::Within(1.0, 3.0)],
                F::Shl | F::Shr => [Values::Any, Values::Within(0.0, 5.0), Values::Any],
                _ => [Values::Any, Values::Any, Values::Any],
            }
        };
        let precision = match f {
            F::Exp
            | F::Expm1
            | F::Log
            | F::Log1p
            | F::Sin
            | F::Cos
            | F::Tan
            | F::Asin
            | F::Acos
            | F::Atan => Approximate,
            F::Sinh | F::Cosh | F::Tanh | F::Asinh | F::Acosh | F::Atanh | F::Erf | F::Sigmoid | F::Pow => {
                Approximate
            }
            F::Rem | F::Mod => Approximate,
            _ => Exact,
        };
        let (main, dtype, shape) = self.main(filter, 0, 4, jumps);
        let domain = domain(dtype);
        let fits = match &main {
            Wanted::Entry(i) => domain[0].hold(&self.entries[*i].tensor),
            New(..) | Wanted::Dequantized(..) | Wanted::InBlocks(..) => false,
        };
        let first = if fits { main } else { New(dtype, shape.clone(), domain[0].clone()) };
        let mut wanted = vec![first];
        for values in &domain[1..f.arity()] {
            wanted.push(New(dtype, self.broadcasting(&shape), values.clone()));
        }
        let f = match f {
            F::Cast(_) => F::Cast(self.dtype(any)),
            F::Bitcast(_) => F::Bitcast(self.dtype(|to| to.size() == dtype.size())),
            F::Select => {
                wanted[0] = New(DType::Bool, self.broadcasting(&shape), Values::Any);
                f
            }
            _ => f,
        };
        // The operands broadcast together in any order.
        if f.arity() == 2 && domain[0] == domain[1] && self.rng.flag() {
            wanted.swap(0, 1);
        }
        let op = Op::from(windlass_ir::ops::Elementwise { f });
        Some(Proposal { op, wanted, precision, jumps })
    }
}
