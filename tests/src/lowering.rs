//! Holds an op's `lower` against its `eval`.
//!
//! Nests are interpreted as formulas, kernels by the loop interpreter and graphs node by node, so a
//! disagreement is the op's own and not a schedule's or an emitter's.

use windlass_ir::loops::interpret::{Region, run_kernel, run_program};
use windlass_ir::loops::{Native, Program, expand_kernel, interpret_nest};
use windlass_ir::ops::Lowered;
use windlass_ir::{Builder, Error, Op, Tensor, TensorType, Value, eval_op, interpret};
use windlass_passes::lower::{LowerOptions, lower};

use crate::bounds::unit_roundoff;

/// What an op lowered to, once it agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Smaller ops.
    Graph,
    /// A formula.
    Nest,
    /// Loops.
    Kernel,
    /// Loops, some run several times over.
    Rounds,
    /// Nothing: the interpreter runs it.
    Interpret,
}

/// A program of an op alone.
fn lower_alone(op: &Op, ins: &[TensorType]) -> Result<Program, Error> {
    let mut b = Builder::new("alone");
    let ins: Vec<Value> =
        ins.iter().enumerate().map(|(i, ty)| b.input(&format!("x{i}"), ty.clone())).collect();
    for (i, out) in b.push(op.clone(), &ins, None)?.into_iter().enumerate() {
        b.output(&format!("y{i}"), out);
    }
    lower(&b.finish()?, &LowerOptions::default())
}

/// Lowers an op for these operands and compares with its definition.
///
/// The op's late attributes must be known. Integers and data movement agree exactly, floats within
/// some units in the last place of the largest result.
pub fn check_lowering(op: &Op, ins: &[Tensor]) -> Result<Checked, String> {
    let expected = eval_op(op, ins)?;
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    let outs: Vec<TensorType> = expected.iter().map(Tensor::ty).collect();
    let lowered = op.lower(&types, &outs).map_err(|e| e.to_string())?;
    let (found, kind) = match lowered {
        Lowered::Graph(graph) => (interpret(&graph, ins), Checked::Graph),
        Lowered::Nest(nest) => (interpret_nest(&nest, ins), Checked::Nest),
        Lowered::Kernel(kernel) => {
            let mut results: Vec<Tensor> =
                outs.iter().map(|ty| Tensor::zeros(ty.dtype, &ty.shape())).collect();
            let mut regions: Vec<Region<'_>> = ins.iter().map(|t| Region::Read(t.bytes())).collect();
            regions.extend(results.iter_mut().map(|t| Region::Write(t.bytes_mut())));
            let ran = run_kernel(&expand_kernel(&kernel, Native::default()), &mut regions);
            drop(regions);
            (ran.map(|()| results), Checked::Kernel)
        }
        Lowered::Recurrence(_) | Lowered::Repeated(_) => {
            (lower_alone(op, &types).and_then(|p| run_program(&p, ins)), Checked::Rounds)
        }
        Lowered::Interpret => return Ok(Checked::Interpret),
    };
    let found = found.map_err(|e| e.to_string())?;
    if found.len() != expected.len() {
        return Err(format!("{} results, expected {}", found.len(), expected.len()));
    }
    // Where large operands cancel, what is left is as inexact as they are.
    let scale = ins.iter().filter(|t| t.dtype().is_float()).map(largest).fold(0.0, f64::max);
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        compare_scaled(found, expected, scale)
            .map_err(|message| format!("result {i} as {kind:?}: {message}"))?;
    }
    Ok(kind)
}

/// Fails unless two tensors agree: integers exactly, floats within 16 units in the last place of the
/// largest finite element, NaN with NaN and infinities with themselves.
pub fn compare(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    compare_scaled(found, expected, 0.0)
}

/// The largest finite magnitude.
fn largest(tensor: &Tensor) -> f64 {
    tensor.to_f64s().into_iter().filter(|x| x.is_finite()).fold(0.0, |m, x| x.abs().max(m))
}

/// [`compare`], floats as if the largest element were at least `scale`.
fn compare_scaled(found: &Tensor, expected: &Tensor, scale: f64) -> Result<(), String> {
    let largest = largest(expected).max(scale);
    compare_within(found, expected, 16.0 * unit_roundoff(expected.dtype()) * largest)
}

/// Fails unless two tensors agree: integers exactly, floats to within a distance.
pub fn compare_within(found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<(), String> {
    compare_elements(found, expected, &vec![tolerance; expected.len()])
}

/// Fails unless two tensors agree: integers exactly, floats to within a distance for each element, NaN
/// with NaN and infinities with themselves. Zeros of either sign are equal.
pub fn compare_elements(found: &Tensor, expected: &Tensor, tolerances: &[f64]) -> Result<(), String> {
    if found.ty() != expected.ty() {
        return Err(format!("found {}, expected {}", found.ty(), expected.ty()));
    }
    let dtype = expected.dtype();
    if !dtype.is_float() {
        let (found, expected) = (found.to_i128s(), expected.to_i128s());
        return match found.iter().zip(&expected).position(|(a, b)| a != b) {
            Some(i) => Err(format!("element {i} is {}, expected {}", found[i], expected[i])),
            None => Ok(()),
        };
    }
    let (found, expected) = (found.to_f64s(), expected.to_f64s());
    for (i, ((&a, &b), &tolerance)) in found.iter().zip(&expected).zip(tolerances).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance;
        if !same {
            return Err(format!("element {i} is {a:?}, expected {b:?} within {tolerance:e}"));
        }
    }
    Ok(())
}
