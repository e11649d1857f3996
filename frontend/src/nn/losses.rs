//! Losses: how far predictions are from what is true, an example at a time, and their weighted mean.
//!
//! Names are Keras's. A loss of probabilities that a softmax or a sigmoid made is computed from what it was made from,
//! which keeps the digits that the probabilities lose.

use windlass_ir::ops::{LossReduction, NllLoss, Reduce, ReduceKind, Reshape, Softmax};
use windlass_ir::{Builder, Error, Op, ScalarFn, Value};

use ScalarFn::{Abs, Add, Clamp, Div, Exp, Le, Log, Log1p, Mul, Neg, Pow, Relu, Select, Sigmoid, Sub};

/// A loss. Predictions are `[N, ..]`; each example has the mean of the losses along the last dimension, or one over
/// the classes there.
#[derive(Clone, Debug, PartialEq)]
pub enum Loss {
    /// `(y - t)^2`.
    MeanSquaredError,
    /// `|y - t|`.
    MeanAbsoluteError,
    /// `(y - t)^2 / 2` up to `delta`, from there on a line.
    Huber {
        /// Where the line begins.
        delta: f64,
    },
    /// `-log` of the probability of the class `t`, an integer.
    SparseCategoricalCrossentropy {
        /// Whether predictions are logits, rather than probabilities.
        from_logits: bool,
    },
    /// `-sum t log y` over the classes.
    CategoricalCrossentropy {
        /// Whether predictions are logits, rather than probabilities.
        from_logits: bool,
        /// How much of `t` is spread over all classes.
        label_smoothing: f64,
    },
    /// `-t log y - (1 - t) log(1 - y)`.
    BinaryCrossentropy {
        /// Whether predictions are logits, rather than probabilities.
        from_logits: bool,
        /// How much of `t` is drawn to one half.
        label_smoothing: f64,
    },
    /// Binary cross-entropy times `(1 - p)^gamma`, `p` being the probability of what is true, and `alpha` where `t` is
    /// 1, `1 - alpha` where it is 0 (Lin et al., 2017).
    BinaryFocal {
        /// Whether predictions are logits, rather than probabilities.
        from_logits: bool,
        /// How little easy examples count.
        gamma: f64,
        /// The weight of ones; one half of the total for 0.5.
        alpha: f64,
    },
    /// Sparse categorical cross-entropy times `(1 - p)^gamma`, `p` being the probability of the class.
    SparseCategoricalFocal {
        /// Whether predictions are logits, rather than probabilities.
        from_logits: bool,
        /// How little easy examples count.
        gamma: f64,
    },
    /// `t log(t / y)`, summed over the classes.
    KlDivergence,
    /// `max(0, 1 - t y)` for `t` of -1 and 1.
    Hinge,
    /// `-y` of the class `t`, for log probabilities.
    NegativeLogLikelihood,
}

/// What weighted losses are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightedMean {
    /// The number of examples, as Keras does.
    #[default]
    Count,
    /// The sum of their weights, as PyTorch does for class weights.
    Weights,
}

/// Probabilities are kept this far from 0 and 1, as Keras does.
const EPSILON: f64 = 1e-7;

