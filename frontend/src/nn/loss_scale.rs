//! The multiple of the loss that is differentiated, so that gradients are numbers of a narrow type.

use windlass_ir::ops::{Reduce, ReduceKind};
use windlass_ir::{Builder, DType, Error, ScalarFn, Value};

use ScalarFn::{Add, Max, Mul, Select};

/// How small gradients are kept from 0, and large ones from infinity, where a network computes in f16: gradients are those
/// of a multiple of the loss, and divided by it in the type of the update (Micikevicius et al., "Mixed Precision Training",
/// 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LossScale {
    /// Gradients as they are.
    #[default]
    None,
    /// A multiple that stays.
    Fixed(f64),
    /// One that is halved by each step whose gradients are not all finite, which changes nothing else, and doubled after so
    /// many steps in a row whose gradients are.
    Dynamic {
        /// What it starts with.
        initial: f64,
        /// How many steps.
        growth_steps: u32,
    },
}

impl LossScale {
    /// A multiple that changes, with Keras's defaults.
    pub fn dynamic() -> LossScale {
        LossScale::Dynamic { initial: 32768.0, growth_steps: 2000 }
    }

    /// The multiple, an f64, of what is kept of it.
    pub(super) fn factor(self, b: &mut Builder, kept: &[Value]) -> Option<Value> {
        match self {
            LossScale::None => None,
            LossScale::Fixed(factor) => Some(b.scalar(DType::F64, factor)),
            LossScale::Dynamic { .. } => kept.first().copied(),
        }
    }

    /// Whether these gradients change anything, and what is kept for the next step, if that depends on them.
    pub(super) fn follow(
        self,
        b: &mut Builder,
        gradients: &[Value],
        kept: &[Value],
    ) -> Result<Option<(Value, [Value; 2])>, Error> {
        let (LossScale::Dynamic { growth_steps, .. }, &[factor, steps]) = (self, kept) else {
            return Ok(None);
        };
        let mut largest = b.scalar(DType::F64, 0.0);
        for &g in gradients {
            let size = b.map(ScalarFn::Abs, &[g])?;
            let axes: Vec<i64> = (0..b.ty(g).rank() as i64).collect();
            let own = b.push1(Reduce::over(ReduceKind::Max, &axes, false), &[size])?;
            let own = b.cast(own, DType::F64)?;
            largest = b.map(Max, &[largest, own])?;
        }
        let number = |b: &mut Builder, value: f64| b.scalar(DType::F64, value);
        let (zero, one, infinite) = (number(b, 0.0), number(b, 1.0), number(b, f64::INFINITY));
        let (half, double, enough) = (number(b, 0.5), number(b, 2.0), number(b, f64::from(growth_steps)));
        let finite = b.map(ScalarFn::Lt, &[largest, infinite])?;
        let count = b.map(Add, &[steps, one])?;
        let grows = b.map(ScalarFn::Ge, &[count, enough])?;
        let by = b.map(Select, &[grows, double, one])?;
        let by = b.map(Select, &[finite, by, half])?;
        let next = b.map(Mul, &[factor, by])?;
        let count = b.map(Select, &[grows, zero, count])?;
        let count = b.map(Select, &[finite, count, zero])?;
        Ok(Some((finite, [next, count])))
    }
}
