//! What a model costs: memory of its parameters and of what the optimizer keeps, and the work and memory of a prediction
//! and of a training step, as they are compiled.
//!
//! ```
//! use windlass::nn::{Loss, Model, Network, Optimizer, layers::Dense};
//! use windlass::Options;
//!
//! let mut model = Model::new(Network::sequential(&[8]).add(Dense::new(4)), 0, Options::default())?;
//! model.compile(Optimizer::adam(1e-3), Loss::MeanSquaredError);
//! let cost = model.cost(16)?;
//! // 8 * 4 weights and 4 biases of 4 bytes; Adam keeps two numbers for each.
//! assert_eq!((cost.parameters, cost.parameter_bytes, cost.optimizer_bytes), (36, 144, 288));
//! assert_eq!(cost.prediction.product_flops, 2 * 16 * 8 * 4);
//! // The weights' gradients are as much work again.
//! assert!(cost.step.unwrap().product_flops >= 2 * 2 * 16 * 8 * 4);
//! # Ok::<(), windlass::Error>(())
//! ```

use std::fmt;

use windlass_ir::{Graph, Tensor, TensorType};
use windlass_passes::stats::stats;

use super::model::Model;
use crate::compile::{optimize, program};
use crate::error::Error;

/// What a model costs for so many examples at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// How many examples.
    pub batch: usize,
    /// Elements of the variables that are trained.
    pub parameters: u64,
    /// Their bytes.
    pub parameter_bytes: u64,
    /// Bytes of the other variables.
    pub statistic_bytes: u64,
    /// Bytes of what the optimizer keeps.
    pub optimizer_bytes: u64,
    /// A prediction.
    pub prediction: Run,
    /// A training step, if the model has a loss.
    pub step: Option<Run>,
}

/// What one run of a compiled graph costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Operations of sums of products (of matrices, convolutions and the like), an fma counting as two.
    pub product_flops: u64,
    /// Scalar functions of everything else.
    pub other_flops: u64,
    /// The most bytes of activations and other intermediate results at any time.
    pub arena_bytes: u64,
}

/// Ops whose work is in contractions.
const PRODUCTS: [&str; 5] = ["matmul", "conv", "conv_transpose", "einsum", "deform_conv"];

fn bytes<'a>(types: impl Iterator<Item = &'a TensorType>) -> u64 {
    types.map(|ty| (ty.as_len().unwrap_or(0) * ty.dtype.size()) as u64).sum()
}

impl Model {
    /// What the model costs for so many examples at a time, which is planned but not run.
    pub fn cost(&self, batch: usize) -> Result<Cost, Error> {
        let of =
            |trainable: bool| self.variables.iter().filter(move |v| v.trainable == trainable).map(|v| &v.ty);
        let mut cost = Cost {
            batch,
            parameters: of(true).map(|ty| ty.as_len().unwrap_or(0) as u64).sum(),
            parameter_bytes: bytes(of(true)),
            statistic_bytes: bytes(of(false)),
            optimizer_bytes: 0,
            prediction: self.run_cost(&self.graph(batch)?)?,
            step: None,
        };
        if self.training.is_some() {
            let (step, _) = self.training_step(batch, |_| None)?;
            let kept: Vec<TensorType> =
                step.state.initial(self.seed)[self.variables.len()..].iter().map(Tensor::ty).collect();
            // The count of steps is none of the optimizer's.
            cost.optimizer_bytes = bytes(kept.iter().filter(|ty| ty.rank() > 0));
            cost.step = Some(self.run_cost(&step.graph)?);
        }
        Ok(cost)
    }

    fn run_cost(&self, graph: &Graph) -> Result<Run, Error> {
        let (_, report) = program(graph, self.options())?;
        let by_op = stats(&optimize(graph, self.options())?).by_op;
        let others = by_op.iter().filter(|(name, _)| !PRODUCTS.contains(name));
        let other_flops = others.map(|(_, op)| op.work).sum();
        Ok(Run { product_flops: report.flops, other_flops, arena_bytes: report.arena_bytes })
    }
}

/// A number of bytes or operations as people read it.
fn short(number: u64) -> String {
    let units = ["", "k", "M", "G", "T"];
    let unit = (number.max(1).ilog10() as usize / 3).min(units.len() - 1);
    match unit {
        0 => number.to_string(),
        _ => {
            format!("{:.1} {}", number as f64 / 1000f64.powi(unit as i32), units[unit]).trim_end().to_string()
        }
    }
}

/// A line each.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "parameters       {:>9}  {:>9}B", short(self.parameters), short(self.parameter_bytes))?;
        writeln!(f, "statistics                  {:>9}B", short(self.statistic_bytes))?;
        writeln!(f, "optimizer's state           {:>9}B", short(self.optimizer_bytes))?;
        let runs = [("prediction", Some(&self.prediction)), ("training step", self.step.as_ref())];
        for (name, run) in runs.into_iter().filter_map(|(name, run)| Some((name, run?))) {
            let Run { product_flops, other_flops, arena_bytes } = *run;
            let (products, others, arena) = (short(product_flops), short(other_flops), short(arena_bytes));
            let name = format!("{name} of {}", self.batch);
            writeln!(
                f,
                "{name:22}  {products:>9}FLOP in products, {others}FLOP in others, {arena}B of arena"
            )?;
        }
        Ok(())
    }
}
