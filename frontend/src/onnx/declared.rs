//! The types that a model declares for its values.

use std::collections::BTreeMap;

use windlass_ir::{Dim, Dims, Limits, TensorType};

use super::problem::{Problem, invalid, unsupported};
use super::proto::tensor_shape_proto::dimension;
use super::proto::{TypeProto, ValueInfoProto, type_proto};
use super::tensor;
use crate::error::Error;

/// Sizes that a model is imported for.
///
/// Most models can be imported for any sizes. Some operators are known only for given ones: a squeeze of whatever
/// axes have size 1, or an `If` whose branches differ in rank and whose condition is a question about sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// By the name of a dimension. One without a name in the model is called by its input and position, as `x.0`.
    pub dims: BTreeMap<String, usize>,
    /// By the name of an input, of all its dimensions.
    pub inputs: BTreeMap<String, Vec<usize>>,
}

impl Sizes {
    /// Whether none is given.
    pub fn is_empty(&self) -> bool {
        self.dims.is_empty() && self.inputs.is_empty()
    }

    /// With what the shapes of a graph's inputs say of dimensions.
    pub(super) fn completed(&self, inputs: &[ValueInfoProto], limits: &Limits) -> Result<Sizes, Error> {
        let declared = |input| Some((ValueInfoProto::name(input), declared_type(input, limits).ok()?));
        let inputs: Vec<(&str, TensorType)> = inputs.iter().filter_map(declared).collect();
        let has = |name: &str| inputs.iter().flat_map(|(_, ty)| &ty.dims).any(|dim| *dim == Dim::named(name));
        if let Some(dim) = self.dims.keys().find(|name| !has(name)) {
            return Err(Error::invalid("model", format!("has no dimension `{dim}`")));
        }
        let mut all = self.clone();
        for (input, ty) in &inputs {
            for (dim, &size) in ty.dims.iter().zip(self.inputs.get(*input).into_iter().flatten()) {
                if let Dim::Named(name) = dim {
                    all.dims.entry(name.to_string()).or_insert(size);
                }
            }
        }
        Ok(all)
    }

    /// The type of a graph's input, with the sizes that are given.
    pub(super) fn input_type(&self, input: &ValueInfoProto, limits: &Limits) -> Result<TensorType, Problem> {
        let ty = declared_type(input, limits)?;
        let size = |dim: &Dim| match dim {
            Dim::Named(name) => self.dims.get(&**name).map_or_else(|| dim.clone(), |&size| Dim::Fixed(size)),
            Dim::Fixed(_) | Dim::Unknown => dim.clone(),
        };
        let ty = TensorType::new(ty.dtype, ty.dims.iter().map(size));
        limits.check_type(&ty, || format!("input `{}`", input.name()))?;
        Ok(ty)
    }
}

/// The type a model declares for a value, if it is a tensor of known rank.
fn declared_type(value: &ValueInfoProto, limits: &Limits) -> Result<TensorType, Problem> {
    let (name, ty) = (value.name(), value.r#type.as_ref());
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
            // Some exporters write a question mark for every size that they do not know.
            Some(dimension::Value::DimParam(name)) if !matches!(name.as_str(), "" | "?") => Dim::named(name),
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
