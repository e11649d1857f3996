//! The confusion matrix of a classifier, and what follows from it.

use std::fmt;

use windlass_ir::Tensor;

use super::data::largest;
use super::metrics::Of;

/// How often examples of one class were said to be of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: usize,
    /// By true class, then by the one found.
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// Of scores along the last dimension and classes by number. A class below 0 is of none and not counted.
    pub fn of_scores(scores: &Tensor, truth: &Tensor) -> ConfusionMatrix {
        let mut matrix = ConfusionMatrix::default();
        matrix.widen(scores.shape().last().copied().unwrap_or(0));
        for (found, class) in largest(scores).into_iter().zip(truth.to_ints()) {
            matrix.add(usize::try_from(class).unwrap_or(usize::MAX), found as usize);
        }
        matrix
    }

    /// Makes room for so many classes.
    pub(super) fn widen(&mut self, classes: usize) {
        if classes > self.classes {
            let old =
                std::mem::replace(self, ConfusionMatrix { classes, counts: vec![0; classes * classes] });
            for (class, row) in old.rows().enumerate() {
                self.counts[class * classes..][..row.len()].copy_from_slice(row);
            }
        }
    }

    /// Counts an example. One of no class that could be found is left out.
    pub(super) fn add(&mut self, truth: usize, found: usize) {
        if truth < self.classes && found < self.classes {
            self.counts[truth * self.classes + found] += 1;
        }
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// For each true class, how often each was found.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes.max(1))
    }

    /// Examples of a class, those said to be of it, and those that are both.
    fn figures(&self, class: usize) -> (f64, f64, f64) {
        let at = |truth: usize, found: usize| self.counts[truth * self.classes + found] as f64;
        let all = 0..self.classes;
        let (own, said) =
            (all.clone().map(|other| at(class, other)).sum(), all.map(|other| at(other, class)).sum());
        (own, said, at(class, class))
    }

    /// A figure of a class, or its mean over those that occur.
    fn figure(&self, of: Of, figure: impl Fn((f64, f64, f64)) -> f64) -> f64 {
        match of {
            Of::Class(class) if class < self.classes => figure(self.figures(class)),
            Of::Class(_) => 0.0,
            Of::Macro => {
                let all = (0..self.classes).map(|class| self.figures(class));
                let each: Vec<f64> = all.filter(|(own, said, _)| own + said > 0.0).map(figure).collect();
                each.iter().sum::<f64>() / each.len().max(1) as f64
            }
        }
    }

    /// Of those said to be of a class the share that are.
    pub fn precision(&self, of: Of) -> f64 {
        self.figure(of, |(_, said, right)| share(right, said))
    }

    /// Of those of a class the share that were said to be.
    pub fn recall(&self, of: Of) -> f64 {
        self.figure(of, |(own, _, right)| share(right, own))
    }

    /// The harmonic mean of precision and recall.
    pub fn f1(&self, of: Of) -> f64 {
        self.figure(of, |(own, said, right)| share(2.0 * right, own + said))
    }

    /// The share of examples whose class was found.
    pub fn accuracy(&self) -> f64 {
        let right = (0..self.classes).map(|class| self.figures(class).2).sum();
        share(right, self.counts.iter().sum::<u64>() as f64)
    }
}

/// 0 of nothing.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// A row a true class.
impl fmt::Display for ConfusionMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = self.counts.iter().max().copied().unwrap_or(0);
        let width = largest.to_string().len() + 1;
        for row in self.rows() {
            for count in row {
                write!(f, "{count:>width$}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
