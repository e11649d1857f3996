//! Metrics: how good predictions are, over all of an evaluation rather than as means of its batches.
//!
//! Names and definitions are scikit-learn's. Predictions come from the compiled graph; a metric counts them here, and
//! keeps counts and sums only, but for [`Metric::Auc`], which keeps the scores that it ranks.
//!
//! ```
//! use windlass::nn::{ConfusionMatrix, Of};
//! use windlass::Tensor;
//!
//! let truth = Tensor::new(&[6], &[0i32, 1, 1, 2, 2, 2]);
//! let scores = Tensor::new(&[6, 3], &[
//!     0.9f32, 0.1, 0.0, 0.2, 0.7, 0.1, 0.6, 0.3, 0.1, 0.1, 0.2, 0.7, 0.0, 0.1, 0.9, 0.2, 0.5, 0.3,
//! ]);
//! let matrix = ConfusionMatrix::of_scores(&scores, &truth);
//! assert_eq!(matrix.rows().collect::<Vec<_>>(), [[1, 0, 0], [1, 1, 0], [0, 1, 2]]);
//! assert_eq!(matrix.accuracy(), 4.0 / 6.0);
//! assert_eq!(matrix.recall(Of::Class(2)), 2.0 / 3.0);
//! ```

use std::str::FromStr;

use windlass_frontend::nn::{Loss, Mask, NameError, Spec};
use windlass_ir::Tensor;

use super::confusion::ConfusionMatrix;
use super::data::largest;
use super::objective::OutputLoss;

/// Which of a classifier's classes a metric is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Of {
    /// The mean over those that occur.
    #[default]
    Macro,
    /// One.
    Class(usize),
}

/// How good predictions are.
///
/// What is true are classes by number, probabilities of classes along the last dimension, or with one column (and with
/// [`Loss::BinaryCrossentropy`] and other binary losses in every column) 1 and 0: the loss says which.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// The share of examples whose class is right.
    Accuracy,
    /// The share whose class is among so many of the largest scores, of equal ones the first.
    TopKAccuracy(usize),
    /// Of those said to be of a class the share that are; 0 if none were said to be.
    Precision(Of),
    /// Of those of a class the share that were said to be; 0 if none are.
    Recall(Of),
    /// The harmonic mean of precision and recall.
    F1(Of),
    /// The area under the ROC curve: how often one of a class has a higher score than one that is not, a tie being one
    /// half. Of several classes the mean of each against the others. NaN where a class has no examples, or all.
    Auc,
    /// The root of the mean of the squares of the errors.
    RootMeanSquaredError,
    /// The mean of the sizes of the errors.
    MeanAbsoluteError,
}

impl Metric {
    /// What reports call it: Keras's names.
    pub fn name(&self) -> String {
        let of = |name: &str, of: Of| match of {
            Of::Macro => name.to_string(),
            Of::Class(class) => format!("{name}_{class}"),
        };
        match *self {
            Metric::Accuracy => "accuracy".to_string(),
            Metric::TopKAccuracy(k) => format!("top_{k}_accuracy"),
            Metric::Precision(which) => of("precision", which),
            Metric::Recall(which) => of("recall", which),
            Metric::F1(which) => of("f1", which),
            Metric::Auc => "auc".to_string(),
            Metric::RootMeanSquaredError => "root_mean_squared_error".to_string(),
            Metric::MeanAbsoluteError => "mean_absolute_error".to_string(),
        }
    }
}

impl Metric {
    /// The names of all metrics.
    pub const NAMES: [&'static str; 8] = [
        "accuracy",
        "top_k_accuracy",
        "precision",
        "recall",
        "f1",
        "auc",
        "root_mean_squared_error",
        "mean_absolute_error",
    ];
}

impl FromStr for Metric {
    type Err = NameError;

    /// Keras's names (`rmse` and `mae` too); options are those of the variants: `top_k_accuracy:k=3`, `recall:class=1`.
    fn from_str(text: &str) -> Result<Metric, NameError> {
        let mut spec = Spec::new(text);
        let of = |spec: &mut Spec<'_>| spec.count("class").map_or(Of::Macro, Of::Class);
        let metric = match spec.name {
            "accuracy" => Metric::Accuracy,
            "top_k_accuracy" => Metric::TopKAccuracy(spec.count("k").unwrap_or(5)),
            "precision" => Metric::Precision(of(&mut spec)),
            "recall" => Metric::Recall(of(&mut spec)),
            "f1" => Metric::F1(of(&mut spec)),
            "auc" => Metric::Auc,
            "root_mean_squared_error" | "rmse" => Metric::RootMeanSquaredError,
            "mean_absolute_error" | "mae" => Metric::MeanAbsoluteError,
            _ => return spec.unknown("metric", &Metric::NAMES),
        };
        spec.finish(metric)
    }
}

