//! Ways into Windlass for models and data.
//!
//! - [`onnx`]: ONNX models become graphs; test cases in ONNX's layout are read and compared.
//! - [`npy`]: tensors from and to numpy's `.npy` and `.npz` files.
//! - [`image`]: PNG images as tensors.
//! - [`nn`]: layers, losses and optimizers: networks built for training.
//!
//! What comes in is data from strangers. Reading it fails with an [`Error`] that says what and where, and
//! never panics, recurses without bound, or takes more memory than [`windlass_ir::Limits`] allow.
//!
//! ```no_run
//! use windlass_frontend::onnx;
//! use windlass_ir::Limits;
//!
//! let model = onnx::load("model.onnx", &Limits::default())?;
//! for (name, value) in model.graph.inputs() {
//!     println!("{name}: {}", model.graph.ty(*value));
//! }
//! # Ok::<(), windlass_frontend::Error>(())
//! ```

#![forbid(unsafe_code)]

mod error;
pub mod image;
pub mod nn;
pub mod npy;
pub mod onnx;

pub use error::{Error, Unsupported};
