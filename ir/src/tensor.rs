//! A tensor: element type, shape and row-major bytes, shared by reference count.

mod storage;

use std::fmt;
use std::sync::{Arc, OnceLock};

pub use self::storage::Recycler;
use self::storage::{Bytes, Storage};
use crate::dtype::{DType, Element};
use crate::types::{Dim, Shape, TensorType};
use crate::with_element;

impl Recycler {
    /// A tensor of any numbers.
    pub fn tensor(&self, dtype: DType, shape: &[usize]) -> Tensor {
        let len: usize = shape.iter().product();
        let bytes = Arc::new(Storage::Own(self.bytes(len * dtype.size())));
        Tensor { dtype, shape: shape.into(), bytes }
    }
}

/// A tensor. Cloning and reshaping share the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    bytes: Arc<Storage>,
}

impl Tensor {
    /// A tensor of zeros (false).
    pub fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        let len: usize = shape.iter().product();
        Tensor {
            dtype,
            shape: shape.into(),
            bytes: Arc::new(Storage::Own(Bytes::zeroed(len * dtype.size()))),
        }
    }

    /// Whether this is its type, all sizes known.
    pub fn is(&self, ty: &TensorType) -> bool {
        let sizes = || ty.dims.iter().zip(&self.shape).all(|(dim, &size)| dim.as_fixed() == Some(size));
        self.dtype == ty.dtype && self.shape.len() == ty.rank() && sizes()
    }

    /// The tensor, leaving an empty one of its type behind.
    pub fn take(&mut self) -> Tensor {
        let empty = Tensor::zeros(self.dtype, &[0]);
        std::mem::replace(self, empty)
    }

    /// A tensor from elements in row-major order.
    ///
    /// # Panics
    /// If the number of elements is not the product of the shape.
    pub fn new<T: Element>(shape: &[usize], elements: &[T]) -> Tensor {
        assert_eq!(elements.len(), shape.iter().product::<usize>(), "elements do not fill {shape:?}");
        let mut tensor = Tensor::zeros(T::DTYPE, shape);
        tensor.bytes_mut().copy_from_slice(bytemuck::cast_slice(elements));
        tensor
    }

    /// A tensor from little-endian bytes in row-major order, or `None` if their number is wrong.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        let len = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))?;
        if len != bytes.len() {
            return None;
        }
        let mut tensor = Tensor::zeros(dtype, shape);
        tensor.bytes_mut().copy_from_slice(bytes);
        Some(tensor)
    }

    /// A tensor over bytes that somebody else owns, at whatever alignment they have, or `None` if their
    /// number is wrong. They must not change while the tensor exists.
    pub fn from_shared(
        dtype: DType,
        shape: &[usize],
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Option<Tensor> {
        let len = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))?;
        let storage = Storage::Foreign(Box::new(bytes), OnceLock::new());
        (len == storage.as_slice().len()).then(|| Tensor {
            dtype,
            shape: shape.into(),
            bytes: Arc::new(storage),
        })
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::new(&[], &[value])
    }

    /// A rank-1 i64 tensor, as shapes and axes are.
    pub fn from_ints(values: &[i64]) -> Tensor {
        Tensor::new(&[values.len()], values)
    }

    /// A tensor of `dtype` from f64 values, each rounded once.
    pub fn from_f64s(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
        with_element!(dtype, T => Tensor::from_fn::<T>(shape, |i| <T as Element>::from_f64(values[i])))
    }

    /// A tensor of `dtype` from integers, each wrapped to the type.
    pub fn from_i128s(dtype: DType, shape: &[usize], values: &[i128]) -> Tensor {
        with_element!(dtype, T => Tensor::from_fn::<T>(shape, |i| T::from_i128(values[i])))
    }

    /// A tensor whose element at linear index `i` is `f(i)`.
    pub fn from_fn<T: Element>(shape: &[usize], mut f: impl FnMut(usize) -> T) -> Tensor {
        let mut tensor = Tensor::zeros(T::DTYPE, shape);
        for (i, slot) in tensor.as_mut_slice::<T>().iter_mut().enumerate() {
            *slot = f(i);
        }
        tensor
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.raw_bytes().len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.raw_bytes().is_empty()
    }

    /// The type of this tensor.
    pub fn ty(&self) -> TensorType {
        TensorType { dtype: self.dtype, dims: self.shape.iter().map(|&n| Dim::Fixed(n)).collect() }
    }

    /// The bytes, row-major, in this machine's order, aligned to the elements.
    ///
    /// A tensor over somebody else's bytes keeps a copy from then on if those are not aligned.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_aligned(self.dtype.size())
    }

    /// The bytes as they are stored, at any alignment.
    pub fn raw_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The bytes for writing; copied first if shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        Arc::make_mut(&mut self.bytes).as_mut_slice()
    }

    /// The elements as their Rust type.
    ///
    /// # Panics
    /// If `T` is not the element type.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "tensor read as another type");
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements for writing; copied first if shared.
    ///
    /// # Panics
    /// If `T` is not the element type.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "tensor written as another type");
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Every element as f64.
    pub fn to_f64s(&self) -> Vec<f64> {
        with_element!(self.dtype, T => self.as_slice::<T>().iter().map(|&x| Element::to_f64(x)).collect())
    }

    /// Every element as an integer; floats truncate.
    pub fn to_i128s(&self) -> Vec<i128> {
        with_element!(self.dtype, T => self.as_slice::<T>().iter().map(|&x| x.to_i128()).collect())
    }

    /// Every element as i64 (floats truncate), as shapes and axes are read.
    pub fn to_ints(&self) -> Vec<i64> {
        self.to_i128s().into_iter().map(|x| x as i64).collect()
    }

    /// Whether both hold the same bytes in memory, not merely equal ones.
    pub fn shares_with(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }

    /// The same bytes under another shape of as many elements.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshaped(&self, shape: &[usize]) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "reshape changes the number of elements");
        Tensor { dtype: self.dtype, shape: shape.into(), bytes: self.bytes.clone() }
    }

    /// Whether every element is the same, bit for bit; empty tensors are not uniform.
    pub fn is_uniform(&self) -> bool {
        let size = self.dtype.size();
        let mut elements = self.raw_bytes().chunks_exact(size);
        elements.next().is_some_and(|first| elements.all(|e| e == first))
    }

    /// The value all elements share, as f64.
    pub fn as_uniform_f64(&self) -> Option<f64> {
        let first = self
            .is_uniform()
            .then(|| Tensor::from_bytes(self.dtype, &[], &self.raw_bytes()[..self.dtype.size()]));
        Some(first??.to_f64s()[0])
    }
}

