//! The values of data sets. A `.pb` file does not say which message it holds: the declared type does.

use std::io::Write;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;
use windlass_ir::{Limits, Tensor};

use crate::error::Error;
use crate::onnx::external::Source;
use crate::onnx::proto::{
    OptionalProto, SequenceProto, SparseTensorProto, TensorProto, TypeProto, optional_proto, sequence_proto,
    type_proto,
};
use crate::onnx::{read_file, tensor};

/// The declared kind of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tensor.
    Tensor,
    /// A sparse tensor; reads as the dense one.
    SparseTensor,
    /// A list.
    Sequence(Box<Kind>),
    /// Something or nothing.
    Optional(Box<Kind>),
    /// Anything else.
    Other,
}

impl Kind {
    pub(crate) fn of(ty: Option<&TypeProto>) -> Kind {
        let mut ty = ty;
        let mut wrappers: Vec<fn(Box<Kind>) -> Kind> = Vec::new();
        let mut kind = loop {
            match ty.and_then(|ty| ty.value.as_ref()) {
                Some(type_proto::Value::TensorType(_)) => break Kind::Tensor,
                Some(type_proto::Value::SparseTensorType(_)) => break Kind::SparseTensor,
                Some(type_proto::Value::SequenceType(inner)) => {
                    wrappers.push(Kind::Sequence);
                    ty = inner.elem_type.as_deref();
                }
                Some(type_proto::Value::OptionalType(inner)) => {
                    wrappers.push(Kind::Optional);
                    ty = inner.elem_type.as_deref();
                }
                Some(type_proto::Value::MapType(_) | type_proto::Value::OpaqueType(_)) | None => {
                    break Kind::Other;
                }
            }
        };
        while let Some(wrap) = wrappers.pop() {
            kind = wrap(Box::new(kind));
        }
        kind
    }
}

/// A value of a data set.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// A list.
    Sequence(Vec<Value>),
    /// Something or nothing.
    Optional(Option<Box<Value>>),
}

impl Value {
    /// The tensor, if it is one.
    pub fn into_tensor(self) -> Option<Tensor> {
        match self {
            Value::Tensor(tensor) => Some(tensor),
            Value::Sequence(_) | Value::Optional(_) => None,
        }
    }
}

fn parse<M: Message + Default>(path: &Path, bytes: Bytes) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::invalid(path.display().to_string(), error.to_string()))
}

/// Reads a value declared to be of a kind.
pub fn read_value(path: &Path, kind: &Kind, limits: &Limits) -> Result<Value, Error> {
    let bytes = read_file(path, limits, None)?;
    let source = Source::memory(limits, bytes.len() as u64);
    let subject = || path.display().to_string();
    let dense = |proto: &TensorProto| {
        tensor::decode(proto, &source).map(Value::Tensor).map_err(|problem| problem.within(subject()))
    };
    match kind {
        Kind::Tensor => dense(&parse::<TensorProto>(path, bytes)?),
        Kind::SparseTensor => tensor::decode_sparse(&parse::<SparseTensorProto>(path, bytes)?, &source)
            .map(Value::Tensor)
            .map_err(|problem| problem.within(subject())),
        Kind::Sequence(_) => sequence(&parse::<SequenceProto>(path, bytes)?, &source, &subject),
        Kind::Optional(_) => optional(&parse::<OptionalProto>(path, bytes)?, &source, &subject),
        Kind::Other => Err(Error::unsupported(subject(), "neither a tensor nor a sequence nor an optional")),
    }
}

// Protobuf's own limit on nesting bounds the recursion of these two.

fn sequence(proto: &SequenceProto, source: &Source, subject: &dyn Fn() -> String) -> Result<Value, Error> {
    use sequence_proto::DataType;
    let within = |problem: crate::onnx::problem::Problem| problem.within(subject());
    let tensors = |list: &[TensorProto]| {
        list.iter().map(|t| tensor::decode(t, source).map(Value::Tensor).map_err(within)).collect()
    };
    let values: Result<Vec<Value>, Error> = match DataType::try_from(proto.elem_type()) {
        Ok(DataType::Undefined) => Ok(Vec::new()),
        Ok(DataType::Tensor) => tensors(&proto.tensor_values),
        Ok(DataType::SparseTensor) => proto
            .sparse_tensor_values
            .iter()
            .map(|t| tensor::decode_sparse(t, source).map(Value::Tensor).map_err(within))
            .collect(),
        Ok(DataType::Sequence) => {
            proto.sequence_values.iter().map(|s| sequence(s, source, subject)).collect()
        }
        Ok(DataType::Optional) => {
            proto.optional_values.iter().map(|o| optional(o, source, subject)).collect()
        }
        Ok(DataType::Map) | Err(_) => Err(Error::unsupported(subject(), "a sequence of maps")),
    };
    Ok(Value::Sequence(values?))
}

fn optional(proto: &OptionalProto, source: &Source, subject: &dyn Fn() -> String) -> Result<Value, Error> {
    use optional_proto::DataType;
    let within = |problem: crate::onnx::problem::Problem| problem.within(subject());
    let inner: Option<Value> = match DataType::try_from(proto.elem_type()) {
        Ok(DataType::Undefined) => None,
        Ok(DataType::Tensor) => match &proto.tensor_value {
            Some(t) => Some(Value::Tensor(tensor::decode(t, source).map_err(within)?)),
            None => None,
        },
        Ok(DataType::SparseTensor) => match &proto.sparse_tensor_value {
            Some(t) => Some(Value::Tensor(tensor::decode_sparse(t, source).map_err(within)?)),
            None => None,
        },
        Ok(DataType::Sequence) => match &proto.sequence_value {
            Some(s) => Some(sequence(s, source, subject)?),
            None => None,
        },
        Ok(DataType::Optional) => match &proto.optional_value {
            Some(o) => Some(optional(o, source, subject)?),
            None => None,
        },
        Ok(DataType::Map) | Err(_) => return Err(Error::unsupported(subject(), "an optional map")),
    };
    Ok(Value::Optional(inner.map(Box::new)))
}

/// Reads a file that holds a `TensorProto`.
pub fn read_tensor(path: &Path, limits: &Limits) -> Result<Tensor, Error> {
    let value = read_value(path, &Kind::Tensor, limits)?;
    value.into_tensor().ok_or_else(|| Error::invalid(path.display().to_string(), "holds no tensor"))
}

/// Writes a tensor as a `TensorProto`. The file appears whole or not at all.
pub fn write_tensor(path: &Path, name: &str, value: &Tensor) -> Result<(), Error> {
    write_whole(path, &tensor::encode(value, name).encode_to_vec())
}

/// Writes a file that appears whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // As files usually are: for everyone, less what the process masks. A temporary file's own are secret.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(Error::file(path))?;
    file.write_all(bytes).map_err(Error::file(path))?;
    file.persist(path).map_err(|error| Error::file(path)(error.error))?;
    Ok(())
}
