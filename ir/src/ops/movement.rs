//! What the ops that move elements share: walking over indices, picking elements of any type, and
//! turning positions computed by the data into indices that are always inside.

use smallvec::SmallVec;

use crate::attrs::Late;
use crate::dtype::DType;
use crate::loops::{Index, NestBuilder, Val};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType};

/// Calls `visit` with every index of a shape, in row-major order.
pub(crate) fn each_index(shape: &[usize], mut visit: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index: Shape = shape.iter().map(|_| 0).collect();
    loop {
        visit(&index);
        let mut d = shape.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

/// The position of an index in a buffer of these strides.
pub(crate) fn position(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(i, s)| i * s).sum()
}

/// The tensor of `shape` whose element at each index is the one that `source` names: which tensor,
/// and its position there. All tensors have one element type.
pub(crate) fn pick(
    xs: &[&Tensor],
    shape: &[usize],
    source: impl FnMut(&[usize]) -> (usize, usize),
) -> Tensor {
    // Elements move as unsigned integers of their size, so four loops serve every type.
    fn run<T: Copy + bytemuck::Pod>(
        xs: &[&Tensor],
        out: &mut Tensor,
        shape: &[usize],
        mut source: impl FnMut(&[usize]) -> (usize, usize),
    ) {
        let from: Vec<&[T]> = xs.iter().map(|x| bytemuck::cast_slice(x.bytes())).collect();
        let mut to = bytemuck::cast_slice_mut::<u8, T>(out.bytes_mut()).iter_mut();
        each_index(shape, |index| {
            let (which, at) = source(index);
            if let Some(slot) = to.next() {
                *slot = from[which][at];
            }
        });
    }
    let mut out = Tensor::zeros(xs[0].dtype(), shape);
    match out.dtype().size() {
        1 => run::<u8>(xs, &mut out, shape, source),
        2 => run::<u16>(xs, &mut out, shape, source),
        4 => run::<u32>(xs, &mut out, shape, source),
        _ => run::<u64>(xs, &mut out, shape, source),
    }
    out
}

/// An index into `size` elements that may count from the end, as the data gave it.
pub(crate) fn wrap_position(at: i64, size: usize) -> Result<usize, String> {
    let signed = if at < 0 { at.saturating_add(size as i64) } else { at };
    match usize::try_from(signed) {
        Ok(inside) if inside < size => Ok(inside),
        _ => Err(format!("index {at} is outside a dimension of {size}")),
    }
}

/// [`wrap_position`] over a tensor of indices.
pub(crate) fn wrap_positions(indices: &Tensor, size: usize) -> Result<Vec<usize>, String> {
    indices.to_ints().into_iter().map(|at| wrap_position(at, size)).collect()
}

/// The number of integers a late attribute has: of those known, or of the operand that holds them.
pub(crate) fn late_count(late: &Late, ins: &[&TensorType]) -> Option<usize> {
    match late {
        Late::Known(ints) => Some(ints.len()),
        Late::Operand(i) => ins.get(*i as usize)?.as_len(),
    }
}

/// A type of this rank none of whose sizes is known.
pub(crate) fn unknown(dtype: DType, rank: usize) -> TensorType {
    TensorType::new(dtype, vec![Dim::Unknown; rank])
}

/// Whether a dtype can index: i32 or i64.
pub(crate) fn is_index(dtype: DType) -> bool {
    matches!(dtype, DType::I32 | DType::I64)
}

/// An i64 constant.
pub(crate) fn int(n: &mut NestBuilder, value: i64) -> Val {
    n.constant_bits(DType::I64, value as u64)
}

/// An i64 value clamped to `0..extent` and used as an index. `extent` is not 0.
pub(crate) fn clamped_index(n: &mut NestBuilder, raw: Val, extent: usize) -> Index {
    if extent == 1 {
        return Index::constant(0);
    }
    let (low, high) = (int(n, 0), int(n, extent as i64 - 1));
    let raised = n.apply(ScalarFn::Max, &[raw, low]);
    let inside = n.apply(ScalarFn::Min, &[raised, high]);
    Index::value(inside, extent)
}

/// A loaded index that may count from the end, clamped so that memory stays safe whatever it is.
pub(crate) fn wrapped_index(n: &mut NestBuilder, raw: Val, extent: usize) -> Index {
    let raw = n.cast(raw, DType::I64);
    let (zero, size) = (int(n, 0), int(n, extent as i64));
    let negative = n.apply(ScalarFn::Lt, &[raw, zero]);
    let from_end = n.apply(ScalarFn::Add, &[raw, size]);
    let at = n.apply(ScalarFn::Select, &[negative, from_end, raw]);
    clamped_index(n, at, extent)
}

/// The shape split at an axis: the product before it, its size, the product after it.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// A type's dimensions with the one at `axis` replaced.
pub(crate) fn with_dim(ty: &TensorType, axis: usize, dim: Dim) -> TensorType {
    let mut ty = ty.clone();
    ty.dims[axis] = dim;
    ty
}

/// The product of dimensions, as precisely as a dimension can say it.
pub(crate) fn product(dims: &[Dim]) -> Dim {
    if dims.contains(&Dim::Fixed(0)) {
        return Dim::Fixed(0);
    }
    let others: SmallVec<[&Dim; 4]> = dims.iter().filter(|d| **d != Dim::Fixed(1)).collect();
    match others.as_slice() {
        [] => Dim::Fixed(1),
        [one] => (*one).clone(),
        many => {
            many.iter().try_fold(1usize, |n, d| n.checked_mul(d.as_fixed()?)).map_or(Dim::Unknown, Dim::Fixed)
        }
    }
}
