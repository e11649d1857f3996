//! Tensors from and to `TensorProto`, in every encoding that ONNX allows.

use prost::bytes::Bytes;
use windlass_ir::{DType, Shape, Tensor, TensorType, with_element};

use super::external::Source;
use super::problem::{Problem, invalid, unsupported};
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{SparseTensorProto, TensorProto};

/// The element type of an ONNX number for one, if Windlass has it.
pub(crate) fn dtype(data_type: i32) -> Result<DType, Problem> {
    let Ok(known) = DataType::try_from(data_type) else {
        unsupported!("element type {data_type}");
    };
    Ok(match known {
        DataType::Bool => DType::Bool,
        DataType::Int8 => DType::I8,
        DataType::Int16 => DType::I16,
        DataType::Int32 => DType::I32,
        DataType::Int64 => DType::I64,
        DataType::Uint8 => DType::U8,
        DataType::Uint16 => DType::U16,
        DataType::Uint32 => DType::U32,
        DataType::Uint64 => DType::U64,
        DataType::Float16 => DType::F16,
        DataType::Bfloat16 => DType::BF16,
        DataType::Float => DType::F32,
        DataType::Double => DType::F64,
        DataType::Undefined => invalid!("no element type"),
        DataType::String
        | DataType::Complex64
        | DataType::Complex128
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0
        | DataType::Float6e2m3
        | DataType::Float6e3m2
        | DataType::Float4e2m1
        | DataType::Uint4
        | DataType::Int4
        | DataType::Uint2
        | DataType::Int2 => unsupported!("elements of type {}", known.as_str_name()),
    })
}

/// The ONNX number for an element type.
pub(crate) fn data_type(dtype: DType) -> i32 {
    let known = match dtype {
        DType::Bool => DataType::Bool,
        DType::I8 => DataType::Int8,
        DType::I16 => DataType::Int16,
        DType::I32 => DataType::Int32,
        DType::I64 => DataType::Int64,
        DType::U8 => DataType::Uint8,
        DType::U16 => DataType::Uint16,
        DType::U32 => DataType::Uint32,
        DType::U64 => DataType::Uint64,
        DType::F16 => DataType::Float16,
        DType::BF16 => DataType::Bfloat16,
        DType::F32 => DataType::Float,
        DType::F64 => DataType::Double,
    };
    known as i32
}

/// Sizes as ONNX writes them, within the limits for this element type.
pub(super) fn shape(name: &str, dims: &[i64], dtype: DType, source: &Source) -> Result<Shape, Problem> {
    let sizes: Option<Shape> = dims.iter().map(|&n| usize::try_from(n).ok()).collect();
    let Some(sizes) = sizes else { invalid!("sizes {dims:?}") };
    source.limits().check_type(&TensorType::fixed(dtype, &sizes), || format!("tensor `{name}`"))?;
    Ok(sizes)
}

/// The tensor that a message holds.
pub(crate) fn decode(proto: &TensorProto, source: &Source) -> Result<Tensor, Problem> {
    let dtype = dtype(proto.data_type())?;
    let shape = shape(proto.name(), &proto.dims, dtype, source)?;
    decode_as(proto, dtype, &shape, source)
}

/// The tensor of a type and a shape whose data a message holds.
pub(super) fn decode_as(
    proto: &TensorProto,
    dtype: DType,
    shape: &[usize],
    source: &Source,
) -> Result<Tensor, Problem> {
    if proto.segment.is_some() {
        unsupported!("a tensor in segments");
    }
    let len: usize = shape.iter().product();
    if proto.data_location() == DataLocation::External {
        let bytes = source.read(&proto.external_data, len * dtype.size())?;
        return from_raw(dtype, shape, &bytes);
    }
    match &proto.raw_data {
        Some(bytes) if !bytes.is_empty() || len == 0 => from_raw(dtype, shape, bytes),
        _ => from_fields(proto, dtype, shape),
    }
}

/// Tensors of as many bytes share those of the file; smaller ones are copied, so that they do not keep it.
const SHARED_BYTES: usize = 4096;