/// Bit for bit: NaNs with equal bits are equal, 0.0 and -0.0 are not.
impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && (self.shares_with(other) || self.raw_bytes() == other.raw_bytes())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.ty())?;
        let values = self.to_f64s();
        match values.len() {
            0..=16 => write!(f, "{values:?}"),
            n => write!(f, "{:?}.. ({n} elements)", &values[..8]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bytes_may_lie_anywhere() {
        let line: Arc<[u8]> = (0u8..17).collect();
        /// All but the first byte.
        struct Rest(Arc<[u8]>);
        impl AsRef<[u8]> for Rest {
            fn as_ref(&self) -> &[u8] {
                &self.0[1..]
            }
        }
        assert!(Tensor::from_shared(DType::U32, &[3], Rest(line.clone())).is_none());
        let tensor = Tensor::from_shared(DType::U32, &[4], Rest(line.clone())).unwrap();
        assert_eq!(tensor.raw_bytes().as_ptr(), line[1..].as_ptr());
        assert_eq!(tensor.as_slice::<u32>()[1], u32::from_le_bytes([5, 6, 7, 8]).to_le());
        let mut written = tensor.clone();
        written.as_mut_slice::<u32>()[0] = 0;
        assert_eq!(tensor.raw_bytes()[0], 1);
        assert_eq!(written.raw_bytes()[4..], tensor.raw_bytes()[4..]);
    }
}
