//! Integers of 4 bits, two to a byte, the first in the low bits.
//!
//! No element type of the IR is that small. A tensor of them is its bytes and the operations that take them apart, so
//! that weights stay as small as they are in the file until they are laid out for the product that reads them.

use windlass_ir::ops::{Reshape, Slice};
use windlass_ir::{Builder, DType, Error, Late, ScalarFn, Shape, Tensor, Value};

use super::external::Source;
use super::problem::Problem;
use super::proto::TensorProto;
use super::proto::tensor_proto::DataType;
use super::tensor;

/// A tensor of integers of 4 bits.
pub(crate) struct FourBits {
    /// Its elements in row-major order, two to a byte.
    bytes: Tensor,
    shape: Shape,
    signed: bool,
}

impl FourBits {
    /// The tensor that a message holds, if its elements have 4 bits.
    pub fn decode(proto: &TensorProto, source: &Source) -> Result<Option<FourBits>, Problem> {
        let signed = match DataType::try_from(proto.data_type()) {
            Ok(DataType::Int4) => true,
            Ok(DataType::Uint4) => false,
            _ => return Ok(None),
        };
        let shape = tensor::shape(proto.name(), &proto.dims, DType::U8, source)?;
        let len: usize = shape.iter().product();
        let bytes = tensor::decode_as(proto, DType::U8, &[len.div_ceil(2)], source)?;
        Ok(Some(FourBits { bytes, shape, signed }))
    }

    /// The tensor as bytes.
    pub fn build(self, b: &mut Builder) -> Result<Value, Error> {
        let bytes = b.constant(self.bytes);
        unpack(b, bytes, &self.shape, self.signed)
    }
}

/// A tensor of a shape from a vector of bytes that hold two of its elements each, as u8 or i8.
pub(crate) fn unpack(b: &mut Builder, bytes: Value, shape: &[usize], signed: bool) -> Result<Value, Error> {
    let len: usize = shape.iter().product();
    let half = len.div_ceil(2);
    let pairs = b.push1(Reshape::to(&[half, 1]), &[bytes])?;
    let mut halves = match signed {
        false => {
            let (counts, mask) = (b.constant(Tensor::new(&[2], &[0u8, 4])), b.scalar(DType::U8, 15.0));
            let shifted = b.map(ScalarFn::Shr, &[pairs, counts])?;
            b.map(ScalarFn::And, &[shifted, mask])?
        }
        true => {
            // To the high bits, and back with the sign.
            let (counts, four) = (b.constant(Tensor::new(&[2], &[4u8, 0])), b.scalar(DType::I8, 4.0));
            let shifted = b.map(ScalarFn::Shl, &[pairs, counts])?;
            let shifted = b.cast(shifted, DType::I8)?;
            b.map(ScalarFn::Shr, &[shifted, four])?
        }
    };
    if len % 2 == 1 {
        halves = b.push1(Reshape::to(&[2 * half]), &[halves])?;
        halves = leading(b, halves, 0, len)?;
    }
    b.push1(Reshape::to(shape), &[halves])
}

/// The first positions along a dimension.
pub(crate) fn leading(b: &mut Builder, value: Value, axis: usize, count: usize) -> Result<Value, Error> {
    let [starts, ends, axes, steps] = [0, count as i64, axis as i64, 1].map(|n| Late::Known(vec![n]));
    b.push1(Slice { starts, ends, axes, steps }, &[value])
}
