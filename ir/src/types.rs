//! Tensor types: an element type and a shape whose dimensions are numbers or names.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::dtype::DType;

/// One dimension of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A known size.
    Fixed(usize),
    /// A size given when the graph is bound (`batch`, `seq`); equal names are equal sizes.
    Named(Arc<str>),
    /// A size that depends on data or on named dimensions in a way types do not express.
    Unknown,
}

impl Dim {
    /// A named dimension.
    pub fn named(name: &str) -> Dim {
        Dim::Named(name.into())
    }

    /// The size, if known.
    pub fn as_fixed(&self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(*n),
            Dim::Named(_) | Dim::Unknown => None,
        }
    }

    /// Whether `self` and `other` can be the same size: only two different known sizes cannot.
    pub fn may_equal(&self, other: &Dim) -> bool {
        match (self, other) {
            (Dim::Fixed(a), Dim::Fixed(b)) => a == b,
            _ => true,
        }
    }

    /// The more precise of two dimensions that must be equal.
    pub fn meet(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Fixed(_), _) | (Dim::Named(_), Dim::Unknown | Dim::Named(_)) => self.clone(),
            _ => other.clone(),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Named(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// A shape whose dimensions may be names.
pub type Dims = SmallVec<[Dim; 4]>;

/// A shape of known sizes.
pub type Shape = SmallVec<[usize; 6]>;

/// The type of a value: its element type and dimensions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub dims: Dims,
}

impl Clone for TensorType {
    // Graphs clone many of them, and collecting into a small vector takes longer than this.
    fn clone(&self) -> TensorType {
        let mut dims = Dims::with_capacity(self.dims.len());
        self.dims.iter().for_each(|dim| dims.push(dim.clone()));
        TensorType { dtype: self.dtype, dims }
    }
}

impl TensorType {
    /// A type from any dimensions.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = Dim>) -> TensorType {
        TensorType { dtype, dims: dims.into_iter().collect() }
    }

    /// A type of known sizes.
    pub fn fixed(dtype: DType, shape: &[usize]) -> TensorType {
        TensorType { dtype, dims: shape.iter().map(|&n| Dim::Fixed(n)).collect() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The sizes, if all are known.
    pub fn as_shape(&self) -> Option<Shape> {
        let mut shape = Shape::new();
        for dim in &self.dims {
            shape.push(dim.as_fixed()?);
        }
        Some(shape)
    }

    /// The sizes of a type that lowering or evaluation sees, where all are known.
    ///
    /// # Panics
    /// If a dimension is not fixed.
    pub fn shape(&self) -> Shape {
        self.as_shape().expect("every dimension is bound before lowering")
    }

    /// The number of elements, if every size is known and the product does not overflow.
    pub fn as_len(&self) -> Option<usize> {
        self.dims.iter().try_fold(1usize, |n, d| n.checked_mul(d.as_fixed()?))
    }

    /// Same dimensions, another element type.
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType { dtype, dims: self.dims.clone() }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.dims.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

/// The shape that numpy's rules give two shapes, or `None` where they do not broadcast.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Option<Dims> {
    let rank = a.len().max(b.len());
    let one = Dim::Fixed(1);
    let at = |dims: &[Dim], i: usize| match (i + dims.len()).checked_sub(rank) {
        Some(k) => dims[k].clone(),
        None => one.clone(),
    };
    (0..rank)
        .map(|i| {
            let (x, y) = (at(a, i), at(b, i));
            match (&x, &y) {
                (Dim::Fixed(1), _) => Some(y),
                (_, Dim::Fixed(1)) => Some(x),
                (Dim::Fixed(m), Dim::Fixed(n)) => (m == n).then_some(x),
                // A size other than 1 wins over one that is not known yet: that must be 1 or equal.
                (Dim::Fixed(_), _) => Some(x),
                (_, Dim::Fixed(_)) => Some(y),
                (Dim::Named(m), Dim::Named(n)) if m == n => Some(x),
                _ => Some(Dim::Unknown),
            }
        })
        .collect()
}

/// Row-major strides, in elements.
pub fn strides(shape: &[usize]) -> Shape {
    let mut strides: Shape = shape.iter().map(|_| 1).collect();
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// An axis that may count from the end, as an index into `rank` dimensions.
pub fn normalize_axis(axis: i64, rank: usize) -> Option<usize> {
    let signed = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(signed).ok().filter(|&a| a < rank)
}
