//! Pruning: the smallest weights become 0 and stay so while the others are trained on.
//!
//! A pruned model has a mask for each weight of several dimensions: a variable of zeros and ones that the weight is
//! multiplied with in the graph, so no gradient reaches what is pruned. What is exported has the products alone.
//!
//! ```
//! use windlass::nn::{Fit, Loss, MagnitudePruning, Model, Network, Optimizer, layers::Dense};
//! use windlass::{Options, Tensor};
//!
//! let mut model = Model::new(Network::sequential(&[8]).add(Dense::new(4)), 0, Options::default())?;
//! model.compile(Optimizer::adam(1e-2), Loss::MeanSquaredError);
//! let x = Tensor::from_fn::<f32>(&[16, 8], |i| (i % 7) as f32);
//! let y = Tensor::from_fn::<f32>(&[16, 4], |i| (i % 5) as f32);
//! let mut pruning = MagnitudePruning { target: 0.75, begin: 1, end: 4 };
//! model.fit_with(&x, &y, &Fit { epochs: 6, ..Fit::default() }, &mut [&mut pruning])?;
//! assert_eq!(model.sparsity(), 0.75);
//! # Ok::<(), windlass::Error>(())
//! ```

use windlass_ir::Tensor;

use super::error::TrainingError;
use super::fit::{Callback, Control, Epoch};
use super::model::Model;
use crate::error::Error;

/// Prunes more and more between epochs: the share of zeros is `target (1 - (1 - t)^3)`, `t` going from 0 to 1 from epoch
/// `begin` to epoch `end` (Zhu and Gupta, 2017).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MagnitudePruning {
    /// The share of zeros in the end.
    pub target: f64,
    /// The epoch before which nothing is pruned.
    pub begin: usize,
    /// The epoch from which on the target is reached.
    pub end: usize,
}

impl MagnitudePruning {
    /// The share of zeros in an epoch.
    pub fn sparsity(&self, epoch: usize) -> f64 {
        let length = self.end.saturating_sub(self.begin).max(1) as f64;
        let way = (epoch as f64 - self.begin as f64).clamp(0.0, length) / length;
        self.target * (1.0 - (1.0 - way).powi(3))
    }
}

impl Callback for MagnitudePruning {
    fn on_epoch_begin(&mut self, epoch: usize, model: &mut Model) -> Result<(), Error> {
        if epoch >= self.begin { model.prune(self.sparsity(epoch)) } else { Ok(()) }
    }

    fn on_epoch_end(&mut self, _: &Epoch, _: &mut Model) -> Result<Control, Error> {
        Ok(Control::Continue)
    }
}

impl Model {
    /// Sets this share of each weight of several dimensions to 0, the smallest elements, for good: training does not
    /// change them. What was pruned before is among the smallest.
    pub fn prune(&mut self, sparsity: f64) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&sparsity) {
            let (expected, found) = ("from 0 to 1".to_string(), sparsity.to_string());
            return Err(TrainingError::Setting { what: "the share of zeros", expected, found }.into());
        }
        self.add_masks()?;
        for at in 0..self.variables.len() {
            let Some(mask) = self.mask_of(at) else { continue };
            let sizes: Vec<f64> = self.pruned(at).to_f64s().iter().map(|x| x.abs()).collect();
            // Of equal ones those go first that have gone before.
            let before = self.values[mask].to_f64s();
            let mut order: Vec<usize> = (0..sizes.len()).collect();
            order.sort_by(|&a, &b| sizes[a].total_cmp(&sizes[b]).then(before[a].total_cmp(&before[b])));
            let mut kept = vec![1.0; sizes.len()];
            let count = (sparsity * sizes.len() as f64).round() as usize;
            order.iter().take(count).for_each(|&i| kept[i] = 0.0);
            self.values[mask] = Tensor::from_f64s(self.dtype, self.values[mask].shape(), &kept);
            self.values[at] = self.pruned(at);
        }
        Ok(())
    }

    /// The share of zeros in weights of several dimensions that are trained.
    pub fn sparsity(&self) -> f64 {
        let (mut zeros, mut all) = (0, 0);
        for (at, variable) in self.variables.iter().enumerate() {
            if variable.trainable && variable.ty.rank() >= 2 {
                let values = self.pruned(at).to_f64s();
                zeros += values.iter().filter(|&&x| x == 0.0).count();
                all += values.len();
            }
        }
        zeros as f64 / all.max(1) as f64
    }

    /// A variable as the network sees it: times its mask, if it has one.
    pub(super) fn pruned(&self, at: usize) -> Tensor {
        let own = &self.values[at];
        let Some(mask) = self.mask_of(at) else { return own.clone() };
        let product =
            own.to_f64s().iter().zip(self.values[mask].to_f64s()).map(|(x, m)| x * m).collect::<Vec<_>>();
        Tensor::from_f64s(own.dtype(), own.shape(), &product)
    }

    fn mask_of(&self, at: usize) -> Option<usize> {
        let name = format!("{}.mask", self.variables[at].name);
        self.masked.then(|| self.variables.iter().position(|v| v.name == name)).flatten()
    }

    /// Gives the variables masks of ones, unless they have some.
    fn add_masks(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.masked, true) {
            return Ok(());
        }
        let variables = self.built_variables()?;
        let old: Vec<(String, Tensor)> =
            self.variables().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let kept = |name: &str| old.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
        self.values =
            variables.iter().map(|v| kept(&v.name).unwrap_or_else(|| v.initial(self.seed))).collect();
        self.variables = variables;
        self.rebuilt();
        Ok(())
    }
}
