//! Scalar functions as ONNX operators.

use windlass_ir::{DType, ScalarFn, Tensor};

use super::{Exporter, int};
use crate::onnx::tensor;

/// The operator that is this function for operands of `dtype`, if there is one.
fn operator(f: ScalarFn, dtype: DType) -> Option<&'static str> {
    let is_bool = dtype == DType::Bool;
    Some(match f {
        ScalarFn::Add => "Add",
        ScalarFn::Sub => "Sub",
        ScalarFn::Mul => "Mul",
        ScalarFn::Div => "Div",
        ScalarFn::Pow => "Pow",
        ScalarFn::Min => "Min",
        ScalarFn::Max => "Max",
        ScalarFn::Neg => "Neg",
        ScalarFn::Abs => "Abs",
        ScalarFn::Sign => "Sign",
        ScalarFn::Relu => "Relu",
        ScalarFn::Sqrt => "Sqrt",
        ScalarFn::Floor => "Floor",
        ScalarFn::Ceil => "Ceil",
        ScalarFn::Round => "Round",
        ScalarFn::Exp => "Exp",
        ScalarFn::Log => "Log",
        ScalarFn::Sin => "Sin",
        ScalarFn::Cos => "Cos",
        ScalarFn::Tan => "Tan",
        ScalarFn::Asin => "Asin",
        ScalarFn::Acos => "Acos",
        ScalarFn::Atan => "Atan",
        ScalarFn::Sinh => "Sinh",
        ScalarFn::Cosh => "Cosh",
        ScalarFn::Tanh => "Tanh",
        ScalarFn::Asinh => "Asinh",
        ScalarFn::Acosh => "Acosh",
        ScalarFn::Atanh => "Atanh",
        ScalarFn::Erf => "Erf",
        ScalarFn::Sigmoid => "Sigmoid",
        ScalarFn::And => {
            if is_bool {
                "And"
            } else {
                "BitwiseAnd"
            }
        }
        ScalarFn::Or => {
            if is_bool {
                "Or"
            } else {
                "BitwiseOr"
            }
        }
        ScalarFn::Xor => {
            if is_bool {
                "Xor"
            } else {
                "BitwiseXor"
            }
        }
        ScalarFn::Not => {
            if is_bool {
                "Not"
            } else {
                "BitwiseNot"
            }
        }
        ScalarFn::Eq => "Equal",
        ScalarFn::Lt => "Less",
        ScalarFn::Le => "LessOrEqual",
        ScalarFn::Gt => "Greater",
        ScalarFn::Ge => "GreaterOrEqual",
        ScalarFn::IsNan => "IsNaN",
        ScalarFn::Select => "Where",
        ScalarFn::Rem
        | ScalarFn::Mod
        | ScalarFn::Fma
        | ScalarFn::Clamp
        | ScalarFn::Trunc
        | ScalarFn::Expm1
        | ScalarFn::Log1p
        | ScalarFn::Shl
        | ScalarFn::Shr
        | ScalarFn::Ne
        | ScalarFn::Pack2
        | ScalarFn::Unpack2
        | ScalarFn::Dot2
        | ScalarFn::Dot4
        | ScalarFn::Cast(_)
        | ScalarFn::Bitcast(_) => return None,
    })
}

/// Writes a scalar function; those without an operator as a few.
pub(super) fn export_scalar(
    x: &mut Exporter<'_>,
    f: ScalarFn,
    dtype: DType,
    ins: Vec<String>,
    outs: Vec<String>,
) -> Result<(), String> {
    if let Some(operator) = operator(f, dtype) {
        x.node(operator, ins, outs, Vec::new());
        return Ok(());
    }
    match f {
        ScalarFn::Cast(to) => x.node("Cast", ins, outs, vec![int("to", tensor::data_type(to).into())]),
        ScalarFn::Rem => x.node("Mod", ins, outs, vec![int("fmod", 1)]),
        ScalarFn::Mod if dtype.is_int() => x.node("Mod", ins, outs, Vec::new()),
        ScalarFn::Shl | ScalarFn::Shr if dtype.is_unsigned_int() => {
            let direction = if f == ScalarFn::Shl { "LEFT" } else { "RIGHT" };
            x.node("BitShift", ins, outs, vec![super::text("direction", direction)]);
        }
        ScalarFn::Ne => {
            let equal = x.apply("Equal", ins, Vec::new());
            x.node("Not", vec![equal], outs, Vec::new());
        }
        ScalarFn::Fma => {
            let product = x.apply("Mul", ins[..2].to_vec(), Vec::new());
            x.node("Add", vec![product, ins[2].clone()], outs, Vec::new());
        }
        ScalarFn::Clamp => {
            let raised = x.apply("Max", ins[..2].to_vec(), Vec::new());
            x.node("Min", vec![raised, ins[2].clone()], outs, Vec::new());
        }
        ScalarFn::Expm1 | ScalarFn::Log1p => {
            let one = x.initializer(&Tensor::from_f64s(dtype, &[], &[1.0]));
            if f == ScalarFn::Expm1 {
                let grown = x.apply("Exp", ins, Vec::new());
                x.node("Sub", vec![grown, one], outs, Vec::new());
            } else {
                let raised = x.apply("Add", vec![ins[0].clone(), one], Vec::new());
                x.node("Log", vec![raised], outs, Vec::new());
            }
        }
        ScalarFn::Trunc => {
            let size = x.apply("Abs", ins.clone(), Vec::new());
            let whole = x.apply("Floor", vec![size], Vec::new());
            let sign = x.apply("Sign", ins, Vec::new());
            x.node("Mul", vec![whole, sign], outs, Vec::new());
        }
        _ => return Err(format!("ONNX has no `{f}` of {dtype}")),
    }
    Ok(())
}
