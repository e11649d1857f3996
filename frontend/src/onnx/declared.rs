//! The types that a model declares for its values.

use windlass_ir::{Dim, Dims, Limits, TensorType};

use super::problem::{Problem, invalid, unsupported};
use super::proto::tensor_shape_proto::dimension;
use super::proto::{TypeProto, type_proto};
use super::tensor;

/// The type a model declares for a value, if it is a tensor of known rank.
pub(crate) fn input_type(name: &str, ty: Option<&TypeProto>, limits: &Limits) -> Result<TensorType, Problem> {
    let tensor = match ty.and_then(|ty| ty.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor,
        Some(type_proto::Value::SequenceType(_)) => unsupported!("a sequence"),
        Some(type_proto::Value::OptionalType(_)) => unsupported!("an optional value"),
        Some(type_proto::Value::MapType(_)) => unsupported!("a map"),
        Some(type_proto::Value::SparseTensorType(_)) => unsupported!("a sparse tensor"),
        Some(type_proto::Value::OpaqueType(_)) => unsupported!("an opaque value"),
        None => invalid!("no type"),
    };
    let dtype = tensor::dtype(tensor.elem_type())?;
    let Some(shape) = &tensor.shape else { unsupported!("no shape, so its rank is not known") };
    // A size without a name gets one, so that it can be given a size when the graph is bound.
    let unnamed = |i: usize| Dim::named(&format!("{name}.{i}"));
    let dims: Dims = shape
        .dim
        .iter()
        .enumerate()
        .map(|(i, dim)| match &dim.value {
            Some(dimension::Value::DimValue(n)) => {
                usize::try_from(*n).map_or_else(|_| unnamed(i), Dim::Fixed)
            }
            Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::named(name),
            Some(dimension::Value::DimParam(_)) | None => unnamed(i),
        })
        .collect();
    let ty = TensorType { dtype, dims };
    limits.check_type(&ty, || format!("input `{name}`"))?;
    Ok(ty)
}

/// The rank that a model declares for a value, if it does.
pub(crate) fn declared_rank(ty: Option<&TypeProto>) -> Option<usize> {
    match ty.and_then(|ty| ty.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor.shape.as_ref().map(|shape| shape.dim.len()),
        _ => None,
    }
}

/// Fails if a result is not of the type that the model declares for it.
pub(super) fn check_declared(declared: Option<&TypeProto>, found: &TensorType) -> Result<(), Problem> {
    if let Some(type_proto::Value::TensorType(tensor)) = declared.and_then(|ty| ty.value.as_ref())
        && tensor.elem_type() != 0
    {
        let declared = tensor::dtype(tensor.elem_type())?;
        if declared != found.dtype {
            invalid!("is declared to hold {declared}, but is {found}");
        }
    }
    Ok(())
}
