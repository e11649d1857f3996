//! The derivatives of scalar functions: what flows back to each operand, as a table.
//!
//! Where a function has a corner the choice is that of the large frameworks: 0 for `relu`, `abs` and `sign` at 0,
//! half for each of two equal operands of `min` and `max`, all to the operand of `clamp` at a bound.

use smallvec::smallvec;

use super::vjp::{Gradients, Vjp, VjpCx};
use crate::error::Error;
use crate::graph::Value;
use crate::scalar::ScalarFn::{self, *};

/// The gradients of the operands of an elementwise function.
pub(super) fn vjp(f: ScalarFn, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
    // The bits of a number do not follow it smoothly.
    if matches!(f, Bitcast(_)) {
        return Ok(Vjp::Undefined);
    }
    let g = cx.dout(0);
    let flows = match *cx.ins {
        [x] => smallvec![unary(f, cx, x, g)?],
        [x, y] => binary(f, cx, x, y, g)?,
        _ => ternary(f, cx, g)?,
    };
    let mut gradients = Gradients::new();
    for ((flow, &operand), &wanted) in flows.iter().zip(cx.ins).zip(cx.wanted) {
        let shape = cx.shape(operand);
        gradients.push(match flow {
            Some(flow) if wanted => Some(cx.sum_to(*flow, &shape)?),
            _ => None,
        });
    }
    Ok(Vjp::Gradients(gradients))
}

/// What flows back through `f(x)`; `None` for what is constant almost everywhere.
fn unary(f: ScalarFn, cx: &mut VjpCx<'_>, x: Value, g: Value) -> Result<Option<Value>, Error> {
    let y = cx.outs[0];
    let one = |cx: &mut VjpCx<'_>| cx.builder.scalar_like(x, 1.0);
    // c - v * v, and v * v + c.
    let minus_square = |cx: &mut VjpCx<'_>, v: Value| -> Result<Value, Error> {
        let (one, square) = (one(cx), cx.map(Mul, &[v, v])?);
        cx.map(Sub, &[one, square])
    };
    let plus_square = |cx: &mut VjpCx<'_>, v: Value| -> Result<Value, Error> {
        let square = cx.map(Mul, &[v, v])?;
        cx.with_constant(Add, square, 1.0)
    };
    // What g is multiplied by, or divided by.
    enum By {
        Factor(Value),
        Divisor(Value),
    }
    let by = match f {
        Neg => return Ok(Some(cx.map(Neg, &[g])?)),
        Relu => {
            let positive = cx.with_constant(Gt, x, 0.0)?;
            return Ok(Some(cx.masked(positive, g)?));
        }
        Cast(_) if cx.dtype(x).is_float() => return Ok(Some(cx.map(Cast(cx.dtype(x)), &[g])?)),
        Abs => By::Factor(cx.map(Sign, &[x])?),
        Sqrt => By::Divisor(cx.map(Add, &[y, y])?),
        Exp => By::Factor(y),
        Expm1 => By::Factor(cx.with_constant(Add, y, 1.0)?),
        Log => By::Divisor(x),
        Log1p => By::Divisor(cx.with_constant(Add, x, 1.0)?),
        Sin => By::Factor(cx.map(Cos, &[x])?),
        Cos => {
            let sine = cx.map(Sin, &[x])?;
            By::Factor(cx.map(Neg, &[sine])?)
        }
        Tan => By::Factor(plus_square(cx, y)?),
        Asin | Acos => {
            let square = minus_square(cx, x)?;
            let root = cx.map(Sqrt, &[square])?;
            By::Divisor(if f == Asin { root } else { cx.map(Neg, &[root])? })
        }
        Atan => By::Divisor(plus_square(cx, x)?),
        Sinh => By::Factor(cx.map(Cosh, &[x])?),
        Cosh => By::Factor(cx.map(Sinh, &[x])?),
        Tanh => By::Factor(minus_square(cx, y)?),
        Asinh => {
            let square = plus_square(cx, x)?;
            By::Divisor(cx.map(Sqrt, &[square])?)
        }
        Acosh => {
            // sqrt(x^2 - 1) without the cancellation near 1.
            let (below, above) = (cx.with_constant(Sub, x, 1.0)?, cx.with_constant(Add, x, 1.0)?);
            let product = cx.map(Mul, &[below, above])?;
            By::Divisor(cx.map(Sqrt, &[product])?)
        }
        Atanh => By::Divisor(minus_square(cx, x)?),
        Erf => {
            let square = cx.map(Mul, &[x, x])?;
            let negative = cx.map(Neg, &[square])?;
            let bell = cx.map(Exp, &[negative])?;
            By::Factor(cx.with_constant(Mul, bell, std::f64::consts::FRAC_2_SQRT_PI)?)
        }
        Sigmoid => {
            let one = one(cx);
            let rest = cx.map(Sub, &[one, y])?;
            By::Factor(cx.map(Mul, &[y, rest])?)
        }
        // Sign and the roundings are flat; the others have no float operand or no float result.
        _ => return Ok(None),
    };
    Ok(Some(match by {
        By::Factor(factor) => cx.map(Mul, &[g, factor])?,
        By::Divisor(divisor) => cx.map(Div, &[g, divisor])?,
    }))
}

