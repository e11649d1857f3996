//! What tensors hold: values that keep comparisons between implementations meaningful.
//!
//! Floats are small multiples of 1/16, so sums of products are exact in any order; what exact floats
//! become is followed through the graph, and ops with jumps (comparisons, rounding, positions of
//! extrema) get exact operands only.

use windlass_ir::ops::{CumulativeKind, ReduceKind};
use windlass_ir::{DType, Op, Tensor, eval_op};

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

/// Whether the op is no product whose factors, taken in some order, leave the range of the numbers they are multiplied
/// in: from then on it is infinite, or no number once a factor is 0, and the order shows.
pub fn stays_in_range(op: &Op, ins: &[Tensor]) -> bool {
    match op {
        Op::Reduce(reduce) if reduce.kind == ReduceKind::Prod && ins[0].dtype().is_float() => {}
        Op::Cumulative(sum) if sum.kind == CumulativeKind::Prod && ins[0].dtype().is_float() => {}
        _ => return true,
    }
    let most = match ins[0].dtype().accumulator() {
        DType::F64 => f64::MAX,
        _ => f64::from(f32::MAX),
    };
    // No order has a larger product on the way than that of the factors above 1.
    let factors: Vec<f64> = ins[0].to_f64s().into_iter().map(|x| x.abs().max(1.0)).collect();
    let mut ins = ins.to_vec();
    ins[0] = Tensor::from_f64s(DType::F64, ins[0].shape(), &factors);
    eval_op(op, &ins).is_ok_and(|outs| outs[0].to_f64s().into_iter().all(|product| product <= most))
}

/// Whether sums of such values, and of their products, are the same in any order.
pub fn is_dyadic(tensor: &Tensor) -> bool {
    let dyadic = |x: &f64| x.abs() <= 512.0 && (x * 256.0).fract() == 0.0;
    !tensor.dtype().is_float() || tensor.to_f64s().iter().all(dyadic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_stay_in_range_in_any_order() {
        let op = Op::from_name("reduce_prod").expect("the op exists");
        let stays = |factors: &[f32]| stays_in_range(&op, &[Tensor::new(&[factors.len()], factors)]);
        assert!(stays(&[1e3, 1e-30, 1e3, 0.0]));
        assert!(!stays(&[1e30, 1e-30, 1e30]), "the first and the last make infinity");
        assert!(!stays(&[4000.0; 12]) && stays(&[4000.0; 10]));
    }
}