impl Loss {
    /// The loss of each example: the predictions' shape without the last dimension.
    pub fn per_example(&self, b: &mut Builder, truth: Value, prediction: Value) -> Result<Value, Error> {
        let (y, t) = (prediction, truth);
        match *self {
            Loss::MeanSquaredError => {
                let difference = b.map(Sub, &[y, t])?;
                let square = b.map(Mul, &[difference, difference])?;
                over_last(b, ReduceKind::Mean, square)
            }
            Loss::MeanAbsoluteError => {
                let difference = b.map(Sub, &[y, t])?;
                let size = b.map(Abs, &[difference])?;
                over_last(b, ReduceKind::Mean, size)
            }
            Loss::Huber { delta } => {
                let difference = b.map(Sub, &[y, t])?;
                let size = b.map(Abs, &[difference])?;
                let square = b.map(Mul, &[difference, difference])?;
                let near = with(b, Mul, square, 0.5)?;
                let line = with(b, Sub, size, delta / 2.0)?;
                let far = with(b, Mul, line, delta)?;
                let is_near = with(b, Le, size, delta)?;
                let loss = b.map(Select, &[is_near, near, far])?;
                over_last(b, ReduceKind::Mean, loss)
            }
            Loss::SparseCategoricalCrossentropy { from_logits } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                of_class(b, logarithms, t)
            }
            Loss::NegativeLogLikelihood => of_class(b, y, t),
            Loss::SparseCategoricalFocal { from_logits, gamma } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                let loss = of_class(b, logarithms, t)?;
                let negative = b.map(Neg, &[loss])?;
                let probability = b.map(Exp, &[negative])?;
                let rest = from_one(b, probability)?;
                let factor = with(b, Pow, rest, gamma)?;
                b.map(Mul, &[loss, factor])
            }
            Loss::CategoricalCrossentropy { from_logits, label_smoothing } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                let classes = b.ty(y).dims.last().and_then(|d| d.as_fixed()).unwrap_or(1).max(1);
                let t = smoothed(b, t, label_smoothing, 1.0 / classes as f64)?;
                let product = b.map(Mul, &[t, logarithms])?;
                let sum = over_last(b, ReduceKind::Sum, product)?;
                b.map(Neg, &[sum])
            }
            Loss::BinaryCrossentropy { from_logits, label_smoothing } => {
                let t = smoothed(b, t, label_smoothing, 0.5)?;
                let loss = binary(b, t, y, from_logits)?;
                over_last(b, ReduceKind::Mean, loss)
            }
            Loss::BinaryFocal { from_logits, gamma, alpha } => {
                let loss = binary(b, t, y, from_logits)?;
                let p = if from_logits { b.map(Sigmoid, &[y])? } else { y };
                // How improbable what is true was: t (1 - p) + (1 - t) p.
                let (not_t, not_p) = (from_one(b, t)?, from_one(b, p)?);
                let (ones, zeros) = (b.map(Mul, &[t, not_p])?, b.map(Mul, &[not_t, p])?);
                let miss = b.map(Add, &[ones, zeros])?;
                let factor = with(b, Pow, miss, gamma)?;
                let (of_ones, of_zeros) = (with(b, Mul, t, alpha)?, with(b, Mul, not_t, 1.0 - alpha)?);
                let weight = b.map(Add, &[of_ones, of_zeros])?;
                let factor = b.map(Mul, &[factor, weight])?;
                let loss = b.map(Mul, &[loss, factor])?;
                over_last(b, ReduceKind::Mean, loss)
            }
            Loss::KlDivergence => {
                let (t, y) = (kept_off(b, t)?, kept_off(b, y)?);
                let ratio = b.map(Div, &[t, y])?;
                let logarithm = b.map(Log, &[ratio])?;
                let product = b.map(Mul, &[t, logarithm])?;
                over_last(b, ReduceKind::Sum, product)
            }
            Loss::Hinge => {
                let product = b.map(Mul, &[t, y])?;
                let rest = from_one(b, product)?;
                let loss = b.map(Relu, &[rest])?;
                over_last(b, ReduceKind::Mean, loss)
            }
        }
    }

    /// Whether what is true are classes by number.
    pub fn takes_classes(&self) -> bool {
        matches!(
            self,
            Loss::SparseCategoricalCrossentropy { .. }
                | Loss::SparseCategoricalFocal { .. }
                | Loss::NegativeLogLikelihood
        )
    }
}

/// The mean of losses, a number. Weights have the losses' shape, or that of their first dimensions.
pub fn mean(
    b: &mut Builder,
    losses: Value,
    weights: Option<Value>,
    by: WeightedMean,
) -> Result<Value, Error> {
    let axes: Vec<i64> = (0..b.ty(losses).rank() as i64).collect();
    let over = |kind: ReduceKind| Reduce::over(kind, &axes, false);
    let Some(weights) = weights else { return b.push1(over(ReduceKind::Mean), &[losses]) };
    let weights = match b.ty(losses).rank() - b.ty(weights).rank().min(b.ty(losses).rank()) {
        0 => weights,
        missing => {
            let mut shape = b.ty(weights).shape();
            shape.extend(std::iter::repeat_n(1, missing));
            let weights = b.push1(Reshape::to(&shape), &[weights])?;
            b.push1(windlass_ir::ops::Broadcast::to(&b.ty(losses).shape()), &[weights])?
        }
    };
    let weighted = b.map(Mul, &[losses, weights])?;
    match by {
        WeightedMean::Count => b.push1(over(ReduceKind::Mean), &[weighted]),
        WeightedMean::Weights => {
            let (sum, total) =
                (b.push1(over(ReduceKind::Sum), &[weighted])?, b.push1(over(ReduceKind::Sum), &[weights])?);
            b.map(Div, &[sum, total])
        }
    }
}

