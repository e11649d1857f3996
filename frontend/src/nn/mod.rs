//! Neural networks for training, with Keras's names and habits: layers, losses, optimizers.
//!
//! A [`Net`] is a network under construction. Layers add nodes to its graph and variables to its inputs; [`Training`]
//! adds a loss, the gradients of the parameters and an optimizer's update, and makes one graph of it all: a [`Step`],
//! which is compiled like any other model. A [`GraphBody`] makes a network of a graph that is there already. Nothing here
//! runs anything.
//!
//! ```
//! use windlass_frontend::nn::{Loss, Net, Optimizer, Training, WeightedMean, layers::Dense};
//! use windlass_ir::{DType, Tensor, TensorType, interpret};
//!
//! // y = 3 x, found by gradient descent.
//! let mut net = Net::new("line", DType::F64, true);
//! let x = net.input("x", TensorType::fixed(DType::F64, &[2, 1]));
//! let truth = net.input("y", TensorType::fixed(DType::F64, &[2, 1]));
//! let y = Dense::new(1).apply(&mut net, x)?;
//! let training = Training {
//!     loss: Loss::MeanSquaredError,
//!     optimizer: Optimizer::sgd(0.1),
//!     weighted: WeightedMean::Count,
//!     privacy: None,
//! };
//! let step = training.step(net.build(), y, truth, None)?;
//! let mut state = step.state.initial(1);
//! for _ in 0..1000 {
//!     let mut inputs = state;
//!     inputs.push(Tensor::new(&[2, 1], &[1.0, 2.0]));
//!     inputs.push(Tensor::new(&[2, 1], &[3.0, 6.0]));
//!     state = interpret(&step.graph, &inputs)?.split_off(2);
//! }
//! assert!((state[0].to_f64s()[0] - 3.0).abs() < 0.05);
//! # Ok::<(), windlass_ir::Error>(())
//! ```

pub mod accountant;
mod graph;
pub mod initializers;
pub mod layers;
mod loss_scale;
pub mod losses;
mod named;
mod net;
pub mod optimizers;
mod per_example;
mod precision;
mod private;
mod random;
mod regularizers;
pub mod schedules;
mod step;

pub use graph::GraphBody;
pub use initializers::Initializer;
pub use loss_scale::LossScale;
pub use losses::{Loss, Mask, WeightedMean};
pub use named::{NameError, Spec};
pub use net::{Built, Net, Variable};
pub use optimizers::{Clip, Convention, Decay, Optimizer, Rule};
pub use private::{DpSgd, Microbatch, Noise};
pub use regularizers::Regularizer;
pub use schedules::Schedule;
pub use step::{State, Step, Training};