fn from_raw(dtype: DType, shape: &[usize], bytes: &Bytes) -> Result<Tensor, Problem> {
    let as_stored = dtype != DType::Bool && cfg!(target_endian = "little");
    let tensor = match as_stored && bytes.len() >= SHARED_BYTES {
        true => Tensor::from_shared(dtype, shape, bytes.clone()),
        false => Tensor::from_bytes(dtype, shape, bytes),
    };
    let Some(mut tensor) = tensor else {
        invalid!("{} bytes of data for {}", bytes.len(), TensorType::fixed(dtype, shape));
    };
    if dtype == DType::Bool && tensor.bytes().iter().fold(0, |all, byte| all | byte) > 1 {
        tensor.bytes_mut().iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    if cfg!(target_endian = "big") {
        tensor.bytes_mut().chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    Ok(tensor)
}

/// From the typed fields; which one holds a type is laid down by ONNX.
fn from_fields(proto: &TensorProto, dtype: DType, shape: &[usize]) -> Result<Tensor, Problem> {
    let len: usize = shape.iter().product();
    let check = |found: usize| match found == len {
        true => Ok(()),
        false => Err(Problem::Invalid(format!("{found} elements for {}", TensorType::fixed(dtype, shape)))),
    };
    let wide: Vec<i128> = match dtype {
        DType::F32 => {
            check(proto.float_data.len())?;
            return Ok(Tensor::new(shape, &proto.float_data));
        }
        DType::F64 => {
            check(proto.double_data.len())?;
            return Ok(Tensor::new(shape, &proto.double_data));
        }
        DType::I64 => {
            check(proto.int64_data.len())?;
            return Ok(Tensor::new(shape, &proto.int64_data));
        }
        DType::U32 | DType::U64 => proto.uint64_data.iter().map(|&x| i128::from(x)).collect(),
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::U8
        | DType::U16
        | DType::F16
        | DType::BF16 => proto.int32_data.iter().map(|&x| i128::from(x)).collect(),
    };
    check(wide.len())?;
    // Half floats stand as their bits.
    let stored = if dtype.is_float() { DType::U16 } else { dtype };
    let (low, high) = stored.int_range();
    if let Some(odd) = wide.iter().find(|x| dtype != DType::Bool && !(low..=high).contains(x)) {
        invalid!("{odd} is not a {dtype}");
    }
    let tensor = Tensor::from_i128s(stored, shape, &wide);
    match dtype == stored {
        true => Ok(tensor),
        false => Ok(Tensor::from_bytes(dtype, shape, tensor.bytes()).expect("the types are equally wide")),
    }
}

/// The dense tensor that a sparse message stands for.
pub(crate) fn decode_sparse(proto: &SparseTensorProto, source: &Source) -> Result<Tensor, Problem> {
    let (Some(values), Some(indices)) = (&proto.values, &proto.indices) else {
        invalid!("a sparse tensor without values or indices");
    };
    let name = values.name();
    let (values, indices) = (decode(values, source)?, decode(indices, source)?);
    let shape = shape(name, &proto.dims, values.dtype(), source)?;
    if indices.dtype() != DType::I64 || values.rank() != 1 {
        invalid!("a sparse tensor of values {} and indices {}", values.ty(), indices.ty());
    }
    let (count, len): (usize, usize) = (values.len(), shape.iter().product());
    let mut positions: Vec<usize> = Vec::with_capacity(count);
    let ints = indices.to_ints();
    match indices.shape() {
        [n] if *n == count => {
            positions.extend(ints.iter().map(|&i| usize::try_from(i).unwrap_or(usize::MAX)));
        }
        [n, rank] if *n == count && *rank == shape.len() && *rank > 0 => {
            for index in ints.chunks_exact(*rank) {
                let position = index.iter().zip(&shape).try_fold(0usize, |at, (&i, &size)| {
                    let i = usize::try_from(i).ok().filter(|&i| i < size)?;
                    Some(at * size + i)
                });
                positions.push(position.unwrap_or(usize::MAX));
            }
        }
        _ => invalid!("a sparse tensor of values {} and indices {}", values.ty(), indices.ty()),
    }
    if positions.iter().any(|&at| at >= len) || positions.windows(2).any(|w| w[0] >= w[1]) {
        invalid!("the indices of a sparse tensor are not ascending within {shape:?}");
    }
    let mut dense = Tensor::zeros(values.dtype(), &shape);
    with_element!(values.dtype(), T => {
        let to = dense.as_mut_slice::<T>();
        for (&at, &value) in positions.iter().zip(values.as_slice::<T>()) {
            to[at] = value;
        }
    });
    Ok(dense)
}

/// The message for a tensor, its data raw.
pub(crate) fn encode(tensor: &Tensor, name: &str) -> TensorProto {
    let mut bytes = tensor.bytes().to_vec();
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(tensor.dtype().size()).for_each(<[u8]>::reverse);
    }
    TensorProto {
        dims: tensor.shape().iter().map(|&n| n as i64).collect(),
        data_type: Some(data_type(tensor.dtype())),
        name: Some(name.to_string()),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    }
}