/// `f(x, number)`.
fn with(b: &mut Builder, f: ScalarFn, x: Value, number: f64) -> Result<Value, Error> {
    let number = b.scalar_like(x, number);
    b.map(f, &[x, number])
}

/// `1 - x`.
fn from_one(b: &mut Builder, x: Value) -> Result<Value, Error> {
    let one = b.scalar_like(x, 1.0);
    b.map(Sub, &[one, x])
}

fn over_last(b: &mut Builder, kind: ReduceKind, x: Value) -> Result<Value, Error> {
    b.push1(Reduce::over(kind, &[-1], false), &[x])
}

/// `x` between epsilon and 1.
fn kept_off(b: &mut Builder, x: Value) -> Result<Value, Error> {
    let (low, high) = (b.scalar_like(x, EPSILON), b.scalar_like(x, 1.0));
    b.map(Clamp, &[x, low, high])
}

/// `t (1 - amount) + amount * target`.
fn smoothed(b: &mut Builder, t: Value, amount: f64, target: f64) -> Result<Value, Error> {
    if amount == 0.0 {
        return Ok(t);
    }
    let kept = with(b, Mul, t, 1.0 - amount)?;
    with(b, Add, kept, amount * target)
}

/// Logarithms of the probabilities along the last dimension.
fn log_probabilities(b: &mut Builder, y: Value, from_logits: bool) -> Result<Value, Error> {
    let softmax = Softmax { log: true, ..Softmax::along(-1) };
    if from_logits {
        return b.push1(softmax, &[y]);
    }
    let rank = b.ty(y).rank() as i64;
    if let Some(data) = b.graph().def_node(y)
        && let Op::Softmax(op) = &data.op
        && !op.log
        && !op.masked
        && (op.axis == -1 || op.axis == rank - 1)
    {
        let logits = data.ins[0];
        return b.push1(softmax, &[logits]);
    }
    // Keras scales probabilities to a sum of 1 and keeps them off 0 and 1.
    let sum = b.push1(Reduce::over(ReduceKind::Sum, &[-1], true), &[y])?;
    let y = b.map(Div, &[y, sum])?;
    let (low, high) = (b.scalar_like(y, EPSILON), b.scalar_like(y, 1.0 - EPSILON));
    let y = b.map(Clamp, &[y, low, high])?;
    b.map(Log, &[y])
}

/// Minus the element of the class, for each example.
fn of_class(b: &mut Builder, x: Value, class: Value) -> Result<Value, Error> {
    let shape = b.ty(x).shape();
    let (&classes, examples) = shape.split_last().expect("there are classes");
    let count: usize = examples.iter().product();
    let rows = b.push1(Reshape::to(&[count, classes]), &[x])?;
    let class = b.push1(Reshape::to(&[count]), &[class])?;
    let nll = NllLoss { reduction: LossReduction::None, ignore_index: Vec::new() };
    let loss = b.push1(nll, &[rows, class])?;
    b.push1(Reshape::to(examples), &[loss])
}

/// Binary cross-entropy of each element.
fn binary(b: &mut Builder, t: Value, y: Value, from_logits: bool) -> Result<Value, Error> {
    let logits = match b.graph().def_node(y) {
        _ if from_logits => Some(y),
        Some(data) if matches!(&data.op, Op::Elementwise(op) if op.f == Sigmoid) => Some(data.ins[0]),
        _ => None,
    };
    match logits {
        Some(x) => {
            // max(x, 0) - x t + log(1 + e^-|x|)
            let size = b.map(Abs, &[x])?;
            let negative = b.map(Neg, &[size])?;
            let exp = b.map(Exp, &[negative])?;
            let tail = b.map(Log1p, &[exp])?;
            let (positive, product) = (b.map(Relu, &[x])?, b.map(Mul, &[x, t])?);
            let line = b.map(Sub, &[positive, product])?;
            b.map(Add, &[line, tail])
        }
        None => {
            let (low, high) = (b.scalar_like(y, EPSILON), b.scalar_like(y, 1.0 - EPSILON));
            let y = b.map(Clamp, &[y, low, high])?;
            let (not_t, not_y) = (from_one(b, t)?, from_one(b, y)?);
            let (of_one, of_zero) = (b.map(Log, &[y])?, b.map(Log, &[not_y])?);
            let (one, zero) = (b.map(Mul, &[t, of_one])?, b.map(Mul, &[not_t, of_zero])?);
            let sum = b.map(Add, &[one, zero])?;
            b.map(Neg, &[sum])
        }
    }
}
