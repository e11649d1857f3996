//! Operators that apply a scalar function element by element, operands broadcast.

use windlass_ir::{DType, ScalarFn, Value};

use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::{invalid, unsupported};
use crate::onnx::registry::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry("Abs", unary),
    entry("Neg", unary),
    entry("Sqrt", unary),
    entry("Floor", unary),
    entry("Ceil", unary),
    entry("Round", unary),
    entry("Exp", unary),
    entry("Log", unary),
    entry("Sin", unary),
    entry("Cos", unary),
    entry("Tan", unary),
    entry("Asin", unary),
    entry("Acos", unary),
    entry("Atan", unary),
    entry("Sinh", unary),
    entry("Cosh", unary),
    entry("Tanh", unary),
    entry("Asinh", unary),
    entry("Acosh", unary),
    entry("Atanh", unary),
    entry("Erf", unary),
    entry("Sigmoid", unary),
    entry("Sign", unary),
    entry("Relu", unary),
    entry("IsNaN", unary),
    entry("Not", unary),
    entry("BitwiseNot", unary),
    entry("Reciprocal", reciprocal),
    entry("IsInf", is_inf),
    entry("Add", binary),
    entry("Sub", binary),
    entry("Mul", binary),
    entry("Div", binary),
    entry("And", binary),
    entry("Or", binary),
    entry("Xor", binary),
    entry("BitwiseAnd", binary),
    entry("BitwiseOr", binary),
    entry("BitwiseXor", binary),
    entry("Equal", binary),
    entry("Greater", binary),
    entry("GreaterOrEqual", binary),
    entry("Less", binary),
    entry("LessOrEqual", binary),
    entry("Pow", pow),
    entry("Mod", modulo),
    entry("BitShift", bit_shift),
    entry("Where", where_),
    entry("Max", variadic),
    entry("Min", variadic),
    entry("Sum", variadic),
    entry("Mean", mean),
    entry("Clip", clip),
];

/// The scalar function of an operator that is nothing but that.
fn function(op_type: &str) -> Option<ScalarFn> {
    Some(match op_type {
        "Abs" => ScalarFn::Abs,
        "Neg" => ScalarFn::Neg,
        "Sqrt" => ScalarFn::Sqrt,
        "Floor" => ScalarFn::Floor,
        "Ceil" => ScalarFn::Ceil,
        "Round" => ScalarFn::Round,
        "Exp" => ScalarFn::Exp,
        "Log" => ScalarFn::Log,
        "Sin" => ScalarFn::Sin,
        "Cos" => ScalarFn::Cos,
        "Tan" => ScalarFn::Tan,
        "Asin" => ScalarFn::Asin,
        "Acos" => ScalarFn::Acos,
        "Atan" => ScalarFn::Atan,
        "Sinh" => ScalarFn::Sinh,
        "Cosh" => ScalarFn::Cosh,
        "Tanh" => ScalarFn::Tanh,
        "Asinh" => ScalarFn::Asinh,
        "Acosh" => ScalarFn::Acosh,
        "Atanh" => ScalarFn::Atanh,
        "Erf" => ScalarFn::Erf,
        "Sigmoid" => ScalarFn::Sigmoid,
        "Sign" => ScalarFn::Sign,
        "Relu" => ScalarFn::Relu,
        "IsNaN" => ScalarFn::IsNan,
        "Not" | "BitwiseNot" => ScalarFn::Not,
        "Add" | "Sum" => ScalarFn::Add,
        "Sub" => ScalarFn::Sub,
        "Mul" => ScalarFn::Mul,
        "Div" => ScalarFn::Div,
        "And" | "BitwiseAnd" => ScalarFn::And,
        "Or" | "BitwiseOr" => ScalarFn::Or,
        "Xor" | "BitwiseXor" => ScalarFn::Xor,
        "Equal" => ScalarFn::Eq,
        "Greater" => ScalarFn::Gt,
        "GreaterOrEqual" => ScalarFn::Ge,
        "Less" => ScalarFn::Lt,
        "LessOrEqual" => ScalarFn::Le,
        "Max" => ScalarFn::Max,
        "Min" => ScalarFn::Min,
        _ => return None,
    })
}

fn function_of(cx: &NodeCx<'_, '_>) -> Imported<ScalarFn> {
    match function(cx.op_type()) {
        Some(f) => Ok(f),
        None => unsupported!("operator `{}`", cx.op_type()),
    }
}

fn unary(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let (f, x) = (function_of(cx)?, cx.input(0)?);
    Ok(vec![cx.map(f, &[x])?])
}

fn reciprocal(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let x = cx.input(0)?;
    let one = cx.scalar_like(x, 1.0);
    Ok(vec![cx.map(ScalarFn::Div, &[one, x])?])
}

fn is_inf(cx: &mut NodeCx<'_, '_>) -> Imported {
    let x = cx.input(0)?;
    let (negative, positive) = (cx.bool_or("detect_negative", true)?, cx.bool_or("detect_positive", true)?);
    let size = if negative && positive { cx.map(ScalarFn::Abs, &[x])? } else { x };
    let limit = match (negative, positive) {
        (_, true) => f64::INFINITY,
        (true, false) => f64::NEG_INFINITY,
        // Nothing is to be detected, and nothing differs from itself and is infinite.
        (false, false) => {
            let never = cx.map(ScalarFn::Ne, &[x, x])?;
            let number = cx.map(ScalarFn::Eq, &[x, x])?;
            return Ok(vec![cx.map(ScalarFn::And, &[never, number])?]);
        }
    };
    Ok(vec![cx.map_constant(ScalarFn::Eq, size, limit)?])
}

