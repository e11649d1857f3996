//! Pieces of formulas that several ops lower to.

use crate::error::Error;
use crate::graph::{Builder, Value};
use crate::loops::{Index, NestBuilder, Reduction, Val};
use crate::scalar::ScalarFn;

/// `base` to a constant power, by products and square roots where that is exact or nearly so.
pub(crate) fn power(n: &mut NestBuilder, base: Val, exponent: f64) -> Val {
    if exponent == 1.0 {
        base
    } else if exponent == 2.0 {
        n.apply(ScalarFn::Mul, &[base, base])
    } else if exponent == 0.5 {
        n.apply(ScalarFn::Sqrt, &[base])
    } else if exponent == 0.75 {
        let root = n.apply(ScalarFn::Sqrt, &[base]);
        let fourth = n.apply(ScalarFn::Sqrt, &[root]);
        n.apply(ScalarFn::Mul, &[root, fourth])
    } else {
        let exponent = n.constant(n.dtype(base), exponent);
        n.apply(ScalarFn::Pow, &[base, exponent])
    }
}

/// The same in a graph.
pub(crate) fn power_of(b: &mut Builder, base: Value, exponent: f64) -> Result<Value, Error> {
    let mut square_root = |of| b.map(ScalarFn::Sqrt, &[of]);
    if exponent == 1.0 {
        Ok(base)
    } else if exponent == 0.5 {
        square_root(base)
    } else if exponent == 0.75 {
        let root = square_root(base)?;
        let fourth = square_root(root)?;
        b.map(ScalarFn::Mul, &[root, fourth])
    } else {
        let exponent = b.scalar_like(base, exponent);
        b.map(ScalarFn::Pow, &[base, exponent])
    }
}

/// `f(value, constant)`.
pub(crate) fn with_constant(n: &mut NestBuilder, f: ScalarFn, value: Val, constant: f64) -> Val {
    let constant = n.constant(n.dtype(value), constant);
    n.apply(f, &[value, constant])
}

/// The mean of `body` over fresh variables of these extents.
pub(crate) fn mean(
    n: &mut NestBuilder,
    extents: &[usize],
    body: impl FnOnce(&mut NestBuilder, &[Index]) -> Val,
) -> Val {
    let sum = n.reduce(Reduction::Sum, extents, body);
    let count: usize = extents.iter().product();
    with_constant(n, ScalarFn::Div, sum, count as f64)
}

/// `1 / sqrt(square + epsilon)`.
pub(crate) fn inverse_root(n: &mut NestBuilder, square: Val, epsilon: f64) -> Val {
    let shifted = with_constant(n, ScalarFn::Add, square, epsilon);
    let root = n.apply(ScalarFn::Sqrt, &[shifted]);
    let one = n.constant(n.dtype(root), 1.0);
    n.apply(ScalarFn::Div, &[one, root])
}

/// `(x - mean) / sqrt(variance + epsilon)`, where `load` gives the elements that `x` is one of.
pub(crate) fn standardized(
    n: &mut NestBuilder,
    x: Val,
    extents: &[usize],
    epsilon: f64,
    load: impl Fn(&mut NestBuilder, &[Index]) -> Val,
) -> Val {
    let center = mean(n, extents, &load);
    let variance = mean(n, extents, |n, k| {
        let x = load(n, k);
        let deviation = n.apply(ScalarFn::Sub, &[x, center]);
        n.apply(ScalarFn::Mul, &[deviation, deviation])
    });
    let inverse = inverse_root(n, variance, epsilon);
    let deviation = n.apply(ScalarFn::Sub, &[x, center]);
    n.apply(ScalarFn::Mul, &[deviation, inverse])
}
