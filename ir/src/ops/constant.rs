//! `constant`: a tensor that is part of the graph.

use super::{Lowered, OpDef, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::tensor::Tensor;
use crate::types::TensorType;

/// A tensor that is part of the graph; shared, never copied.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// The tensor.
    pub value: Tensor,
}

impl OpDef for Constant {
    const NAMES: &'static [&'static str] = &["constant"];

    fn with_name(_: &str) -> Constant {
        Constant { value: Tensor::zeros(DType::F32, &[]) }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("value", Slot::Tensor(&mut self.value))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 0..=0)?;
        Ok(vec![self.value.ty()])
    }

    fn eval(&self, _: &[Tensor]) -> Result<Vec<Tensor>, String> {
        Ok(vec![self.value.clone()])
    }

    /// Constants are placed in memory by the compiler and never reach lowering.
    fn lower(&self, _: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        Ok(Lowered::Interpret)
    }
}
