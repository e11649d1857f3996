//! What private training gives away: Renyi differential privacy of the Gaussian mechanism on random samples, step
//! after step, and the (epsilon, delta) that follow.
//!
//! Two data sets are neighbours if one has an example that the other has not. Each step takes every example with a
//! probability `q` of its own, and adds noise of deviation `sigma` to a sum that one example changes by at most 1.
//! Sources: Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism" (2019);
//! Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020), proposition 12, and Balle et
//! al., "Hypothesis Testing Interpretations and Renyi Differential Privacy" (2020), theorem 21.
//!
//! ```
//! use windlass_frontend::nn::accountant::Accountant;
//!
//! // 15 epochs of 60 000 examples in batches of 250.
//! let mut accountant = Accountant::default();
//! accountant.add(1.3, 250.0 / 60_000.0, 3600);
//! let (epsilon, order) = accountant.epsilon(1e-5);
//! assert!(epsilon < 1.0 && order > 10.0);
//! ```

use std::f64::consts::{LN_2, PI, SQRT_2};

/// Adds up what steps give away, at several orders.
#[derive(Clone, Debug, PartialEq)]
pub struct Accountant {
    orders: Vec<f64>,
    divergences: Vec<f64>,
    steps: usize,
    /// The last step's noise and rate, and what it gave away.
    last: Option<((f64, f64), Vec<f64>)>,
}

impl Default for Accountant {
    /// At the orders that Opacus uses, and some above.
    fn default() -> Accountant {
        let fractions = (1..100).map(|tenths| 1.0 + f64::from(tenths) / 10.0);
        let whole = (12..64).chain([64, 80, 96, 128, 192, 256, 512]).map(f64::from);
        Accountant::at(fractions.chain(whole))
    }
}

impl Accountant {
    /// At these orders, of which those above 1 count.
    pub fn at(orders: impl IntoIterator<Item = f64>) -> Accountant {
        let orders: Vec<f64> = orders.into_iter().filter(|&order| order > 1.0).collect();
        Accountant { divergences: vec![0.0; orders.len()], orders, steps: 0, last: None }
    }

    /// Adds steps of noise of a deviation on samples of a rate.
    pub fn add(&mut self, noise_multiplier: f64, sample_rate: f64, steps: usize) {
        self.steps += steps;
        let step = (noise_multiplier, sample_rate);
        let each = match self.last.take() {
            Some((known, each)) if known == step => each,
            _ => self.orders.iter().map(|&order| divergence(sample_rate, noise_multiplier, order)).collect(),
        };
        for (total, each) in self.divergences.iter_mut().zip(&each) {
            *total += steps as f64 * each;
        }
        self.last = Some((step, each));
    }

    /// How many steps were added.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The least epsilon for a delta, and the order that gives it; infinite if no order does.
    pub fn epsilon(&self, delta: f64) -> (f64, f64) {
        if self.divergences.iter().all(|&divergence| divergence == 0.0) {
            return (0.0, f64::INFINITY);
        }
        let at = |(&order, &divergence): (&f64, &f64)| {
            let epsilon =
                divergence - (delta.ln() + order.ln()) / (order - 1.0) + ((order - 1.0) / order).ln();
            (epsilon.max(0.0), order)
        };
        let found =
            self.orders.iter().zip(&self.divergences).map(at).filter(|(epsilon, _)| !epsilon.is_nan());
        found.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, f64::INFINITY))
    }

    /// The noise multiplier that keeps so many steps within an epsilon, to a thousandth; `None` if none below 1000 does.
    pub fn noise_multiplier(
        &self,
        sample_rate: f64,
        steps: usize,
        (epsilon, delta): (f64, f64),
    ) -> Option<f64> {
        let within = |noise: f64| {
            let mut accountant = Accountant::at(self.orders.iter().copied());
            accountant.add(noise, sample_rate, steps);
            accountant.epsilon(delta).0 <= epsilon
        };
        let (mut low, mut high) = (0.0, 1000.0);
        if !within(high) {
            return None;
        }
        while high - low > 1e-3 {
            let middle = (low + high) / 2.0;
            *(if within(middle) { &mut high } else { &mut low }) = middle;
        }
        Some(high)
    }
}

/// The Renyi divergence of an order of one step, for a sampling rate and the noise's deviation.
pub fn divergence(sample_rate: f64, noise_multiplier: f64, order: f64) -> f64 {
    let (q, sigma) = (sample_rate, noise_multiplier);
    if q == 0.0 {
        return 0.0;
    }
    if sigma <= 0.0 || order.is_infinite() {
        return f64::INFINITY;
    }
    if q >= 1.0 {
        return order / (2.0 * sigma * sigma);
    }
    let log = if order.fract() == 0.0 {
        log_moment(q, sigma, order as u32)
    } else {
        log_moment_between(q, sigma, order)
    };
    log / (order - 1.0)
}

/// `ln(e^a + e^b)`.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// `ln(e^a - e^b)` for a not below b.
fn log_subtract(a: f64, b: f64) -> f64 {
    if b == f64::NEG_INFINITY { a } else { a + (-(b - a).exp()).ln_1p() }
}

/// `ln A` at a whole order, a binomial sum.
fn log_moment(q: f64, sigma: f64, order: u32) -> f64 {
    let (mut sum, mut choices) = (f64::NEG_INFINITY, 0.0);
    for k in 0..=order {
        let (own, others) = (f64::from(k), f64::from(order - k));
        let term = choices + own * q.ln() + others * (-q).ln_1p() + (own * own - own) / (2.0 * sigma * sigma);
        sum = log_add(sum, term);
        choices += others.ln() - (own + 1.0).ln();
    }
    sum
}

