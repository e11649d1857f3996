//! Penalties on weights, added to the loss.

use windlass_ir::ops::{Reduce, ReduceKind};
use windlass_ir::{Error, ScalarFn, Value};

use super::net::Net;

/// `l1 * sum |w| + l2 * sum w^2`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regularizer {
    /// The factor of the magnitudes.
    pub l1: f64,
    /// The factor of the squares.
    pub l2: f64,
}

impl Regularizer {
    /// Adds the penalty of a weight to a network's loss.
    pub fn apply(self, net: &mut Net, weight: Value) -> Result<(), Error> {
        let axes: Vec<i64> = (0..net.ty(weight).rank() as i64).collect();
        for (factor, magnitude) in [(self.l1, true), (self.l2, false)] {
            if factor == 0.0 {
                continue;
            }
            let sizes = match magnitude {
                true => net.map(ScalarFn::Abs, &[weight])?,
                false => net.map(ScalarFn::Mul, &[weight, weight])?,
            };
            let sum = net.push(Reduce::over(ReduceKind::Sum, &axes, false), &[sizes])?;
            let factor = net.builder().scalar_like(sum, factor);
            let penalty = net.map(ScalarFn::Mul, &[sum, factor])?;
            net.penalty(penalty);
        }
        Ok(())
    }
}
