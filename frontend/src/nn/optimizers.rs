//! Optimizers: how parameters follow from their gradients, as graph ops.
//!
//! Names and defaults are Keras's; [`Convention::Torch`] has PyTorch's places for epsilon instead. Bias corrections and
//! learning rates are computed in f64, whatever the parameters are, and rounded once.

use windlass_ir::ops::{Reduce, ReduceKind};
use windlass_ir::{Builder, DType, Error, ScalarFn, Value};

use super::loss_scale::LossScale;
use super::schedules::Schedule;
use ScalarFn::{Add, Div, Fma, Max, Min, Mul, Neg, Pow, Select, Sign, Sqrt, Sub};

/// Whose formula is meant where Keras and PyTorch differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// Epsilon under the root of RMSprop and Adagrad, and outside of Adam's bias correction; the learning rate is part of
    /// the velocity.
    #[default]
    Keras,
    /// Epsilon outside the root, and within Adam's bias correction; the velocity is multiplied by the learning rate.
    Torch,
}

/// The rule of an optimizer. `g` is the gradient, `p` the parameter, `lr` the learning rate.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// `p -= lr g`, or with momentum a velocity (Keras `v = momentum v - lr g`, PyTorch `v = momentum v + g`), that is
    /// looked ahead by with `nesterov`.
    Sgd {
        /// What is kept of the velocity; 0 for none.
        momentum: f64,
        /// Whether the step is that after the next.
        nesterov: bool,
    },
    /// `v = rho v + (1 - rho) g^2; p -= lr g / sqrt(v)`.
    RmsProp {
        /// What is kept of the mean square.
        rho: f64,
        /// Keeps the divisor from 0.
        epsilon: f64,
    },
    /// `v += g^2; p -= lr g / sqrt(v)`.
    Adagrad {
        /// What the sum of squares starts from.
        initial_accumulator: f64,
        /// Keeps the divisor from 0.
        epsilon: f64,
    },
    /// `m = beta_1 m + (1 - beta_1) g; v = beta_2 v + (1 - beta_2) g^2; p -= lr m / sqrt(v)`, both corrected for
    /// their start from 0 (Kingma and Ba, 2015).
    Adam {
        /// What is kept of the mean.
        beta_1: f64,
        /// What is kept of the mean square.
        beta_2: f64,
        /// Keeps the divisor from 0.
        epsilon: f64,
    },
    /// `p -= lr sign(beta_1 m + (1 - beta_1) g); m = beta_2 m + (1 - beta_2) g` (Chen et al., 2023).
    Lion {
        /// What is kept of the mean in the step.
        beta_1: f64,
        /// What is kept of it for the next.
        beta_2: f64,
    },
    /// Adam's step, decay included, scaled to the norm of each parameter (You et al., 2020).
    Lamb {
        /// What is kept of the mean.
        beta_1: f64,
        /// What is kept of the mean square.
        beta_2: f64,
        /// Keeps the divisor from 0.
        epsilon: f64,
    },
}

/// How parameters are drawn to 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Decay {
    /// Not at all.
    #[default]
    None,
    /// `g += decay p` before the rule: an L2 penalty.
    Coupled(f64),
    /// `p -= lr decay p`, apart from the rule.
    Decoupled(f64),
}

/// How gradients are bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Not at all.
    #[default]
    None,
    /// Each element to this magnitude.
    Value(f64),
    /// Each gradient to this Euclidean norm.
    Norm(f64),
    /// All gradients together to this Euclidean norm.
    GlobalNorm(f64),
}

/// An optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// The rule.
    pub rule: Rule,
    /// The learning rate.
    pub learning_rate: Schedule,
    /// Weight decay.
    pub decay: Decay,
    /// Gradient clipping.
    pub clip: Clip,
    /// Whose formulas.
    pub convention: Convention,
    /// The multiple of the loss that is differentiated.
    pub loss_scale: LossScale,
}

impl Optimizer {
    /// By a rule, with a constant learning rate.
    pub fn new(rule: Rule, learning_rate: f64) -> Optimizer {
        Optimizer {
            rule,
            learning_rate: Schedule::Constant(learning_rate),
            decay: Decay::None,
            clip: Clip::None,
            convention: Convention::Keras,
            loss_scale: LossScale::None,
        }
    }

    /// Plain gradient descent.
    pub fn sgd(learning_rate: f64) -> Optimizer {
        Optimizer::new(Rule::Sgd { momentum: 0.0, nesterov: false }, learning_rate)
    }

