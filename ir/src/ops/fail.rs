//! `fail`: what cannot be computed.

use super::{OpDef, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::Violation;
use crate::require;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// A result that nothing can compute: to run it is an error, which says why. It stands for results of a branch that
/// does not fit the types around it, and may never be taken.
///
/// - (C1) sizes are not negative.
///
/// No ONNX operator: the importer of `If` makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fail {
    /// What the error says.
    pub message: String,
    /// The shape that the result would have.
    pub shape: Vec<i64>,
    /// Its element type.
    pub dtype: DType,
}

impl OpDef for Fail {
    const NAMES: &'static [&'static str] = &["fail"];

    fn with_name(_: &str) -> Fail {
        Fail { message: String::new(), shape: Vec::new(), dtype: DType::F32 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("message", Slot::Text(&mut self.message))?;
        codec.attr("shape", Slot::Ints(&mut self.shape))?;
        codec.attr("dtype", Slot::DType(&mut self.dtype))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 0..=0)?;
        let sizes: Option<Vec<usize>> = self.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        require!(sizes.is_some(), "C1", "{:?} has a negative size", self.shape);
        Ok(vec![TensorType::fixed(self.dtype, &sizes.unwrap_or_default())])
    }

    fn eval(&self, _: &[Tensor]) -> Result<Vec<Tensor>, String> {
        Err(self.message.clone())
    }

    /// So that nothing computes it before it is asked for.
    fn is_pure(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_a_type_and_no_value() {
        let op = Fail { message: "no".to_string(), shape: vec![2, 0], dtype: DType::I32 };
        assert_eq!(op.infer(&[]).unwrap()[0].to_string(), "i32[2, 0]");
        assert_eq!(op.eval(&[]).unwrap_err(), "no");
        assert_eq!(Fail { shape: vec![-1], ..op }.infer(&[]).unwrap_err().constraint, "C1");
    }
}
