//! What a model is trained to: losses of its outputs, made less by an optimizer.

use windlass_frontend::nn::{Built, DpSgd, Loss, Optimizer, Training, WeightedMean};
use windlass_ir::{DType, ScalarFn, TensorType, Value};

use super::error::TrainingError;
use crate::error::Error;

/// The loss of an output.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputLoss {
    /// The output's name.
    pub output: String,
    /// Its loss.
    pub loss: Loss,
    /// Its share in the sum of losses.
    pub weight: f64,
}

impl OutputLoss {
    /// A loss that counts once.
    pub fn new(output: &str, loss: Loss) -> OutputLoss {
        OutputLoss { output: output.to_string(), loss, weight: 1.0 }
    }

    /// With another share in the sum of losses.
    pub fn weighted(self, weight: f64) -> OutputLoss {
        OutputLoss { weight, ..self }
    }
}

/// Losses of outputs by their positions, and how they become less.
#[derive(Clone, Debug)]
pub(super) struct Objective {
    pub losses: Vec<(usize, OutputLoss)>,
    pub optimizer: Optimizer,
    pub weighted: WeightedMean,
    /// Whether what any one example changes is bounded, and hidden in noise.
    pub privacy: Option<DpSgd>,
}

impl Objective {
    /// Training to the only loss of the only output, where it is private: there is none yet for several.
    pub fn private(&self, privacy: &DpSgd) -> Result<Training, Error> {
        let [(0, OutputLoss { loss, weight: 1.0, .. })] = &self.losses[..] else {
            let (expected, found) =
                ("one loss that counts once".to_string(), format!("{}", self.losses.len()));
            return Err(TrainingError::Setting { what: "private training", expected, found }.into());
        };
        let (loss, optimizer) = (loss.clone(), self.optimizer.clone());
        Ok(Training { loss, optimizer, weighted: self.weighted, privacy: Some(privacy.clone()) })
    }

    /// Adds inputs for what is true and for the weights of examples, and the sum of losses. Also gives the mean of each.
    pub fn add_loss(
        &self,
        built: &mut Built,
        predictions: &[Value],
        truths: &[TensorType],
        weights: Option<&TensorType>,
    ) -> Result<(Value, Vec<Value>), Error> {
        let b = &mut built.builder;
        let mut inputs = Vec::new();
        for ((output, loss), truth) in self.losses.iter().zip(truths) {
            let what = if self.losses.len() == 1 { "y".to_string() } else { format!("y.{}", loss.output) };
            check(&loss.loss, &what, b.ty(predictions[*output]), truth)?;
            inputs.push(b.input(&free_input(b, &what), truth.clone()));
        }
        let weights = weights.map(|weights| b.input(&free_input(b, "weights"), weights.clone()));
        let (mut sum, mut means): (Option<Value>, _) = (None, Vec::new());
        for ((output, own), truth) in self.losses.iter().zip(inputs) {
            let prediction = predictions[*output];
            let weights = match weights {
                Some(weights) => Some(b.cast(weights, b.ty(prediction).dtype)?),
                None => None,
            };
            b.set_name(Some("loss".into()));
            let mean = own.loss.mean(b, truth, prediction, weights, self.weighted)?;
            means.push(mean);
            let part = match own.weight {
                1.0 => mean,
                weight => {
                    let weight = b.scalar_like(mean, weight);
                    b.map(ScalarFn::Mul, &[mean, weight])?
                }
            };
            sum = Some(match sum {
                Some(sum) => {
                    let part = b.cast(part, b.ty(sum).dtype)?;
                    b.map(ScalarFn::Add, &[sum, part])?
                }
                None => part,
            });
        }
        Ok((sum.ok_or(TrainingError::NotCompiled)?, means))
    }
}

/// A name that no input has yet.
fn free_input(b: &windlass_ir::Builder, name: &str) -> String {
    let numbered = (1..).map(|number| format!("{name}.{number}"));
    let is_free = |name: &String| !b.graph().inputs().iter().any(|(other, _)| other == name);
    std::iter::once(name.to_string()).chain(numbered).find(is_free).expect("numbers do not end")
}

/// Fails unless what is true has the type that a loss of these predictions takes.
pub(super) fn check(
    loss: &Loss,
    what: &str,
    prediction: &TensorType,
    truth: &TensorType,
) -> Result<(), Error> {
    let classes = loss.takes_classes();
    let expected = truth_type(loss, prediction);
    let fits = prediction.rank() > 0
        && prediction.dtype.is_float()
        && expected.dims == truth.dims
        && if classes { truth.dtype.is_int() } else { truth.dtype == prediction.dtype };
    if fits {
        return Ok(());
    }
    let kind = if classes { "classes, as" } else { "" };
    let expected = format!("{kind} {expected} for predictions of {prediction}").trim_start().to_string();
    Err(TrainingError::Data { what: what.to_string(), expected, found: truth.clone() }.into())
}

/// The type of what is true of predictions: theirs, or for classes whole numbers of their first dimensions.
pub(super) fn truth_type(loss: &Loss, prediction: &TensorType) -> TensorType {
    let mut ty = prediction.clone();
    if loss.takes_classes() {
        ty.dtype = DType::I64;
        ty.dims.pop();
    }
    ty
}
