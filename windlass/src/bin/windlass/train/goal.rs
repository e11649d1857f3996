//! What training aims at: losses, and the optimizer that makes them less.

use std::collections::BTreeMap;

use clap::Args;
use windlass::nn::{Clip, Decay, Loss, LossScale, Optimizer, OutputLoss, Schedule};

use crate::failure::Failure;

/// Losses and an optimizer.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Goal")]
pub struct GoalArgs {
    /// The loss: NAME or NAME:OPTION=VALUE,.. such as sparse_categorical_crossentropy:from_logits or huber:delta=2. Of
    /// several outputs, each that has one: OUTPUT=NAME..
    #[arg(long = "loss", value_name = "[OUTPUT=]NAME")]
    losses: Vec<String>,
    /// The share of an output in the sum of losses
    #[arg(long = "loss-weight", value_name = "OUTPUT=WEIGHT")]
    weights: Vec<String>,
    /// sgd, rmsprop, adagrad, adam, adamw, lion or lamb, with options such as sgd:momentum=0.9,nesterov
    #[arg(long, value_name = "NAME", default_value = "adam")]
    optimizer: String,
    /// How far a step goes
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    learning_rate: f64,
    /// How the rate changes from step to step: constant, cosine[:steps=N,floor=RATE] or
    /// exponential[:rate=R,steps=N,staircase], each also with warm_up=N; to the last step unless steps are given
    #[arg(long, value_name = "NAME", default_value = "constant")]
    schedule: String,
    /// Bound all gradients together to this Euclidean norm
    #[arg(long, value_name = "NORM", conflicts_with = "clip_value")]
    clip_norm: Option<f64>,
    /// Bound each element of the gradients to this magnitude
    #[arg(long, value_name = "BOUND")]
    clip_value: Option<f64>,
    /// Draw weights to 0 by this part of the rate at each step, apart from the optimizer's rule
    #[arg(long, value_name = "DECAY")]
    weight_decay: Option<f64>,
    /// Differentiate a multiple of the loss, so that small gradients of models in f16 are not 0: a number, or `dynamic`
    #[arg(long, value_name = "FACTOR", value_parser = parse_loss_scale, default_value = "none")]
    loss_scale: LossScale,
}

fn parse_loss_scale(text: &str) -> Result<LossScale, String> {
    match (text, text.parse::<f64>()) {
        ("none", _) => Ok(LossScale::None),
        ("dynamic", _) => Ok(LossScale::dynamic()),
        (_, Ok(factor)) if factor.is_finite() && factor > 0.0 => Ok(LossScale::Fixed(factor)),
        _ => Err("not `none`, `dynamic` or a number above 0".to_string()),
    }
}

impl GoalArgs {
    /// Whether a loss is given.
    pub fn is_given(&self) -> bool {
        !self.losses.is_empty()
    }

    /// The losses of outputs.
    pub fn losses(&self, outputs: &[String]) -> Result<Vec<OutputLoss>, Failure> {
        if self.losses.is_empty() {
            let names = Loss::NAMES.join(", ");
            return Err(Failure::Usage(format!("--loss says what is to become less: one of {names}")));
        }
        let mut losses: Vec<OutputLoss> = Vec::new();
        for text in &self.losses {
            let (output, name) = split_output(text, outputs);
            let output = match (output, outputs) {
                (Some(output), _) => output,
                (None, [only]) => only,
                (None, _) => {
                    let message =
                        format!("--loss {text}: say of which output, OUTPUT={text}; {}", known(outputs));
                    return Err(Failure::Usage(message));
                }
            };
            let loss: Loss = name.parse().map_err(|error| wrong("--loss", error))?;
            if losses.iter().any(|loss| loss.output == *output) {
                return Err(Failure::Usage(format!("--loss: output `{output}` has two")));
            }
            losses.push(OutputLoss::new(output, loss));
        }
        for text in &self.weights {
            let (output, number) = split_output(text, outputs);
            let number = number.parse::<f64>().ok().filter(|weight| weight.is_finite());
            let own = output.and_then(|output| losses.iter_mut().find(|loss| loss.output == *output));
            let (Some(own), Some(weight)) = (own, number) else {
                let message = format!("--loss-weight {text}: not OUTPUT=WEIGHT of an output with a loss");
                return Err(Failure::Usage(format!("{message}; {}", known(outputs))));
            };
            own.weight = weight;
        }
        Ok(losses)
    }

    /// The optimizer, for a training of so many steps.
    pub fn optimizer(&self, steps: usize) -> Result<Optimizer, Failure> {
        let mut optimizer: Optimizer = self.optimizer.parse().map_err(|error| wrong("--optimizer", error))?;
        let positive = [
            ("--learning-rate", Some(self.learning_rate)),
            ("--clip-norm", self.clip_norm),
            ("--clip-value", self.clip_value),
        ];
        for (name, value) in positive {
            if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
                return Err(Failure::Usage(format!("{name}: a number above 0 is expected")));
            }
        }
        optimizer.learning_rate = Schedule::named(&self.schedule, self.learning_rate, steps as f64)
            .map_err(|error| wrong("--schedule", error))?;
        optimizer.clip = match (self.clip_norm, self.clip_value) {
            (Some(norm), _) => Clip::GlobalNorm(norm),
            (None, Some(bound)) => Clip::Value(bound),
            (None, None) => Clip::None,
        };
        optimizer.loss_scale = self.loss_scale;
        if let Some(decay) = self.weight_decay {
            if !(decay.is_finite() && decay >= 0.0) {
                return Err(Failure::Usage("--weight-decay: a number from 0 on is expected".to_string()));
            }
            optimizer.decay = Decay::Decoupled(decay);
        }
        Ok(optimizer)
    }

    /// What was asked for, in words.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let number = |value: Option<f64>| value.map_or("none".to_string(), |value| value.to_string());
        [
            ("--loss", self.losses.join(" ")),
            ("--optimizer", self.optimizer.clone()),
            ("--learning-rate", self.learning_rate.to_string()),
            ("--schedule", self.schedule.clone()),
            ("--clip-norm", number(self.clip_norm)),
            ("--clip-value", number(self.clip_value)),
            ("--weight-decay", number(self.weight_decay)),
            ("--loss-scale", format!("{:?}", self.loss_scale)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
    }
}

fn wrong(argument: &str, error: windlass::nn::NameError) -> Failure {
    Failure::Usage(format!("{argument}: {error}"))
}

fn known(outputs: &[String]) -> String {
    format!("the model's outputs: {}", outputs.join(", "))
}

/// Splits `OUTPUT=REST`; names of outputs may have any characters.
fn split_output<'t, 'o>(text: &'t str, outputs: &'o [String]) -> (Option<&'o String>, &'t str) {
    let of = |output: &'o String| {
        let rest = text.strip_prefix(output.as_str())?.strip_prefix('=')?;
        Some((Some(output), rest))
    };
    outputs.iter().find_map(of).unwrap_or((None, text))
}