/// The operands of a binary operator. Before operator set 7 the second broadcasts only if `broadcast`
/// says so, and then its dimensions stand at `axis` of the first's.
fn operands(cx: &mut NodeCx<'_, '_>) -> Imported<(Value, Value)> {
    let (a, mut b) = (cx.input(0)?, cx.input(1)?);
    if cx.version() < 7 {
        cx.ignore("consumed_inputs");
        let (broadcast, axis) = (cx.bool_or("broadcast", false)?, cx.int("axis")?);
        if let Some(axis) = axis.filter(|_| broadcast) {
            b = align(cx, a, b, axis)?;
        }
    }
    Ok((a, b))
}

/// Gives `b` dimensions of 1 at the end, so that its own stand at `axis` of those of `a`.
pub(super) fn align(cx: &mut NodeCx<'_, '_>, a: Value, b: Value, axis: i64) -> Imported<Value> {
    let (rank_a, rank_b) = (cx.rank(a), cx.rank(b));
    let start = if axis < 0 { axis.saturating_add(rank_a as i64) } else { axis };
    let after = (rank_a as i64).checked_sub(start).and_then(|n| n.checked_sub(rank_b as i64));
    let Some(after) = after.filter(|&n| start >= 0 && n >= 0) else {
        invalid!("attribute `axis` is {axis} for operands of rank {rank_a} and {rank_b}");
    };
    let mut shape = vec![0; rank_b];
    shape.resize(rank_b + after as usize, 1);
    if after == 0 { Ok(b) } else { cx.reshape(b, &shape, true) }
}

fn binary(cx: &mut NodeCx<'_, '_>) -> Imported {
    let f = function_of(cx)?;
    let (a, b) = operands(cx)?;
    Ok(vec![cx.map(f, &[a, b])?])
}

/// The result has the type of the base, whatever the exponent's.
fn pow(cx: &mut NodeCx<'_, '_>) -> Imported {
    let (base, exponent) = operands(cx)?;
    let (to, other) = (cx.dtype_of(base), cx.dtype_of(exponent));
    let computed = if other.is_float() && !to.is_float() { DType::F64 } else { to };
    let (base, exponent) = (cx.cast(base, computed)?, cx.cast(exponent, computed)?);
    let power = cx.map(ScalarFn::Pow, &[base, exponent])?;
    Ok(vec![cx.cast(power, to)?])
}

fn modulo(cx: &mut NodeCx<'_, '_>) -> Imported {
    let f = if cx.bool_or("fmod", false)? { ScalarFn::Rem } else { ScalarFn::Mod };
    let (a, b) = operands(cx)?;
    Ok(vec![cx.map(f, &[a, b])?])
}

fn bit_shift(cx: &mut NodeCx<'_, '_>) -> Imported {
    let f = match cx.string_or("direction", "")?.as_str() {
        "LEFT" => ScalarFn::Shl,
        "RIGHT" => ScalarFn::Shr,
        other => invalid!("attribute `direction` is `{other}`"),
    };
    let (a, b) = operands(cx)?;
    Ok(vec![cx.map(f, &[a, b])?])
}

fn where_(cx: &mut NodeCx<'_, '_>) -> Imported {
    let ins = cx.inputs()?;
    Ok(vec![cx.map(ScalarFn::Select, &ins)?])
}

fn variadic(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let (f, ins) = (function_of(cx)?, cx.inputs()?);
    let Some((&first, rest)) = ins.split_first() else { invalid!("takes at least one operand") };
    let mut acc = first;
    for &value in rest {
        acc = cx.map(f, &[acc, value])?;
    }
    Ok(vec![acc])
}

fn mean(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let ins = cx.inputs()?;
    let Some((&first, rest)) = ins.split_first() else { invalid!("takes at least one operand") };
    let to = cx.dtype_of(first);
    let mut acc = cx.cast(first, to.accumulator())?;
    for &value in rest {
        let value = cx.cast(value, to.accumulator())?;
        acc = cx.map(ScalarFn::Add, &[acc, value])?;
    }
    let mean = cx.map_constant(ScalarFn::Div, acc, ins.len() as f64)?;
    Ok(vec![cx.cast(mean, to)?])
}

/// Bounds are attributes before operator set 11, then optional operands.
fn clip(cx: &mut NodeCx<'_, '_>) -> Imported {
    cx.ignore("consumed_inputs");
    let x = cx.input(0)?;
    let (low, high) = if cx.version() < 11 {
        let (low, high) = (cx.float("min")?, cx.float("max")?);
        (low.map(|low| cx.scalar_like(x, low)), high.map(|high| cx.scalar_like(x, high)))
    } else {
        (cx.optional(1), cx.optional(2))
    };
    Ok(vec![match (low, high) {
        (None, None) => x,
        (Some(low), None) => cx.map(ScalarFn::Max, &[x, low])?,
        (None, Some(high)) => cx.map(ScalarFn::Min, &[x, high])?,
        (Some(low), Some(high)) => cx.map(ScalarFn::Clamp, &[x, low, high])?,
    }])
}