/// What is true of examples.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Classes by number.
    Classes,
    /// The class is the largest along the last dimension.
    OneHot,
    /// One class or another in each element: what is predicted is the second above this.
    Binary(f64),
}

impl Form {
    /// What a loss takes to be true.
    fn of(loss: &Loss, truth: &Tensor) -> Form {
        match loss.unmasked().0 {
            loss if loss.takes_classes() => Form::Classes,
            Loss::BinaryCrossentropy { from_logits, .. } | Loss::BinaryFocal { from_logits, .. } => {
                Form::Binary(if *from_logits { 0.0 } else { 0.5 })
            }
            Loss::Hinge => Form::Binary(0.0),
            _ if truth.shape().last() == Some(&1) => Form::Binary(0.5),
            _ => Form::OneHot,
        }
    }
}

/// Whether scores along the last dimension are logits, which only a softmax makes comparable between examples.
fn are_logits(loss: &Loss) -> bool {
    match *loss.unmasked().0 {
        Loss::SparseCategoricalCrossentropy { from_logits }
        | Loss::SmoothedSparseCategoricalCrossentropy { from_logits, .. }
        | Loss::CategoricalCrossentropy { from_logits, .. }
        | Loss::SparseCategoricalFocal { from_logits, .. } => from_logits,
        Loss::NegativeLogLikelihood => true,
        _ => false,
    }
}

/// Metrics of predictions that come batch by batch.
#[derive(Clone, Debug)]
struct Tally {
    loss: Loss,
    /// Whose class is right.
    right: Kept,
    kept: Vec<(Metric, Kept)>,
}

/// What a metric has seen.
#[derive(Clone, Debug)]
enum Kept {
    Share {
        hits: usize,
        count: usize,
    },
    Sum {
        sum: f64,
        count: usize,
    },
    Confusion(ConfusionMatrix),
    /// The scores of each class, and whether each is of that class.
    Scores(Vec<Vec<(f64, bool)>>),
}

impl Tally {
    /// Of nothing so far, for a model with this loss.
    fn new(metrics: &[Metric], loss: &Loss) -> Tally {
        let kept = |metric: &Metric| match metric {
            Metric::Accuracy | Metric::TopKAccuracy(_) => Kept::Share { hits: 0, count: 0 },
            Metric::Precision(_) | Metric::Recall(_) | Metric::F1(_) => {
                Kept::Confusion(ConfusionMatrix::default())
            }
            Metric::Auc => Kept::Scores(Vec::new()),
            Metric::RootMeanSquaredError | Metric::MeanAbsoluteError => Kept::Sum { sum: 0.0, count: 0 },
        };
        let kept = metrics.iter().map(|metric| (*metric, kept(metric))).collect();
        Tally { loss: loss.clone(), right: Kept::Share { hits: 0, count: 0 }, kept }
    }

    /// The share of examples whose class is right, if what is true are classes by number.
    pub(super) fn accuracy(&self) -> Option<f64> {
        self.loss.takes_classes().then(|| value(&Metric::Accuracy, &self.right))
    }

    /// Counts predictions and what is true of them. Says how many examples the mean of their losses is of, a masked
    /// part of one being none.
    pub(super) fn add(&mut self, prediction: &Tensor, truth: &Tensor) -> f64 {
        if self.kept.is_empty() && !self.loss.takes_classes() {
            return counted(&self.loss, truth);
        }
        let rows = Rows::new(&self.loss, prediction, truth);
        let pairs = rows.pairs();
        let right = self.loss.takes_classes().then_some((&Metric::Accuracy, &mut self.right));
        for (metric, kept) in self.kept.iter_mut().map(|(metric, kept)| (&*metric, kept)).chain(right) {
            match (metric, kept) {
                (Metric::TopKAccuracy(k), Kept::Share { hits, count }) => {
                    *hits += pairs.iter().filter(|pair| rows.is_among(pair.row, pair.truth, *k)).count();
                    *count += pairs.len();
                }
                (_, Kept::Share { hits, count }) => {
                    *hits += pairs.iter().filter(|pair| pair.found == pair.truth).count();
                    *count += pairs.len();
                }
                (_, Kept::Confusion(matrix)) => {
                    matrix.widen(rows.classes());
                    pairs.iter().for_each(|pair| matrix.add(pair.truth, pair.found));
                }
                (_, Kept::Scores(classes)) => rows.add_scores(&pairs, are_logits(&self.loss), classes),
                (metric, Kept::Sum { sum, count }) => {
                    for (y, t) in rows.values() {
                        let error = y - t;
                        *sum +=
                            if *metric == Metric::MeanAbsoluteError { error.abs() } else { error * error };
                        *count += 1;
                    }
                }
            }
        }
        counted(&self.loss, truth)
    }