/// `ln A` at an order between whole ones: two series, for noise below and above where both densities are alike.
fn log_moment_between(q: f64, sigma: f64, order: f64) -> f64 {
    let alike = sigma * sigma * (1.0 / q - 1.0).ln() + 0.5;
    let mut sums = [f64::NEG_INFINITY; 2];
    let (mut coefficient, mut i) = (1.0f64, 0.0);
    loop {
        let j = order - i;
        let log = coefficient.abs().ln();
        let below = log
            + i * q.ln()
            + j * (-q).ln_1p()
            + (i * i - i) / (2.0 * sigma * sigma)
            + log_erfc((i - alike) / (SQRT_2 * sigma))
            - LN_2;
        let above = log
            + j * q.ln()
            + i * (-q).ln_1p()
            + (j * j - j) / (2.0 * sigma * sigma)
            + log_erfc((alike - j) / (SQRT_2 * sigma))
            - LN_2;
        for (sum, term) in sums.iter_mut().zip([below, above]) {
            *sum = if coefficient > 0.0 { log_add(*sum, term) } else { log_subtract(*sum, term) };
        }
        coefficient *= (order - i) / (i + 1.0);
        i += 1.0;
        // Signs alternate past the order, so what is left out is below the last terms.
        if i > order && below.max(above) < -40.0 {
            return log_add(sums[0], sums[1]);
        }
    }
}

/// `ln erfc(x)`, by its asymptotic series where that of `erfc` would underflow.
fn log_erfc(x: f64) -> f64 {
    if x < 20.0 {
        return libm::erfc(x).ln();
    }
    let square = x * x;
    -square - (x * PI.sqrt()).ln() + (-0.5 / square + 0.75 / (square * square)).ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As TensorFlow Privacy's own tests have them: rate 0.01, noise 2.5, 50 steps.
    #[test]
    fn divergences_are_those_of_tensorflow_privacy() {
        let expected = [
            (1.5, 6.5007e-04),
            (2.5, 1.0854e-03),
            (5.0, 2.1808e-03),
            (50.0, 2.3846e-02),
            (100.0, 1.6742e+02),
        ];
        for (order, expected) in expected {
            let found = 50.0 * divergence(0.01, 2.5, order);
            assert!(
                (found - expected).abs() <= 1e-4 * expected,
                "order {order}: {found}, expected {expected}"
            );
        }
        assert_eq!(divergence(0.01, 2.5, f64::INFINITY), f64::INFINITY);
        assert_eq!(divergence(1.0, 2.0, 3.0), 0.375);
        assert_eq!(divergence(0.0, 2.0, 3.0), 0.0);
    }

    /// `ln E[((1 - q) + q e^((2 z - 1) / (2 sigma^2)))^order] / (order - 1)` for z of deviation sigma, by Simpson's rule over
    /// 400 000 intervals.
    #[test]
    fn divergences_are_those_of_integrals() {
        let expected = [
            (0.01, 1.0, 1.3, 1.097472650728e-4),
            (0.01, 1.0, 4.5, 4.149270673252e-4),
            (0.004, 0.7, 10.9, 5.043265197454),
            (0.1, 2.0, 2.5, 3.594077199413e-3),
            (0.05, 1.1, 3.0, 5.234307754209e-3),
            (0.3, 0.8, 7.3, 4.308189111604),
            (0.001, 4.0, 63.0, 2.039775745844e-6),
        ];
        for (rate, noise, order, expected) in expected {
            let found = divergence(rate, noise, order);
            assert!(
                (found - expected).abs() <= 1e-7 * expected,
                "{rate} {noise} {order}: {found}, {expected}"
            );
        }
    }

    /// The tutorials of TensorFlow Privacy give 1.18 and 3.01, by the older `divergence - ln(delta) / (order - 1)`.
    #[test]
    fn epsilons_of_published_training() {
        for (noise, rate, steps, published, expected) in [
            (1.3, 250.0 / 60_000.0, 3600, 1.18, 0.942_200_218),
            (1.1, 256.0 / 60_000.0, 14_040, 3.01, 2.594_363_355),
        ] {
            let mut accountant = Accountant::default();
            accountant.add(noise, rate, steps);
            let each = accountant.orders.iter().zip(&accountant.divergences);
            let older =
                each.map(|(order, total)| total - 1e-5f64.ln() / (order - 1.0)).fold(f64::INFINITY, f64::min);
            assert!((older - published).abs() < 0.005, "{older}");
            let (found, _) = accountant.epsilon(1e-5);
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
    }

    #[test]
    fn noise_is_found_for_an_epsilon() {
        let accountant = Accountant::default();
        let noise = accountant.noise_multiplier(0.01, 1000, (2.0, 1e-5)).unwrap();
        let spent = |noise| {
            let mut accountant = Accountant::default();
            accountant.add(noise, 0.01, 1000);
            accountant.epsilon(1e-5).0
        };
        assert!(spent(noise) <= 2.0 && spent(noise - 2e-3) > 2.0);
        assert_eq!(Accountant::default().epsilon(1e-5).0, 0.0);
        assert_eq!(spent(0.0), f64::INFINITY);
    }
}
