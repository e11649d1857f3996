//! Losses: how far predictions are from what is true, an example at a time, and their weighted mean.
//!
//! Names are Keras's. A loss of probabilities that a softmax or a sigmoid made is computed from what it was made from,
//! which keeps the digits that the probabilities lose.

use windlass_ir::ops::{Broadcast, LossReduction, NllLoss, Reduce, ReduceKind, Reshape, Softmax};
use windlass_ir::{Builder, Error, Op, ScalarFn, Value};

use ScalarFn::{
    Abs, Add, Clamp, Div, Eq, Exp, Gt, IsNan, Le, Log, Log1p, Mul, Neg, Pow, Relu, Select, Sigmoid, Sub,
};

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
    /// The same with so much of each class spread over all, as PyTorch does.
    SmoothedSparseCategoricalCrossentropy {
        /// Whether predictions are logits, rather than probabilities.
        from_logits: bool,
        /// How much.
        label_smoothing: f64,
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
    /// Another loss, of what is known alone: [`Loss::mean`] is over that.
    Masked {
        /// The loss.
        loss: Box<Loss>,
        /// What is not known.
        mask: Mask,
    },
}

/// Which elements of what is true say nothing. Where an example is one loss over several of them, one is enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// Those of this value: the class of padding, say.
    Value(f64),
    /// Those that are not numbers.
    Nan,
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
    /// The loss of each example: the predictions' shape without the last dimension. What is masked adds nothing.
    pub fn per_example(&self, b: &mut Builder, truth: Value, prediction: Value) -> Result<Value, Error> {
        let Terms { losses, known, over_last: elements } = self.terms(b, truth, prediction)?;
        let losses = match known {
            Some(known) => b.map(Mul, &[losses, known])?,
            None => losses,
        };
        match elements {
            true => over_last(b, ReduceKind::Mean, losses),
            false => Ok(losses),
        }
    }

    /// The mean of the losses, a number. Weights have the losses' shape, or that of their first dimensions.
    pub fn mean(
        &self,
        b: &mut Builder,
        truth: Value,
        prediction: Value,
        weights: Option<Value>,
        by: WeightedMean,
    ) -> Result<Value, Error> {
        let Loss::Masked { .. } = self else {
            let losses = self.per_example(b, truth, prediction)?;
            return mean(b, losses, weights, by);
        };
        let Terms { losses, known, .. } = self.terms(b, truth, prediction)?;
        let known = known.expect("a masked loss says what is known");
        let counted = match weights {
            Some(weights) => {
                let weights = spread(b, weights, losses)?;
                b.map(Mul, &[weights, known])?
            }
            None => known,
        };
        let weighted = b.map(Mul, &[losses, counted])?;
        let sum = over_all(b, ReduceKind::Sum, weighted)?;
        let total = over_all(b, ReduceKind::Sum, if by == WeightedMean::Weights { counted } else { known })?;
        // Of nothing the mean is 0.
        let zero = b.scalar_like(total, 0.0);
        let some = b.map(Gt, &[total, zero])?;
        let one = b.scalar_like(total, 1.0);
        let total = b.map(Select, &[some, total, one])?;
        b.map(Div, &[sum, total])
    }

    /// What is summed.
    fn terms(&self, b: &mut Builder, truth: Value, prediction: Value) -> Result<Terms, Error> {
        if let Loss::Masked { loss, mask } = self {
            return mask.terms(b, loss, truth, prediction);
        }
        let one = |losses: Value| Ok(Terms { losses, known: None, over_last: false });
        let each = |losses: Value| Ok(Terms { losses, known: None, over_last: true });
        let (y, t) = (prediction, truth);
        match *self {
            Loss::Masked { .. } => unreachable!("answered above"),
            Loss::MeanSquaredError => {
                let difference = b.map(Sub, &[y, t])?;
                let square = b.map(Mul, &[difference, difference])?;
                each(square)
            }
            Loss::MeanAbsoluteError => {
                let difference = b.map(Sub, &[y, t])?;
                let size = b.map(Abs, &[difference])?;
                each(size)
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
                each(loss)
            }
            Loss::SparseCategoricalCrossentropy { from_logits } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                one(of_class(b, logarithms, t)?)
            }
            Loss::SmoothedSparseCategoricalCrossentropy { from_logits, label_smoothing } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                let mean = over_last(b, ReduceKind::Mean, logarithms)?;
                let (own, spread) = (of_class(b, logarithms, t)?, with(b, Mul, mean, -label_smoothing)?);
                let kept = with(b, Mul, own, 1.0 - label_smoothing)?;
                one(b.map(Add, &[kept, spread])?)
            }
            Loss::NegativeLogLikelihood => one(of_class(b, y, t)?),
            Loss::SparseCategoricalFocal { from_logits, gamma } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                let loss = of_class(b, logarithms, t)?;
                let negative = b.map(Neg, &[loss])?;
                let probability = b.map(Exp, &[negative])?;
                let rest = from_one(b, probability)?;
                let factor = with(b, Pow, rest, gamma)?;
                one(b.map(Mul, &[loss, factor])?)
            }
            Loss::CategoricalCrossentropy { from_logits, label_smoothing } => {
                let logarithms = log_probabilities(b, y, from_logits)?;
                let classes = b.ty(y).dims.last().and_then(|d| d.as_fixed()).unwrap_or(1).max(1);
                let t = smoothed(b, t, label_smoothing, 1.0 / classes as f64)?;
                let product = b.map(Mul, &[t, logarithms])?;
                let sum = over_last(b, ReduceKind::Sum, product)?;
                one(b.map(Neg, &[sum])?)
            }
            Loss::BinaryCrossentropy { from_logits, label_smoothing } => {
                let t = smoothed(b, t, label_smoothing, 0.5)?;
                let loss = binary(b, t, y, from_logits)?;
                each(loss)
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
                each(loss)
            }
            Loss::KlDivergence => {
                let (t, y) = (kept_off(b, t)?, kept_off(b, y)?);
                let ratio = b.map(Div, &[t, y])?;
                let logarithm = b.map(Log, &[ratio])?;
                let product = b.map(Mul, &[t, logarithm])?;
                one(over_last(b, ReduceKind::Sum, product)?)
            }
            Loss::Hinge => {
                let product = b.map(Mul, &[t, y])?;
                let rest = from_one(b, product)?;
                let loss = b.map(Relu, &[rest])?;
                each(loss)
            }
        }
    }

    /// Whether what is true are classes by number.
    pub fn takes_classes(&self) -> bool {
        matches!(
            self.unmasked().0,
            Loss::SparseCategoricalCrossentropy { .. }
                | Loss::SmoothedSparseCategoricalCrossentropy { .. }
                | Loss::SparseCategoricalFocal { .. }
                | Loss::NegativeLogLikelihood
        )
    }

    /// This loss of what is known alone.
    pub fn masked(self, mask: Mask) -> Loss {
        Loss::Masked { loss: Box::new(self), mask }
    }

    /// The loss behind masks, and the outermost mask.
    pub fn unmasked(&self) -> (&Loss, Option<Mask>) {
        match self {
            Loss::Masked { loss, mask } => (loss.unmasked().0, Some(*mask)),
            _ => (self, None),
        }
    }
}