    /// Adam with Keras's defaults.
    pub fn adam(learning_rate: f64) -> Optimizer {
        Optimizer::new(Rule::Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-7 }, learning_rate)
    }

    /// Adam with decoupled weight decay.
    pub fn adamw(learning_rate: f64, decay: f64) -> Optimizer {
        Optimizer { decay: Decay::Decoupled(decay), ..Optimizer::adam(learning_rate) }
    }

    /// RMSprop with Keras's defaults.
    pub fn rmsprop(learning_rate: f64) -> Optimizer {
        Optimizer::new(Rule::RmsProp { rho: 0.9, epsilon: 1e-7 }, learning_rate)
    }

    /// Adagrad with Keras's defaults.
    pub fn adagrad(learning_rate: f64) -> Optimizer {
        Optimizer::new(Rule::Adagrad { initial_accumulator: 0.1, epsilon: 1e-7 }, learning_rate)
    }

    /// Lion with its authors' defaults.
    pub fn lion(learning_rate: f64) -> Optimizer {
        Optimizer::new(Rule::Lion { beta_1: 0.9, beta_2: 0.99 }, learning_rate)
    }

    /// LAMB with its authors' defaults.
    pub fn lamb(learning_rate: f64) -> Optimizer {
        Optimizer::new(Rule::Lamb { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-6 }, learning_rate)
    }

    /// What is kept for each parameter from step to step: a name and what it starts with.
    pub fn slots(&self) -> &'static [&'static str] {
        match self.rule {
            Rule::Sgd { momentum: 0.0, .. } => &[],
            Rule::Sgd { .. } => &["momentum"],
            Rule::RmsProp { .. } => &["velocity"],
            Rule::Adagrad { .. } => &["accumulator"],
            Rule::Adam { .. } | Rule::Lamb { .. } => &["momentum", "velocity"],
            Rule::Lion { .. } => &["momentum"],
        }
    }

    /// What is kept besides, for all parameters together, an f64 of rank 0 each: a name and what it starts with.
    pub fn shared_slots(&self) -> Vec<(&'static str, f64)> {
        match self.loss_scale {
            LossScale::Dynamic { initial, .. } => vec![("loss_scale", initial), ("loss_scale.steps", 0.0)],
            LossScale::None | LossScale::Fixed(_) => Vec::new(),
        }
    }

    /// What every slot starts with.
    pub fn initial(&self) -> f64 {
        match self.rule {
            Rule::Adagrad { initial_accumulator, .. } => initial_accumulator,
            _ => 0.0,
        }
    }

    /// The next parameters, and after them all next slots that are not shared, those of one parameter side by side.
    ///
    /// `step` is the number of steps before this one, an f64 of rank 0.
    pub fn update(
        &self,
        b: &mut Builder,
        parameters: &[Value],
        gradients: &[Value],
        slots: &[Value],
        step: Value,
    ) -> Result<(Vec<Value>, Vec<Value>), Error> {
        let rate = self.learning_rate.rate(b, step)?;
        let gradients = self.clip.apply(b, gradients)?;
        let one = b.scalar(DType::F64, 1.0);
        let count = b.map(Add, &[step, one])?;
        let (mut next, mut next_slots) = (Vec::new(), Vec::new());
        let each = self.slots().len();
        for (i, (&p, &g)) in parameters.iter().zip(&gradients).enumerate() {
            let own = &slots[i * each..][..each];
            let dtype = b.ty(p).dtype;
            let at = At { b, dtype, rate, count };
            let (p, kept) = self.parameter(at, p, g, own)?;
            next.push(p);
            next_slots.extend(kept);
        }
        Ok((next, next_slots))
    }

    fn parameter(
        &self,
        mut at: At<'_>,
        mut p: Value,
        mut g: Value,
        slots: &[Value],
    ) -> Result<(Value, Vec<Value>), Error> {
        let decay = match self.decay {
            Decay::Decoupled(decay) => decay,
            Decay::Coupled(decay) => {
                let decay = at.number(decay);
                g = at.map(Fma, &[p, decay, g])?;
                0.0
            }
            Decay::None => 0.0,
        };
        let lr = at.narrow(at.rate)?;
        // LAMB's step includes its decay.
        if decay != 0.0 && !matches!(self.rule, Rule::Lamb { .. }) {
            let factor = at.wide(decay);
            let shrink = at.map(Mul, &[at.rate, factor])?;
            let shrink = at.narrow(shrink)?;
            let part = at.map(Mul, &[p, shrink])?;
            p = at.map(Sub, &[p, part])?;
        }
        let torch = self.convention == Convention::Torch;
        Ok(match self.rule {
            Rule::Sgd { momentum: 0.0, .. } => {
                let step = at.map(Mul, &[g, lr])?;
                (at.map(Sub, &[p, step])?, vec![])
            }
            Rule::Sgd { momentum, nesterov } => {
                let mu = at.number(momentum);
                let kept = at.map(Mul, &[slots[0], mu])?;
                // The velocity is along the gradient or, with the rate in it, against it.
                let flow = match torch {
                    true => g,
                    false => {
                        let step = at.map(Mul, &[g, lr])?;
                        at.map(Neg, &[step])?
                    }
                };
                let velocity = at.map(Add, &[kept, flow])?;
                let step = match nesterov {
                    true => at.map(Fma, &[velocity, mu, flow])?,
                    false => velocity,
                };
                let next = match torch {
                    true => {
                        let step = at.map(Mul, &[step, lr])?;
                        at.map(Sub, &[p, step])?
                    }
                    false => at.map(Add, &[p, step])?,
                };
                (next, vec![velocity])
            }
            Rule::RmsProp { rho, epsilon } => {
                let velocity = at.mean_square(slots[0], g, rho)?;
                (at.scaled_step(p, g, velocity, lr, epsilon, torch)?, vec![velocity])
            }
            Rule::Adagrad { epsilon, .. } => {
                let square = at.map(Mul, &[g, g])?;
                let sum = at.map(Add, &[slots[0], square])?;
                (at.scaled_step(p, g, sum, lr, epsilon, torch)?, vec![sum])
            }
            Rule::Adam { beta_1, beta_2, epsilon } => {
                let m = at.mean(slots[0], g, beta_1)?;
                let v = at.mean_square(slots[1], g, beta_2)?;
                let step = at.adam(m, v, (beta_1, beta_2), epsilon, torch, true)?;
                (at.map(Sub, &[p, step])?, vec![m, v])
            }
            Rule::Lion { beta_1, beta_2 } => {
                let ahead = at.mean(slots[0], g, beta_1)?;
                let sign = at.map(Sign, &[ahead])?;
                let step = at.map(Mul, &[sign, lr])?;
                let m = at.mean(slots[0], g, beta_2)?;
                (at.map(Sub, &[p, step])?, vec![m])
            }
            Rule::Lamb { beta_1, beta_2, epsilon } => {
                let m = at.mean(slots[0], g, beta_1)?;
                let v = at.mean_square(slots[1], g, beta_2)?;
                let mut step = at.adam(m, v, (beta_1, beta_2), epsilon, true, false)?;
                if decay != 0.0 {
                    let decay = at.number(decay);
                    step = at.map(Fma, &[p, decay, step])?;
                }
                // The trust ratio, 1 where a norm is 0.
                let (own, along) = (norm(at.b, p)?, norm(at.b, step)?);
                let (zero, one) = (at.number(0.0), at.number(1.0));
                let ratio = at.map(Div, &[own, along])?;
                let product = at.map(Mul, &[own, along])?;
                let both = at.map(ScalarFn::Gt, &[product, zero])?;
                let ratio = at.map(Select, &[both, ratio, one])?;
                let scale = at.map(Mul, &[lr, ratio])?;
                let step = at.map(Mul, &[step, scale])?;
                (at.map(Sub, &[p, step])?, vec![m, v])
            }
        })
    }
}

