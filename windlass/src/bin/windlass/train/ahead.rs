//! A training step that is compiled ahead.

use clap::Args;
use windlass::nn::{Model, Step};
use windlass::{Dim, Graph, Options, Tensor};

use super::goal::GoalArgs;
use super::trainable::TrainableArgs;
use crate::arguments::DimArg;
use crate::failure::Failure;

/// Whether a training step is compiled, and which.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training step")]
pub struct StepArgs {
    /// Compile a step that trains the model, in place of the model: NAME_init begins its state (weights, what the
    /// optimizer keeps of each, the number of steps), and NAME_step runs a step on it
    #[arg(long)]
    train: bool,
    /// How many examples a step has; what a fixed first dimension says, or 32, if not given
    #[arg(long, value_name = "N", requires = "train", value_parser = super::parse_positive)]
    batch: Option<usize>,
    /// How many steps the training will have, for schedules that end with it
    #[arg(long, value_name = "N", requires = "train", default_value_t = 10_000, value_parser = super::parse_positive)]
    steps: usize,
    #[command(flatten)]
    goal: GoalArgs,
    #[command(flatten)]
    weights: TrainableArgs,
}

impl StepArgs {
    /// The step of a model's training, if one is asked for, and the state that it begins with.
    pub fn step(
        &self,
        graph: &Graph,
        dims: &[DimArg],
        options: &Options,
    ) -> Result<Option<(Step, Vec<Tensor>)>, Failure> {
        if !self.train {
            return match self.goal.is_given() {
                true => Err(Failure::Usage("--loss is for a training step: --train".to_string())),
                false => Ok(None),
            };
        }
        let network = self.weights.network(graph)?;
        let names = graph.dim_names();
        let first = |name: &str| {
            let mut types = graph.inputs().iter().map(|(_, value)| graph.ty(*value));
            types.any(|ty| ty.dims.first() == Some(&Dim::named(name)))
        };
        for dim in dims {
            if !names.iter().any(|name| **name == *dim.name) {
                return Err(Failure::Usage(format!("the model has no dimension `{}`", dim.name)));
            }
            if first(&dim.name) {
                return Err(Failure::Usage(format!("`{}` is the dimension of examples: --batch", dim.name)));
            }
        }
        let batch = self.batch.or(network.fixed_batch().map(|(_, size)| size)).unwrap_or(32);
        let losses = self.goal.losses(network.outputs())?;
        let mut model = Model::new(network, 0, options.clone())?;
        model.compile_outputs(self.goal.optimizer(self.steps)?, &losses)?;
        let given = |name: &str| dims.iter().find(|dim| dim.name == name).map(|dim| dim.size);
        let ones: Vec<&str> =
            names.iter().map(|name| &**name).filter(|name| !first(name) && given(name).is_none()).collect();
        if !ones.is_empty() {
            eprintln!("note: no size was given for {}: 1 is used", ones.join(", "));
        }
        Ok(Some(model.training_step(batch, |name| Some(given(name).unwrap_or(1)))?))
    }
}