/// What the mean is of.
struct Terms {
    losses: Value,
    /// 1 for those that count, else 0; all do where there is none.
    known: Option<Value>,
    /// Whether an example has one for each element of its last dimension.
    over_last: bool,
}

impl Mask {
    /// Whether this element is one of those that say nothing.
    pub fn hides(self, truth: f64) -> bool {
        match self {
            Mask::Value(value) => truth == value || truth == f64::from(value as f32),
            Mask::Nan => truth.is_nan(),
        }
    }

    fn terms(self, b: &mut Builder, loss: &Loss, t: Value, y: Value) -> Result<Terms, Error> {
        let dtype = b.ty(t).dtype;
        // What an integer of the type cannot be is not rounded to one that it can.
        let (low, high) = if dtype.is_float() { (i128::MIN, i128::MAX) } else { dtype.int_range() };
        let unknown = match self {
            Mask::Value(value) if (low as f64..=high as f64).contains(&value) => with(b, Eq, t, value)?,
            Mask::Nan if dtype.is_float() => b.map(IsNan, &[t])?,
            Mask::Value(_) | Mask::Nan => return loss.terms(b, t, y)?.all_known(b),
        };
        // A class that there is, and a number: what follows from it is not looked at.
        let zero = b.scalar_like(t, 0.0);
        let t = b.map(Select, &[unknown, zero, t])?;
        let terms = loss.terms(b, t, y)?;
        let (zero, one) = (b.scalar_like(terms.losses, 0.0), b.scalar_like(terms.losses, 1.0));
        let mut known = b.map(Select, &[unknown, zero, one])?;
        if b.ty(known).rank() > b.ty(terms.losses).rank() {
            known = over_last(b, ReduceKind::Min, known)?;
        }
        if let Some(other) = terms.known {
            known = b.map(Mul, &[known, other])?;
        }
        Ok(Terms { known: Some(known), ..terms })
    }
}

impl Terms {
    fn all_known(self, b: &mut Builder) -> Result<Terms, Error> {
        let one = b.scalar_like(self.losses, 1.0);
        let ones = b.push1(Broadcast::to(&b.ty(self.losses).shape()), &[one])?;
        Ok(Terms { known: self.known.or(Some(ones)), ..self })
    }
}

/// The mean of losses, a number. Weights have the losses' shape, or that of their first dimensions.
pub fn mean(
    b: &mut Builder,
    losses: Value,
    weights: Option<Value>,
    by: WeightedMean,
) -> Result<Value, Error> {
    let Some(weights) = weights else { return over_all(b, ReduceKind::Mean, losses) };
    let weights = spread(b, weights, losses)?;
    let weighted = b.map(Mul, &[losses, weights])?;
    match by {
        WeightedMean::Count => over_all(b, ReduceKind::Mean, weighted),
        WeightedMean::Weights => {
            let (sum, total) =
                (over_all(b, ReduceKind::Sum, weighted)?, over_all(b, ReduceKind::Sum, weights)?);
            b.map(Div, &[sum, total])
        }
    }
}

/// Weights of the losses' first dimensions, along the others.
fn spread(b: &mut Builder, weights: Value, losses: Value) -> Result<Value, Error> {
    match b.ty(losses).rank().saturating_sub(b.ty(weights).rank()) {
        0 => Ok(weights),
        missing => {
            let mut shape = b.ty(weights).shape();
            shape.extend(std::iter::repeat_n(1, missing));
            let weights = b.push1(Reshape::to(&shape), &[weights])?;
            b.push1(Broadcast::to(&b.ty(losses).shape()), &[weights])
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

fn over_all(b: &mut Builder, kind: ReduceKind, x: Value) -> Result<Value, Error> {
    let axes: Vec<i64> = (0..b.ty(x).rank() as i64).collect();
    b.push1(Reduce::over(kind, &axes, false), &[x])
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
        && let Op::Softmax(op) = &*data.op
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
        Some(data) if matches!(&*data.op, Op::Elementwise(op) if op.f == Sigmoid) => Some(data.ins[0]),
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