/// One parameter's update under construction.
struct At<'b> {
    b: &'b mut Builder,
    /// The parameter's.
    dtype: DType,
    /// The learning rate, f64.
    rate: Value,
    /// The number of steps with this one, f64.
    count: Value,
}

impl At<'_> {
    fn map(&mut self, f: ScalarFn, ins: &[Value]) -> Result<Value, Error> {
        self.b.map(f, ins)
    }

    fn number(&mut self, value: f64) -> Value {
        self.b.scalar(self.dtype, value)
    }

    fn wide(&mut self, value: f64) -> Value {
        self.b.scalar(DType::F64, value)
    }

    fn narrow(&mut self, value: Value) -> Result<Value, Error> {
        self.b.cast(value, self.dtype)
    }

    /// `beta old + (1 - beta) new`, as a step from the old to the new.
    fn mean(&mut self, old: Value, new: Value, beta: f64) -> Result<Value, Error> {
        let part = self.number(1.0 - beta);
        let distance = self.map(Sub, &[new, old])?;
        self.map(Fma, &[distance, part, old])
    }

    fn mean_square(&mut self, old: Value, g: Value, beta: f64) -> Result<Value, Error> {
        let square = self.map(Mul, &[g, g])?;
        self.mean(old, square, beta)
    }

    /// `p - lr g / sqrt(v)`, epsilon under the root or outside.
    fn scaled_step(
        &mut self,
        p: Value,
        g: Value,
        v: Value,
        lr: Value,
        epsilon: f64,
        outside: bool,
    ) -> Result<Value, Error> {
        let epsilon = self.number(epsilon);
        let divisor = match outside {
            true => {
                let root = self.map(Sqrt, &[v])?;
                self.map(Add, &[root, epsilon])?
            }
            false => {
                let shifted = self.map(Add, &[v, epsilon])?;
                self.map(Sqrt, &[shifted])?
            }
        };
        let step = self.map(Mul, &[g, lr])?;
        let step = self.map(Div, &[step, divisor])?;
        self.map(Sub, &[p, step])
    }

    /// `1 - beta^count`, f64.
    fn correction(&mut self, beta: f64) -> Result<Value, Error> {
        let (beta, one) = (self.wide(beta), self.wide(1.0));
        let power = self.map(Pow, &[beta, self.count])?;
        self.map(Sub, &[one, power])
    }

    /// Adam's step, times the learning rate if `rated`. PyTorch adds epsilon to the corrected root.
    fn adam(
        &mut self,
        m: Value,
        v: Value,
        (beta_1, beta_2): (f64, f64),
        epsilon: f64,
        torch: bool,
        rated: bool,
    ) -> Result<Value, Error> {
        let (first, second) = (self.correction(beta_1)?, self.correction(beta_2)?);
        let second = self.map(Sqrt, &[second])?;
        let one = self.wide(1.0);
        let numerator = if rated { self.rate } else { one };
        let mut factor = self.map(Div, &[numerator, first])?;
        let mut root = self.map(Sqrt, &[v])?;
        match torch {
            true => {
                let second = self.narrow(second)?;
                root = self.map(Div, &[root, second])?;
            }
            false => factor = self.map(Mul, &[factor, second])?,
        }
        let (factor, epsilon) = (self.narrow(factor)?, self.number(epsilon));
        let divisor = self.map(Add, &[root, epsilon])?;
        let step = self.map(Mul, &[m, factor])?;
        self.map(Div, &[step, divisor])
    }
}

