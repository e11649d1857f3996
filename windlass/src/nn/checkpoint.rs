//! Training that goes on where it was: everything that it keeps, in a safetensors file.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::SafeTensors;
use serde_json::{Value, json};
use windlass_frontend::nn::State;

use super::error::TrainingError;
use super::fit::History;
use super::model::Model;
use super::weights::{decode, encode};
use crate::error::Error;
use crate::files::write_whole;

/// The key of what a file says about itself.
const KEY: &str = "windlass.checkpoint";

/// How far training was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// How many epochs were done: the next one's number.
    pub epochs: usize,
    /// What came of them.
    pub history: History,
    /// What training was asked for, by names of the caller's choice.
    pub settings: BTreeMap<String, String>,
}

impl Checkpoint {
    fn to_text(&self) -> String {
        let History { loss, accuracy, validation_loss, validation_accuracy, metrics } = &self.history;
        let history = json!({
            "loss": loss,
            "accuracy": accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "metrics": metrics,
        });
        json!({ "epochs": self.epochs, "history": history, "settings": self.settings }).to_string()
    }

    fn from_text(text: &str) -> Option<Checkpoint> {
        let value: Value = serde_json::from_str(text).ok()?;
        // What is not a number is written as null.
        let column = |numbers: &Value| {
            let numbers = numbers.as_array().into_iter().flatten();
            numbers.map(|x| x.as_f64().unwrap_or(f64::NAN)).collect::<Vec<f64>>()
        };
        let history = &value["history"];
        let metrics = history["metrics"].as_object().into_iter().flatten();
        let setting = |(key, text): (&String, &Value)| Some((key.clone(), text.as_str()?.to_string()));
        Some(Checkpoint {
            epochs: usize::try_from(value["epochs"].as_u64()?).ok()?,
            history: History {
                loss: column(&history["loss"]),
                accuracy: column(&history["accuracy"]),
                validation_loss: column(&history["validation_loss"]),
                validation_accuracy: column(&history["validation_accuracy"]),
                metrics: metrics.map(|(name, numbers)| (name.clone(), column(numbers))).collect(),
            },
            settings: value["settings"].as_object()?.iter().map(setting).collect::<Option<_>>()?,
        })
    }
}

impl Model {
    /// Writes the variables, what the optimizer keeps and the number of steps. What was there stays until the new file is
    /// complete.
    pub fn save_checkpoint(&self, path: impl AsRef<Path>, checkpoint: &Checkpoint) -> Result<(), Error> {
        let path = path.as_ref();
        let state = self.state()?;
        let slots = match &self.slots {
            Some(slots) => slots.clone(),
            None => state.initial(self.seed).split_off(self.variables.len()),
        };
        let tensors = state.tensors().map(|(name, _)| name).zip(self.values.iter().chain(&slots));
        let bytes = encode(tensors, Some((KEY, checkpoint.to_text())));
        let bytes = bytes.map_err(|message| TrainingError::Weights { path: path.to_path_buf(), message })?;
        write_whole(path, &bytes).map_err(|error| Error::Io { path: path.to_path_buf(), error })
    }

    /// Takes over everything that a checkpoint of this network and optimizer holds. Training from
    /// [`Checkpoint::epochs`] on then gives the bits that it would have given without a break.
    pub fn load_checkpoint(&mut self, path: impl AsRef<Path>) -> Result<Checkpoint, Error> {
        let path = path.as_ref();
        let refused = |message: String| TrainingError::Weights { path: path.to_path_buf(), message };
        let bytes = std::fs::read(path).map_err(|error| Error::Io { path: path.to_path_buf(), error })?;
        let state = self.state()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| refused(error.to_string()))?;
        let about = metadata.metadata().as_ref().and_then(|about| about.get(KEY));
        let checkpoint = about.and_then(|text| Checkpoint::from_text(text));
        let checkpoint = checkpoint.ok_or_else(|| refused("is not a checkpoint of training".to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| refused(error.to_string()))?;
        let mut values = decode(&file, state.tensors()).map_err(refused)?;
        let slots = values.split_off(self.variables.len());
        (self.values, self.slots) = (values, Some(slots));
        Ok(checkpoint)
    }

    /// What training keeps.
    fn state(&self) -> Result<State, Error> {
        Ok(State::new(self.variables.clone(), &self.compiled()?.optimizer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Epoch, Evaluation};

    #[test]
    fn what_is_written_is_read_again() {
        let metrics = |x: f64| vec![("accuracy".to_string(), x), ("f1".to_string(), x / 2.0)];
        let mut done = Checkpoint { epochs: 2, ..Checkpoint::default() };
        done.settings.insert("--seed".to_string(), "7".to_string());
        // Classes by number have an accuracy of their own beside the metric, others have not.
        for accuracy in [Some(0.5), None] {
            done.history = History::default();
            for number in 0..2 {
                let validation = Some(Evaluation { loss: 0.25, accuracy, metrics: metrics(0.75) });
                done.history.push(&Epoch { number, loss: 0.5, accuracy, metrics: metrics(0.5), validation });
            }
            assert_eq!(Checkpoint::from_text(&done.to_text()), Some(done.clone()));
            assert_eq!(done.history.named("val_accuracy").map(<[f64]>::len), Some(2));
            let names: Vec<&str> = done.history.columns().map(|(name, _)| name).collect();
            assert_eq!(names.iter().filter(|name| **name == "accuracy").count(), 1, "{names:?}");
        }
    }
}