    /// The metrics by name, of all that was added.
    pub(super) fn results(&self) -> Vec<(String, f64)> {
        self.kept.iter().map(|(metric, kept)| (metric.name(), value(metric, kept))).collect()
    }
}

/// A tally for each loss of a model.
pub(super) struct Tallies(Vec<(usize, String, Tally)>);

impl Tallies {
    /// Of nothing so far, for losses of outputs by their positions.
    pub(super) fn new(metrics: &[Metric], losses: &[(usize, OutputLoss)]) -> Tallies {
        let of = |(output, own): &(usize, OutputLoss)| {
            // Of several outputs, each has its name before its metrics'.
            let prefix = if losses.len() == 1 { String::new() } else { format!("{}.", own.output) };
            (*output, prefix, Tally::new(metrics, &own.loss))
        };
        Tallies(losses.iter().map(of).collect())
    }

    /// Counts the predictions of all outputs, and what is true of those with a loss. Says how many examples the mean of
    /// their losses is of, which is the first's.
    pub(super) fn add(&mut self, predictions: &[Tensor], truths: &[Tensor]) -> f64 {
        let tallies = self.0.iter_mut().zip(truths);
        let counts: Vec<f64> =
            tallies.map(|((output, _, tally), truth)| tally.add(&predictions[*output], truth)).collect();
        counts.first().copied().unwrap_or(0.0)
    }

