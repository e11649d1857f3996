//! Algebra across scalar functions, and names for dimensions, for `simplify`.
//!
//! Only identities that hold for every value of the type, NaN, infinities and signed zeros included,
//! except that a power of a small integer becomes products, whose rounding differs within the bound
//! of `pow`.

use smallvec::smallvec;
use windlass_ir::graph::Values;
use windlass_ir::ops::{Elementwise, QuantizeLinear, Reshape};
use windlass_ir::{Builder, DType, Op, ScalarFn, Value};

use crate::error::Error;
use crate::permutation::Permutation;

/// A rule's name and the values that stand for the node's results.
pub type Replacement = (&'static str, Values);

/// Rewrites an application of a scalar function, if an identity holds.
pub fn algebra(b: &mut Builder, op: &Op, ins: &[Value]) -> Result<Option<Replacement>, Error> {
    if let Op::QuantizeLinear(quantize) = op {
        return saturated(b, quantize, ins);
    }
    let Op::Elementwise(Elementwise { f }) = op else { return as_reshape(b, op, ins) };
    // Whether a value is of the result's type.
    let is_alike = |b: &Builder, value: Value| -> Result<bool, Error> {
        let types: Vec<_> = ins.iter().map(|&v| b.ty(v)).collect();
        let infer = |violation| windlass_ir::Error::Infer { node: op.name().to_string(), violation };
        Ok(*b.ty(value) == op.infer(&types).map_err(infer)?[0])
    };
    let one = |rule, value: Value| Ok(Some((rule, smallvec![value])));
    if let Some(value) = neutral_operand(b, *f, ins)
        && is_alike(b, value)?
    {
        return one("neutral_operand", value);
    }
    if let Some((rule, value)) = inverse_pair(b, *f, ins) {
        return one(rule, value);
    }
    let applied = |b: &Builder, value: Value| match b.graph().def_node(value).map(|n| &*n.op) {
        Some(Op::Elementwise(Elementwise { f })) => Some(*f),
        _ => None,
    };
    match f {
        ScalarFn::Pow => {
            let (base, exponent) = (ins[0], uniform(b, ins[1]));
            let whole = is_alike(b, base)?;
            match exponent {
                Some(2.0) if whole => one("power", b.map(ScalarFn::Mul, &[base, base])?),
                Some(3.0) if whole => {
                    let square = b.map(ScalarFn::Mul, &[base, base])?;
                    one("power", b.map(ScalarFn::Mul, &[square, base])?)
                }
                _ => Ok(None),
            }
        }
        // Dividing by a power of two is multiplying by its reciprocal, exactly.
        ScalarFn::Div if b.ty(ins[0]).dtype.is_float() => {
            let Some(divisor) = b.graph().as_constant(ins[1]) else { return Ok(None) };
            let Some(value) = divisor.as_uniform_f64() else { return Ok(None) };
            let reciprocal = value.recip();
            let exponent = |x: f64| (x.to_bits() >> 52 & 0x7ff) as i64 - 1023;
            let is_power = value.to_bits() << 12 == 0 && exponent(value).abs() <= EXACT_EXPONENT;
            if !is_power || value == 1.0 {
                return Ok(None);
            }
            let shape = divisor.shape().to_vec();
            let values = vec![reciprocal; divisor.len()];
            let factor = b.constant(windlass_ir::Tensor::from_f64s(b.ty(ins[0]).dtype, &shape, &values));
            one("reciprocal", b.map(ScalarFn::Mul, &[ins[0], factor])?)
        }
        // a + (-b) = a - b and a - (-b) = a + b
        ScalarFn::Add if applied(b, ins[1]) == Some(ScalarFn::Neg) => {
            let negated = b.graph().def_node(ins[1]).map(|n| n.ins[0]).unwrap_or(ins[1]);
            one("negated_operand", b.map(ScalarFn::Sub, &[ins[0], negated])?)
        }
        ScalarFn::Sub if applied(b, ins[1]) == Some(ScalarFn::Neg) => {
            let negated = b.graph().def_node(ins[1]).map(|n| n.ins[0]).unwrap_or(ins[1]);
            one("negated_operand", b.map(ScalarFn::Add, &[ins[0], negated])?)
        }
        _ => Ok(None),
    }
}

/// What quantizing to unsigned integers cuts off below 0 anyway needs no `relu` before it.
fn saturated(b: &mut Builder, op: &QuantizeLinear, ins: &[Value]) -> Result<Option<Replacement>, Error> {
    let &[x, scale] = ins else { return Ok(None) };
    let positive = b.graph().as_constant(scale).is_some_and(|s| s.to_f64s().into_iter().all(|s| s > 0.0));
    match b.graph().def_node(x) {
        Some(data)
            if positive
                && op.to.is_unsigned_int()
                && matches!(*data.op, Op::Elementwise(Elementwise { f: ScalarFn::Relu })) =>
        {
            let x = data.ins[0];
            Ok(Some(("saturated", smallvec![b.push1(op.clone(), &[x, scale])?])))
        }
        _ => Ok(None),
    }
}

/// Ops that only rename dimensions become `reshape`, which composes with itself.
fn as_reshape(b: &mut Builder, op: &Op, ins: &[Value]) -> Result<Option<Replacement>, Error> {
    let renames = match op {
        Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => true,
        Op::Transpose(op) => {
            let ty = b.ty(ins[0]);
            op.perm(ty.rank()).into_iter().collect::<Permutation>().moves_nothing(&ty.dims)
        }
        _ => false,
    };
    if !renames {
        return Ok(None);
    }
    let types: Vec<_> = ins.iter().map(|&v| b.ty(v)).collect();
    match op.infer(&types).ok().and_then(|outs| outs[0].as_shape()) {
        Some(shape) => Ok(Some(("as_reshape", smallvec![b.push1(Reshape::to(&shape), &ins[..1])?]))),
        None => Ok(None),
    }
}

/// Powers of two up to this exponent have exact reciprocals in every float type, f16 included.
const EXACT_EXPONENT: i64 = 14;

/// The value all elements of a constant share.
fn uniform(b: &Builder, value: Value) -> Option<f64> {
    b.graph().as_constant(value)?.as_uniform_f64()
}

/// The operand that the result always equals, up to broadcasting.
fn neutral_operand(b: &Builder, f: ScalarFn, ins: &[Value]) -> Option<Value> {
    // x + 0.0 is not x where x is -0.0, but x + -0.0 is.
    let is_neutral = |value: Value, neutral: f64| {
        uniform(b, value)
            .is_some_and(|x| x == neutral && (b.ty(value).dtype.is_int() || x.to_bits() == neutral.to_bits()))
    };
    let (first, second) = (ins.first().copied()?, ins.get(1).copied());
    let either = |neutral: f64| {
        let second = second?;
        if is_neutral(second, neutral) {
            return Some(first);
        }
        is_neutral(first, neutral).then_some(second)
    };
    match f {
        ScalarFn::Add => either(-0.0),
        ScalarFn::Mul => either(1.0),
        ScalarFn::Sub => is_neutral(second?, 0.0).then_some(first),
        ScalarFn::Div | ScalarFn::Pow => is_neutral(second?, 1.0).then_some(first),
        ScalarFn::And if b.ty(first).dtype == DType::Bool => either(1.0),
        ScalarFn::Or | ScalarFn::Xor => either(0.0),
        ScalarFn::Shl | ScalarFn::Shr => is_neutral(second?, 0.0).then_some(first),
        ScalarFn::Min | ScalarFn::Max if Some(first) == second => Some(first),
        ScalarFn::Select => {
            let (yes, no) = (ins[1], ins[2]);
            if yes == no {
                return Some(yes);
            }
            uniform(b, first).map(|c| if c != 0.0 { yes } else { no })
        }
        _ => None,
    }
}

/// What undoes, or is undone by, the function applied just before.
fn inverse_pair(b: &Builder, f: ScalarFn, ins: &[Value]) -> Option<(&'static str, Value)> {
    let producer = b.graph().def_node(*ins.first()?)?;
    let Op::Elementwise(Elementwise { f: inner }) = *producer.op else { return None };
    let source = *producer.ins.first()?;
    match (f, inner) {
        (ScalarFn::Neg, ScalarFn::Neg) | (ScalarFn::Not, ScalarFn::Not) => Some(("involution", source)),
        (ScalarFn::Abs, ScalarFn::Abs)
        | (ScalarFn::Relu, ScalarFn::Relu)
        | (ScalarFn::Sign, ScalarFn::Sign)
        | (ScalarFn::Floor, ScalarFn::Floor)
        | (ScalarFn::Ceil, ScalarFn::Ceil)
        | (ScalarFn::Trunc, ScalarFn::Trunc)
        | (ScalarFn::Round, ScalarFn::Round) => Some(("idempotent", ins[0])),
        (ScalarFn::Cast(to), ScalarFn::Cast(through)) => {
            let from = b.ty(source).dtype;
            (from == to && holds(through, from)).then_some(("round_trip", source))
        }
        _ => None,
    }
}

/// Whether every value of `inner` survives a conversion to `outer` and back.
fn holds(outer: DType, inner: DType) -> bool {
    let float_bits = |d: DType| match d {
        DType::F64 => Some(53),
        DType::F32 => Some(24),
        DType::F16 => Some(11),
        DType::BF16 => Some(8),
        _ => None,
    };
    match (float_bits(outer), float_bits(inner)) {
        (Some(_), Some(_)) => match outer {
            DType::F64 => true,
            DType::F32 => inner != DType::F64,
            _ => outer == inner,
        },
        (None, Some(_)) => false,
        (Some(bits), None) => {
            let (low, high) = inner.int_range();
            // f16 overflows above 65504, which its 11 bits rule out before.
            low >= -(1i128 << bits) && high <= 1i128 << bits
        }
        (None, None) => {
            if inner == DType::Bool {
                return true;
            }
            // Integers wrap, so a round trip keeps the bits that the outer type has.
            outer != DType::Bool && outer.size() >= inner.size()
        }
    }
}
