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

/// The columns of a history that are no metrics.
const OWN: [&str; 4] = ["loss", "accuracy", "validation_loss", "validation_accuracy"];

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
        let history: BTreeMap<&str, &[f64]> = self.history.columns().collect();
        json!({ "epochs": self.epochs, "history": history, "settings": self.settings }).to_string()
    }

    fn from_text(text: &str) -> Option<Checkpoint> {
        let value: Value = serde_json::from_str(text).ok()?;
        // What is not a number is written as null.
        let column = |name: &str| {
            let numbers = value["history"][name].as_array();
            let numbers = numbers.into_iter().flatten().map(|x| x.as_f64().unwrap_or(f64::NAN));
            numbers.collect::<Vec<f64>>()
        };
        let names = value["history"].as_object().into_iter().flat_map(|columns| columns.keys());
        let setting = |(key, text): (&String, &Value)| Some((key.clone(), text.as_str()?.to_string()));
        Some(Checkpoint {
            epochs: usize::try_from(value["epochs"].as_u64()?).ok()?,
            history: History {
                loss: column("loss"),
                accuracy: column("accuracy"),
                validation_loss: column("validation_loss"),
                validation_accuracy: column("validation_accuracy"),
                metrics: names
                    .filter(|name| !OWN.contains(&name.as_str()))
                    .map(|name| (name.clone(), column(name)))
                    .collect(),
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
