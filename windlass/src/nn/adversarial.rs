//! Training against attacks, and how accurate a model stays under them.
//!
//! ```
//! use windlass::nn::{Adversarial, Attack, Fit, Loss, Model, Network, Optimizer, layers::Dense};
//! use windlass::{Options, Tensor};
//!
//! let mut model = Model::new(Network::sequential(&[2]).add(Dense::new(2)), 0, Options::default())?;
//! model.compile(Optimizer::adam(0.1), Loss::SparseCategoricalCrossentropy { from_logits: true });
//! let x = Tensor::new(&[4, 2], &[0.1f32, 0.9, 0.2, 0.7, 0.8, 0.3, 0.9, 0.2]);
//! let y = Tensor::new(&[4], &[0i32, 0, 1, 1]);
//! let attack = Attack::pgd(0.1, 5);
//! let adversarial = Some(Adversarial { attack: attack.clone(), share: 0.5, seed: 3 });
//! model.fit(&x, &y, &Fit { epochs: 40, adversarial, ..Fit::default() })?;
//! let curve = model.robustness(&x, &y, &attack, &[0.0, 0.1, 1.0], 4)?;
//! assert_eq!((curve[0], curve[2].1), ((0.0, 1.0), 0.0));
//! # Ok::<(), windlass::Error>(())
//! ```

use windlass_frontend::nn::initializers::Random;
use windlass_ir::Tensor;

use super::augment::drawn;
use super::data::{rows, stacked};
use super::error::TrainingError;
use super::inputs::{Ball, Pgd};
use super::metrics::Metric;
use super::model::Model;
use crate::error::Error;

/// An attack within so much of each element: steps up the loss, each followed by a return.
#[derive(Clone, Debug, PartialEq)]
pub struct Attack {
    /// How much.
    pub epsilon: f64,
    /// How many steps; one is the fast gradient sign method.
    pub iterations: usize,
    /// How long a step is, in parts of `epsilon`.
    pub step: f64,
    /// Whether it begins at random within `epsilon`, rather than at the example.
    pub random_start: bool,
    /// The smallest and the largest value of an element.
    pub range: (f64, f64),
}

impl Attack {
    /// The fast gradient sign method, for elements from 0 to 1.
    pub fn fgsm(epsilon: f64) -> Attack {
        Attack { epsilon, iterations: 1, step: 1.0, random_start: false, range: (0.0, 1.0) }
    }

    /// Projected gradient descent from a random start, in steps of 2.5 `epsilon` altogether (Madry et al., 2018), for
    /// elements from 0 to 1.
    pub fn pgd(epsilon: f64, iterations: usize) -> Attack {
        let step = 2.5 / iterations.max(1) as f64;
        Attack { iterations, step, random_start: true, ..Attack::fgsm(epsilon) }
    }

    /// With values of another range.
    pub fn within(self, range: (f64, f64)) -> Attack {
        Attack { range, ..self }
    }

    /// Adversarial examples; a random start follows from these seeds, one an example.
    fn apply(&self, model: &mut Model, x: &Tensor, y: &Tensor, seeds: &[u64]) -> Result<Tensor, Error> {
        let each = x.shape()[1..].iter().product::<usize>();
        let start = self.random_start.then(|| {
            let offsets = seeds.iter().flat_map(|&seed| {
                let mut random = Random::new("attack", seed);
                (0..each).map(move |_| self.epsilon * (2.0 * random.unit() - 1.0))
            });
            Tensor::from_f64s(x.dtype(), x.shape(), &offsets.collect::<Vec<f64>>())
        });
        let pgd = Pgd {
            ball: Ball::Linf(self.epsilon),
            step: self.step * self.epsilon,
            iterations: self.iterations,
            start,
            range: self.range,
        };
        model.pgd(x, y, &pgd)
    }
}

/// Training on adversarial examples of the model as it is at each step.
#[derive(Clone, Debug, PartialEq)]
pub struct Adversarial {
    /// How they are made.
    pub attack: Attack,
    /// Which share of the examples of a step they take the places of.
    pub share: f64,
    /// What random starts follow from, beside the epoch and the example.
    pub seed: u64,
}

impl Adversarial {
    /// The examples of a step, the first of them attacked; all of `y`, of which these are `numbers`.
    pub(super) fn mixed(
        &self,
        model: &mut Model,
        x: &Tensor,
        y: &Tensor,
        numbers: &[usize],
        epoch: usize,
    ) -> Result<Tensor, Error> {
        if !(0.0..=1.0).contains(&self.share) {
            let (expected, found) = ("from 0 to 1".to_string(), self.share.to_string());
            return Err(TrainingError::Setting { what: "the adversarial share", expected, found }.into());
        }
        let attacked = (self.share * numbers.len() as f64).round() as usize;
        if attacked == 0 {
            return Ok(x.clone());
        }
        let seeds: Vec<u64> =
            numbers[..attacked].iter().map(|&number| drawn(self.seed, epoch, number)).collect();
        let order: Vec<usize> = (0..numbers.len()).collect();
        let first =
            self.attack.apply(model, &rows(x, &order[..attacked]), &rows(y, &numbers[..attacked]), &seeds)?;
        let rest = rows(x, &order[attacked..]);
        Ok(stacked(&[first, rest]).expect("there are examples"))
    }
}

impl Model {
    /// Adversarial examples by an attack; its random start follows from the seed and the number of each example.
    pub fn attacked(&mut self, x: &Tensor, y: &Tensor, attack: &Attack, seed: u64) -> Result<Tensor, Error> {
        let count = x.shape().first().copied().unwrap_or(0);
        let seeds: Vec<u64> = (0..count).map(|number| drawn(seed, 0, number)).collect();
        attack.apply(self, x, y, &seeds)
    }

    /// The accuracy under an attack of each of these strengths, `batch_size` examples at a time: pairs of the two.
    pub fn robustness(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        attack: &Attack,
        epsilons: &[f64],
        batch_size: usize,
    ) -> Result<Vec<(f64, f64)>, Error> {
        let count = x.shape().first().copied().unwrap_or(0);
        let mut curve = Vec::new();
        for &epsilon in epsilons {
            let attack = Attack { epsilon, ..attack.clone() };
            let mut parts = Vec::new();
            for start in (0..count).step_by(batch_size.max(1)) {
                let numbers: Vec<usize> = (start..(start + batch_size.max(1)).min(count)).collect();
                let seeds: Vec<u64> = numbers.iter().map(|&number| drawn(self.seed, 0, number)).collect();
                parts.push(attack.apply(self, &rows(x, &numbers), &rows(y, &numbers), &seeds)?);
            }
            let mut tallies = self.metrics_tallies(&[Metric::Accuracy])?;
            if let Some(x) = stacked(&parts) {
                tallies.add(&[self.predict(&x, batch_size)?], std::slice::from_ref(y));
            }
            curve.push((epsilon, tallies.results()[0].1));
        }
        Ok(curve)
    }
}
