//! What tensors hold: values that keep comparisons between implementations meaningful.
//!
//! Floats are small multiples of 1/16, so sums of products are exact in any order; what exact floats
//! become is followed through the graph, and ops with jumps (comparisons, rounding, positions of
//! extrema) get exact operands only.

use windlass_ir::{DType, Tensor};

use super::rng::Rng;

/// What the elements of an operand may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Anything of benign size.
    Any,
    /// Numbers in a range.
    Within(f64, f64),
    /// Numbers whose magnitude lies in a range.
    Magnitude(f64, f64),
    /// Positions along a dimension of this size, counted from either end.
    Index(usize),
    /// These, in order.
    Exactly(Vec<f64>),
}

impl Values {
    /// A tensor of such values.
    pub fn sample(&self, rng: &mut Rng, dtype: DType, shape: &[usize]) -> Tensor {
        let len = shape.iter().product();
        let mut element = || match self {
            Values::Exactly(_) => 0.0,
            Values::Index(n) => rng.between(-(*n as i64), *n as i64 - 1) as f64,
            Values::Any if dtype == DType::Bool => f64::from(u8::from(rng.flag())),
            Values::Any if dtype.is_float() => rng.between(-32, 32) as f64 / 8.0,
            Values::Any if dtype.is_unsigned_int() => rng.between(0, 12) as f64,
            Values::Any => rng.between(-8, 8) as f64,
            Values::Within(low, high) | Values::Magnitude(low, high) => {
                let step = if dtype.is_float() { 16.0 } else { 1.0 };
                let (first, last) = ((low * step).ceil() as i64, (high * step).floor() as i64);
                let value = rng.between(first, last.max(first)) as f64 / step;
                let negative = matches!(self, Values::Magnitude(..)) && dtype.is_signed() && rng.flag();
                if negative { -value } else { value }
            }
        };
        let values: Vec<f64> = match self {
            Values::Exactly(values) => values.clone(),
            _ => (0..len).map(|_| element()).collect(),
        };
        Tensor::from_f64s(dtype, shape, &values)
    }

    /// Whether a tensor holds only such values.
    pub fn hold(&self, tensor: &Tensor) -> bool {
        let values = tensor.to_f64s();
        values.iter().enumerate().all(|(i, x)| match self {
            Values::Any => true,
            Values::Within(low, high) => (*low..=*high).contains(x),
            Values::Magnitude(low, high) => (*low..=*high).contains(&x.abs()),
            Values::Index(n) => (-(*n as f64)..*n as f64).contains(x),
            Values::Exactly(expected) => expected.get(i) == Some(x),
        })
    }
}

/// Whether values stay comparable: finite, neither huge nor so small that rounding is all there is.
pub fn is_benign(tensor: &Tensor) -> bool {
    let float = tensor.dtype().is_float();
    tensor.to_f64s().iter().all(|x| !float || (x.abs() <= 4096.0 && (*x == 0.0 || x.abs() >= 1e-4)))
}

/// Whether sums of such values, and of their products, are the same in any order.
pub fn is_dyadic(tensor: &Tensor) -> bool {
    let dyadic = |x: &f64| x.abs() <= 512.0 && (x * 256.0).fract() == 0.0;
    !tensor.dtype().is_float() || tensor.to_f64s().iter().all(dyadic)
}