/// What flows back through `f(a, b)`.
fn binary(f: ScalarFn, cx: &mut VjpCx<'_>, a: Value, b: Value, g: Value) -> Result<Gradients, Error> {
    let [wants_a, wants_b] = [cx.wanted[0], cx.wanted[1]];
    let y = cx.outs[0];
    let mut flows: Gradients = smallvec![None, None];
    match f {
        Add => flows = smallvec![Some(g), Some(g)],
        Sub => {
            flows[0] = Some(g);
            if wants_b {
                flows[1] = Some(cx.map(Neg, &[g])?);
            }
        }
        Mul => {
            if wants_a {
                flows[0] = Some(cx.map(Mul, &[g, b])?);
            }
            if wants_b {
                flows[1] = Some(cx.map(Mul, &[g, a])?);
            }
        }
        Div => {
            let quotient = cx.map(Div, &[g, b])?;
            flows[0] = Some(quotient);
            if wants_b {
                let product = cx.map(Mul, &[quotient, y])?;
                flows[1] = Some(cx.map(Neg, &[product])?);
            }
        }
        // a - b * trunc(a / b), a - b * floor(a / b): the rounded quotient is flat.
        Rem | Mod => {
            flows[0] = Some(g);
            if wants_b {
                let quotient = cx.map(Div, &[a, b])?;
                let whole = cx.map(if f == Rem { Trunc } else { Floor }, &[quotient])?;
                let product = cx.map(Mul, &[g, whole])?;
                flows[1] = Some(cx.map(Neg, &[product])?);
            }
        }
        Pow => {
            if wants_a {
                // b a^(b - 1), and 0 for an exponent of 0 whatever the base.
                let lower = cx.with_constant(Sub, b, 1.0)?;
                let power = cx.map(Pow, &[a, lower])?;
                let slope = cx.map(Mul, &[b, power])?;
                let nonzero = cx.with_constant(Ne, b, 0.0)?;
                let slope = cx.masked(nonzero, slope)?;
                flows[0] = Some(cx.map(Mul, &[g, slope])?);
            }
            if wants_b {
                // a^b ln a, and 0 for a base of 0.
                let logarithm = cx.map(Log, &[a])?;
                let slope = cx.map(Mul, &[y, logarithm])?;
                let nonzero = cx.with_constant(Ne, a, 0.0)?;
                let slope = cx.masked(nonzero, slope)?;
                flows[1] = Some(cx.map(Mul, &[g, slope])?);
            }
        }
        Min | Max => {
            let half = cx.with_constant(Mul, g, 0.5)?;
            let equal = cx.map(Eq, &[a, b])?;
            let shared = cx.masked(equal, half)?;
            for (i, wanted, chosen) in [(0, wants_a, [a, b]), (1, wants_b, [b, a])] {
                if wanted {
                    let wins = cx.map(if f == Min { Lt } else { Gt }, &chosen)?;
                    flows[i] = Some(cx.map(Select, &[wins, g, shared])?);
                }
            }
        }
        // Comparisons and integers.
        _ => {}
    }
    Ok(flows)
}

/// What flows back through a function of three operands.
fn ternary(f: ScalarFn, cx: &mut VjpCx<'_>, g: Value) -> Result<Gradients, Error> {
    let (a, b, c) = (cx.ins[0], cx.ins[1], cx.ins[2]);
    Ok(match f {
        Fma => smallvec![Some(cx.map(Mul, &[g, b])?), Some(cx.map(Mul, &[g, a])?), Some(g)],
        Select => {
            let zero = cx.builder.scalar_like(g, 0.0);
            let (yes, no) = (cx.map(Select, &[a, g, zero])?, cx.map(Select, &[a, zero, g])?);
            smallvec![None, Some(yes), Some(no)]
        }
        // low if a < low, then high if that is more.
        Clamp => {
            let below = cx.map(Lt, &[a, b])?;
            let raised = cx.map(Select, &[below, b, a])?;
            let above = cx.map(Gt, &[raised, c])?;
            let zero = cx.builder.scalar_like(g, 0.0);
            let under = cx.map(Select, &[above, zero, g])?;
            let inside = cx.map(Select, &[below, zero, under])?;
            let at_low = cx.map(Select, &[below, under, zero])?;
            let at_high = cx.map(Select, &[above, g, zero])?;
            smallvec![Some(inside), Some(at_low), Some(at_high)]
        }
        _ => smallvec![None, None, None],
    })
}