/// The sum of squares of all elements, of rank 0.
fn square_sum(b: &mut Builder, x: Value) -> Result<Value, Error> {
    let square = b.map(Mul, &[x, x])?;
    let axes: Vec<i64> = (0..b.ty(x).rank() as i64).collect();
    b.push1(Reduce::over(ReduceKind::Sum, &axes, false), &[square])
}

fn norm(b: &mut Builder, x: Value) -> Result<Value, Error> {
    let sum = square_sum(b, x)?;
    b.map(Sqrt, &[sum])
}

impl Clip {
    /// The gradients within bounds.
    pub fn apply(self, b: &mut Builder, gradients: &[Value]) -> Result<Vec<Value>, Error> {
        // g * min(1, bound / norm).
        let scaled = |b: &mut Builder, g: Value, bound: f64, norm: Value| -> Result<Value, Error> {
            let (bound, one) = (b.scalar_like(g, bound), b.scalar_like(g, 1.0));
            let norm = b.cast(norm, b.ty(g).dtype)?;
            let ratio = b.map(Div, &[bound, norm])?;
            let ratio = b.map(Min, &[one, ratio])?;
            b.map(Mul, &[g, ratio])
        };
        match self {
            Clip::None => Ok(gradients.to_vec()),
            Clip::Value(bound) => gradients
                .iter()
                .map(|&g| {
                    let (low, high) = (b.scalar_like(g, -bound), b.scalar_like(g, bound));
                    let raised = b.map(Max, &[g, low])?;
                    b.map(Min, &[raised, high])
                })
                .collect(),
            Clip::Norm(bound) => gradients
                .iter()
                .map(|&g| {
                    let own = norm(b, g)?;
                    scaled(b, g, bound, own)
                })
                .collect(),
            Clip::GlobalNorm(bound) => {
                let mut sum: Option<Value> = None;
                for &g in gradients {
                    let own = square_sum(b, g)?;
                    let own = b.cast(own, DType::F64)?;
                    sum = Some(match sum {
                        Some(sum) => b.map(Add, &[sum, own])?,
                        None => own,
                    });
                }
                let Some(sum) = sum else { return Ok(Vec::new()) };
                let whole = b.map(Sqrt, &[sum])?;
                gradients.iter().map(|&g| scaled(b, g, bound, whole)).collect()
            }
        }
    }
}