    /// The share of examples whose class is right, the mean over outputs whose truths are classes.
    pub(super) fn accuracy(&self) -> Option<f64> {
        let own: Vec<f64> = self.0.iter().filter_map(|(_, _, tally)| tally.accuracy()).collect();
        (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
    }

    /// The metrics by name, of all that was added.
    pub(super) fn results(&self) -> Vec<(String, f64)> {
        let of = |(_, prefix, tally): &(usize, String, Tally)| {
            let own = tally.results().into_iter();
            own.map(|(name, value)| (format!("{prefix}{name}"), value)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}

/// A metric of what it has seen.
fn value(metric: &Metric, kept: &Kept) -> f64 {
    match (metric, kept) {
        (_, Kept::Share { hits, count }) => *hits as f64 / (*count).max(1) as f64,
        (Metric::Precision(of), Kept::Confusion(matrix)) => matrix.precision(*of),
        (Metric::Recall(of), Kept::Confusion(matrix)) => matrix.recall(*of),
        (Metric::F1(of), Kept::Confusion(matrix)) => matrix.f1(*of),
        (_, Kept::Confusion(matrix)) => matrix.accuracy(),
        (_, Kept::Scores(classes)) => {
            let areas: Vec<f64> = classes.iter().map(|scores| area(scores)).collect();
            areas.iter().sum::<f64>() / areas.len() as f64
        }
        (Metric::RootMeanSquaredError, Kept::Sum { sum, count }) => (sum / (*count).max(1) as f64).sqrt(),
        (_, Kept::Sum { sum, count }) => sum / (*count).max(1) as f64,
    }
}

/// The class of an example, and the one found.
struct Pair {
    row: usize,
    truth: usize,
    found: usize,
}

/// Predictions beside what is true.
struct Rows {
    form: Form,
    mask: Option<Mask>,
    columns: usize,
    prediction: Vec<f64>,
    truth: Vec<f64>,
    found: Vec<i64>,
}

impl Rows {
    fn new(loss: &Loss, prediction: &Tensor, truth: &Tensor) -> Rows {
        let form = Form::of(loss, truth);
        Rows {
            form,
            mask: loss.unmasked().1,
            columns: prediction.shape().last().copied().unwrap_or(1).max(1),
            prediction: prediction.to_f64s(),
            truth: truth.to_f64s(),
            found: if let Form::Binary(_) = form { Vec::new() } else { largest(prediction) },
        }
    }

    fn classes(&self) -> usize {
        if let Form::Binary(_) = self.form { 2 } else { self.columns }
    }

    fn is_hidden(&self, truth: f64) -> bool {
        self.mask.is_some_and(|mask| mask.hides(truth))
    }

    /// The examples that have a class and are not masked.
    fn pairs(&self) -> Vec<Pair> {
        let pair = |row: usize, truth: f64, found: usize| {
            // What is no class is never found.
            Pair { row, truth: if truth >= 0.0 { truth as usize } else { usize::MAX }, found }
        };
        match self.form {
            Form::Classes => {
                let known = self.truth.iter().enumerate().filter(|(_, t)| !self.is_hidden(**t));
                known.filter_map(|(row, &t)| Some(pair(row, t, *self.found.get(row)? as usize))).collect()
            }
            Form::OneHot => {
                let rows = self.truth.chunks_exact(self.columns).enumerate();
                let known = rows.filter(|(_, t)| !t.iter().any(|&t| self.is_hidden(t)));
                let class =
                    |t: &[f64]| (0..t.len()).rev().max_by(|&a, &b| t[a].total_cmp(&t[b])).unwrap_or(0);
                known.map(|(row, t)| pair(row, class(t) as f64, self.found[row] as usize)).collect()
            }
            Form::Binary(threshold) => {
                let both = self.truth.iter().zip(&self.prediction).enumerate();
                let known = both.filter(|(_, (t, _))| !self.is_hidden(**t));
                known
                    .map(|(row, (&t, &y))| {
                        pair(row, f64::from(u8::from(t > 0.5)), usize::from(y > threshold))
                    })
                    .collect()
            }
        }
    }

    /// Whether a class is among the `k` of the largest scores.
    fn is_among(&self, row: usize, class: usize, k: usize) -> bool {
        if let Form::Binary(threshold) = self.form {
            return k > 1 || usize::from(self.prediction[row] > threshold) == class;
        }
        let scores = &self.prediction[row * self.columns..][..self.columns];
        let Some(&own) = scores.get(class) else { return false };
        // Equal ones count in the order of classes, as for the largest.
        let better = |&(other, &score): &(usize, &f64)| score > own || score == own && other < class;
        !own.is_nan() && scores.iter().enumerate().filter(better).count() < k
    }

    fn add_scores(&self, pairs: &[Pair], logits: bool, classes: &mut Vec<Vec<(f64, bool)>>) {
        if let Form::Binary(_) = self.form {
            // Elements of a column are of one question.
            classes.resize(self.columns.max(classes.len()), Vec::new());
            for pair in pairs {
                classes[pair.row % self.columns].push((self.prediction[pair.row], pair.truth == 1));
            }
            return;
        }
        classes.resize(self.columns.max(classes.len()), Vec::new());
        for pair in pairs {
            let scores = &self.prediction[pair.row * self.columns..][..self.columns];
            let scores = if logits { softmax(scores) } else { scores.to_vec() };
            for (class, (kept, score)) in classes.iter_mut().zip(scores).enumerate() {
                kept.push((score, pair.truth == class));
            }
        }
    }

    /// The elements of predictions and what is true of each.
    fn values(&self) -> Vec<(f64, f64)> {
        let both = self.prediction.iter().copied().zip(self.truth.iter().copied());
        both.filter(|(_, t)| !self.is_hidden(*t)).collect()
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// The area under the ROC curve, from ranks: equal scores share the mean of theirs (Mann and Whitney, 1947).
fn area(scores: &[(f64, bool)]) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut before, mut ranks) = (0.0, 0.0);
    for ties in sorted.chunk_by(|a, b| a.0 == b.0) {
        let rank = before + (ties.len() as f64 + 1.0) / 2.0;
        ranks += rank * ties.iter().filter(|(_, is)| *is).count() as f64;
        before += ties.len() as f64;
    }
    let ones = scores.iter().filter(|(_, is)| *is).count() as f64;
    let zeros = scores.len() as f64 - ones;
    (ranks - ones * (ones + 1.0) / 2.0) / (ones * zeros)
}

/// How many of the losses that a batch's mean is of count, in units of examples.
fn counted(loss: &Loss, truth: &Tensor) -> f64 {
    let examples = truth.shape().first().copied().unwrap_or(0) as f64;
    let Some(mask) = loss.unmasked().1 else { return examples };
    let elements = truth.to_f64s();
    let known = elements.iter().filter(|&&t| !mask.hides(t)).count();
    examples * known as f64 / elements.len().max(1) as f64
}
