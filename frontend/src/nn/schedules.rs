//! Learning rates as functions of the step, computed in the training step itself.

use windlass_ir::{Builder, DType, Error, ScalarFn, TensorType, Value};

/// A learning rate for each step, counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// The same at every step.
    Constant(f64),
    /// `initial * rate^(step / decay_steps)`; with `staircase` the exponent is rounded down.
    Exponential {
        /// At step 0.
        initial: f64,
        /// The factor after `decay_steps`.
        rate: f64,
        /// The steps after which the factor is `rate`.
        decay_steps: f64,
        /// Whether the rate stays between those steps.
        staircase: bool,
    },
    /// `floor + (initial - floor) * (1 + cos(pi * step / steps)) / 2`, and `floor` from then on.
    Cosine {
        /// At step 0.
        initial: f64,
        /// After how many steps the floor is reached.
        steps: f64,
        /// What remains.
        floor: f64,
    },
    /// What the step is given as the input `learning_rate`, a number of f64 after the data: it may change between steps.
    /// The number here is what it is now.
    Adjustable(f64),
    /// From 0 in a line to what `then` begins with, over so many steps; `then` counts from there.
    WarmUp {
        /// How many.
        steps: f64,
        /// What follows.
        then: Box<Schedule>,
    },
}

impl Schedule {
    /// The rate at a step, both f64 of rank 0.
    pub fn rate(&self, b: &mut Builder, step: Value) -> Result<Value, Error> {
        let number = |b: &mut Builder, value: f64| b.scalar(DType::F64, value);
        Ok(match self {
            Schedule::Constant(rate) => number(b, *rate),
            Schedule::Adjustable(_) => b.input("learning_rate", TensorType::fixed(DType::F64, &[])),
            Schedule::Exponential { initial, rate, decay_steps, staircase } => {
                let period = number(b, *decay_steps);
                let mut exponent = b.map(ScalarFn::Div, &[step, period])?;
                if *staircase {
                    exponent = b.map(ScalarFn::Floor, &[exponent])?;
                }
                let (rate, initial) = (number(b, *rate), number(b, *initial));
                let factor = b.map(ScalarFn::Pow, &[rate, exponent])?;
                b.map(ScalarFn::Mul, &[initial, factor])?
            }
            Schedule::Cosine { initial, steps, floor } => {
                let last = number(b, *steps);
                let at = b.map(ScalarFn::Min, &[step, last])?;
                let turn = number(b, std::f64::consts::PI / steps);
                let angle = b.map(ScalarFn::Mul, &[at, turn])?;
                let cosine = b.map(ScalarFn::Cos, &[angle])?;
                let (half, low) = (number(b, (initial - floor) / 2.0), number(b, (initial + floor) / 2.0));
                b.map(ScalarFn::Fma, &[cosine, half, low])?
            }
            Schedule::WarmUp { steps, then } => {
                let (length, zero) = (number(b, *steps), number(b, 0.0));
                let after = b.map(ScalarFn::Sub, &[step, length])?;
                let after = b.map(ScalarFn::Max, &[after, zero])?;
                let rate = then.rate(b, after)?;
                let part = b.map(ScalarFn::Div, &[step, length])?;
                let rising = b.map(ScalarFn::Mul, &[rate, part])?;
                let warm = b.map(ScalarFn::Ge, &[step, length])?;
                b.map(ScalarFn::Select, &[warm, rate, rising])?
            }
        })
    }
}
