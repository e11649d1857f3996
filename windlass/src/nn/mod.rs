//! Networks that train: Keras's names and habits.
//!
//! A [`Model`] is a [`Network`] (layers one after another, or a function of a [`Net`]) with its weights. [`Model::compile`]
//! gives it a loss and an optimizer, [`Model::fit`] trains it: each step, forward, backward and update, is one compiled
//! program. What the layers are is in [`layers`]. A network may also be a graph, such as an ONNX file's
//! ([`Network::open`]), whose weights are then trained; it may have several inputs and outputs, with data by their names
//! ([`Examples`]) and a loss each ([`Model::compile_outputs`]).
//!
//! Hard data has answers of its own: metrics over whole evaluations ([`Model::compile_with`]), rare classes ([`sampling`]),
//! masks ([`Loss::masked`]), augmentation ([`Augment`]), missing values ([`layers::Imputer`], [`NanPolicy`]), attacks
//! ([`Adversarial`], [`Model::robustness`]), explanations ([`Model::integrated_gradients`], [`heat_map`]), and what a model
//! costs ([`Model::cost`], [`Model::prune`], [`Model::with_storage`], [`Model::quantized`]).
//!
//! ```
//! use windlass::nn::{Fit, Loss, Model, Network, Optimizer, layers::{Activation, Dense}};
//! use windlass::{Options, Tensor};
//!
//! // Whether two bits differ.
//! let network = Network::sequential(&[2])
//!     .add(Dense::new(8).activation(Activation::Tanh))
//!     .add(Dense::new(2));
//! let mut model = Model::new(network, 7, Options::default())?;
//! model.compile(Optimizer::adam(0.05), Loss::SparseCategoricalCrossentropy { from_logits: true });
//! let x = Tensor::new(&[4, 2], &[0f32, 0., 0., 1., 1., 0., 1., 1.]);
//! let y = Tensor::new(&[4], &[0i32, 1, 1, 0]);
//! let history = model.fit(&x, &y, &Fit { epochs: 200, batch_size: 4, ..Fit::default() })?;
//! assert!(history.loss[199] < 0.1);
//! assert_eq!(model.evaluate(&x, &y, 4)?.accuracy, Some(1.0));
//! # Ok::<(), windlass::Error>(())
//! ```

mod adversarial;
mod augment;
mod callbacks;
mod checkpoint;
mod confusion;
mod cost;
mod data;
mod error;
mod explain;
mod fit;
pub mod heat_map;
mod inputs;
mod metrics;
mod model;
mod network;
mod objective;
mod private;
mod progress;
mod prune;
mod run;
pub mod sampling;
mod weights;

pub use crate::nan::{NanOrigin, NanPolicy};
pub use adversarial::{Adversarial, Attack};
pub use augment::{Augment, Augmentation};
pub use callbacks::{CsvLogger, LearningRateScheduler, ReduceLrOnPlateau};
pub use checkpoint::Checkpoint;
pub use confusion::ConfusionMatrix;
pub use cost::{Cost, Run};
pub use data::Examples;
pub use error::TrainingError;
pub use explain::{Occlusion, SmoothGrad};
pub use fit::{Callback, Control, EarlyStopping, Epoch, Fit, History, ModelCheckpoint, Order, StepEnd};
pub use inputs::{Attribution, Ball, Pgd};
pub use metrics::{Metric, Of};
pub use model::Model;
pub use network::Network;
pub use objective::OutputLoss;
pub use private::{PrivateFit, PrivateHistory};
pub use prune::MagnitudePruning;
pub use run::Evaluation;
pub use windlass_frontend::nn::{
    Built, Clip, Convention, Decay, DpSgd, GraphBody, Initializer, Loss, LossScale, Mask, Microbatch,
    NameError, Net, Noise, Optimizer, Regularizer, Rule, Schedule, State, Step, Training, Variable,
    WeightedMean, accountant, initializers, layers, losses, optimizers, schedules,
};
