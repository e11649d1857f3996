//! `shape_of`: the sizes of a tensor as a tensor.

use super::{OpDef, arity};
use crate::dtype::DType;
use crate::error::Violation;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// The operand's sizes, i64 of shape `[rank]`. Known once dimensions are bound, so never lowered.
///
/// ONNX: `Shape` (with `start` and `end`, a slice of this).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShapeOf;

impl ShapeOf {
    /// The result for an operand of this shape.
    pub fn of(&self, shape: &[usize]) -> Tensor {
        Tensor::from_ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>())
    }
}

impl OpDef for ShapeOf {
    const NAMES: &'static [&'static str] = &["shape_of"];

    fn with_name(_: &str) -> ShapeOf {
        ShapeOf
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        Ok(vec![TensorType::fixed(DType::I64, &[ins[0].rank()])])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        Ok(vec![self.of(ins[0].shape())])
    }
}
