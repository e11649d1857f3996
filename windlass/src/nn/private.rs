//! Training that gives away little of any one example: differentially private stochastic gradient descent.

use windlass_frontend::nn::accountant::Accountant;
use windlass_frontend::nn::initializers::Random;
use windlass_frontend::nn::{DpSgd, Loss, Noise, Optimizer, WeightedMean};
use windlass_ir::Tensor;

use super::error::TrainingError;
use super::model::Model;
use super::objective::{Objective, OutputLoss};
use super::run::{Batch, Evaluation};
use crate::error::Error;

/// How a model is trained in private.
#[derive(Clone, Debug)]
pub struct PrivateFit<'a> {
    /// How many steps.
    pub steps: usize,
    /// How many examples a step has on average: each is taken with this number over all of them, by itself.
    pub batch_size: usize,
    /// The delta of the epsilon that is told.
    pub delta: f64,
    /// Examples and what is true of them, to evaluate at the end.
    pub validation: Option<(&'a Tensor, &'a Tensor)>,
    /// After how many steps a line is printed each time; 0 for never.
    pub verbose: usize,
}

impl Default for PrivateFit<'_> {
    /// A thousand steps of 64 examples, with a delta of 1e-5.
    fn default() -> Self {
        PrivateFit { steps: 1000, batch_size: 64, delta: 1e-5, validation: None, verbose: 0 }
    }
}

/// What came of private training.
#[derive(Clone, Debug, PartialEq)]
pub struct PrivateHistory {
    /// The loss of each step: the sum over its examples by the average number of them.
    pub loss: Vec<f64>,
    /// What all steps that the accountant knows of give away, for [`PrivateFit::delta`].
    pub epsilon: f64,
    /// The evaluation at the end.
    pub validation: Option<Evaluation>,
}

/// The share of delta that the chance of larger samples than steps are compiled for may take.
const CUT: f64 = 1e-9;

/// The share of delta that is left to the accountant.
const KEPT: f64 = 0.999;

/// The least number that the size of a sample of `count` examples exceeds with at most this chance (Chernoff's bound).
fn most_sampled(count: usize, rate: f64, chance: f64) -> usize {
    let fits = |most: &usize| {
        let share = *most as f64 / count as f64;
        let rest = if share < 1.0 { (1.0 - share) * ((1.0 - share) / (1.0 - rate)).ln() } else { 0.0 };
        share > rate && count as f64 * (share * (share / rate).ln() + rest) >= -chance.ln()
    };
    (1..count).find(fits).unwrap_or(count)
}

impl Model {
    /// Sets the optimizer, the loss and how gradients are clipped and hidden; what an optimizer kept is forgotten.
    ///
    /// Each training of a model on the same data needs a seed of its own: noise that is known hides nothing.
    pub fn compile_private(&mut self, optimizer: Optimizer, loss: Loss, privacy: DpSgd) {
        let losses = vec![(0, OutputLoss::new(&self.network().outputs()[0], loss))];
        let (weighted, privacy) = (WeightedMean::Count, Some(privacy));
        self.train_by(Objective { losses, optimizer, weighted, privacy });
    }

    /// Trains on random samples of examples and what is true of them, and adds the steps to those of an accountant.
    ///
    /// One compiled step serves samples of every size: it is made for the largest that is at all likely, and places
    /// without an example have no weight. A sample that is larger still is cut, the chance of which is part of delta.
    pub fn fit_private(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        fit: &PrivateFit<'_>,
        accountant: &mut Accountant,
    ) -> Result<PrivateHistory, Error> {
        let (inputs, count) = self.inputs_of(x)?;
        let truths = self.truths_of(y, count)?;
        let noise_multiplier = self.prepare(fit.batch_size, accountant.steps())?;
        let rate = (fit.batch_size as f64 / count.max(1) as f64).min(1.0);
        let chance = CUT * fit.delta / fit.steps.max(1) as f64;
        let most = if rate < 1.0 { most_sampled(count, rate, chance) } else { count };
        let mut loss = Vec::new();
        for step in 0..fit.steps {
            let mut random = Random::new("sample", self.seed ^ (accountant.steps() as u64).rotate_left(32));
            let mut numbers: Vec<usize> = (0..count).filter(|_| random.unit() < rate).collect();
            numbers.truncate(most);
            let mut weights = vec![1.0; numbers.len()];
            weights.resize(most, 0.0);
            numbers.resize(most, 0);
            let weights = Tensor::from_f64s(self.dtype, &[most], &weights);
            let mut batch = Batch::of(&inputs, &truths, None, &numbers);
            batch.weights = Some(weights);
            let result = self.step(batch, true)?;
            if let Some(origin) = result.origin {
                return Err(TrainingError::LossIsNan { epoch: 0, step, origin }.into());
            }
            accountant.add(noise_multiplier, rate, 1);
            loss.push(result.loss);
            if fit.verbose > 0 && (step + 1).is_multiple_of(fit.verbose) {
                let recent = &loss[(step + 1).saturating_sub(fit.verbose)..];
                let mean = recent.iter().sum::<f64>() / recent.len() as f64;
                let epsilon = spent(accountant, fit.delta);
                eprintln!("step {}/{}: loss {mean:.4}, epsilon {epsilon:.3}", step + 1, fit.steps);
            }
        }
        let validation = match fit.validation {
            Some((x, y)) => Some(self.evaluate(x, y, fit.batch_size)?),
            None => None,
        };
        Ok(PrivateHistory { loss, epsilon: spent(accountant, fit.delta), validation })
    }

    /// Lets sums be divided by the average number of examples. The deviation of the noise.
    fn prepare(&mut self, batch_size: usize, steps: usize) -> Result<f64, Error> {
        let training = self.compiled()?;
        let Some(privacy) = &training.privacy else { return Err(TrainingError::NotPrivate.into()) };
        let noise_multiplier = privacy.noise_multiplier;
        let divisor = Some(batch_size as f64);
        if privacy.divisor != divisor {
            // Steps are counted anew, so the noise must not be.
            let noise = match privacy.noise {
                Noise::Counted(seed) => Noise::Counted(Random::new(&steps.to_string(), seed).bits()),
                Noise::Given => Noise::Given,
            };
            let privacy = Some(DpSgd { divisor, noise, ..privacy.clone() });
            let training = Objective { privacy, ..training.clone() };
            self.train_by(training);
        }
        Ok(noise_multiplier)
    }
}

/// The epsilon for a delta of which a part is the chance of cut samples.
fn spent(accountant: &Accountant, delta: f64) -> f64 {
    let (epsilon, _) = accountant.epsilon(KEPT * delta);
    // What happens with a chance of p adds (1 + e^epsilon) p to delta.
    if (1.0 + epsilon.exp()) * CUT <= 1.0 - KEPT { epsilon } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_samples_are_as_unlikely_as_asked() {
        // Exact chances of a binomial distribution.
        let (count, rate) = (400usize, 0.1f64);
        let mut chances = vec![(1.0 - rate).powi(400)];
        for k in 0..count {
            chances.push(chances[k] * (count - k) as f64 / (k + 1) as f64 * rate / (1.0 - rate));
        }
        for chance in [1e-3, 1e-9, 1e-15] {
            let most = most_sampled(count, rate, chance);
            let above: f64 = chances[most + 1..].iter().sum();
            assert!(above <= chance && most < 120, "{most}: {above}");
        }
    }
}
