//! Windlass compiles neural networks to native CPU code.
//!
//! A [`Model`] is read from an ONNX file or from IR text, or is a [`Graph`] built in Rust. A
//! [`Session`] runs it: it compiles the graph for the sizes of the inputs it is given, keeps what it
//! compiled, and may be shared by threads.
//!
//! ```
//! use windlass::{Builder, DType, Dim, Options, ScalarFn, Session, Tensor, TensorType};
//!
//! // relu(x) for a batch of any size.
//! let mut b = Builder::new("relu");
//! let x = b.input("x", TensorType::new(DType::F32, [Dim::named("batch"), Dim::Fixed(2)]));
//! let zero = b.scalar(DType::F32, 0.0);
//! let y = b.map(ScalarFn::Max, &[x, zero])?;
//! b.output("y", y);
//!
//! let session = Session::new(b.finish()?, Options::default())?;
//! let outputs = session.run([("x", Tensor::new(&[1, 2], &[-1.0f32, 2.0]))])?;
//! assert_eq!(outputs["y"].as_slice::<f32>(), [0.0, 2.0]);
//! # Ok::<(), windlass::Error>(())
//! ```
//!
//! The parts of the compiler are crates of their own: `windlass-ir` (graphs, loops, their meaning),
//! `windlass-frontend` (ONNX), `windlass-passes`, `windlass-codegen` and `windlass-runtime`. This one
//! joins them. Its feature `command`, on by default, adds the `windlass` command.

#![forbid(unsafe_code)]

/// README's example, compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub mod compile;
mod error;
pub mod files;
mod model;
mod nan;
pub mod nn;
mod options;
pub mod peak;
pub mod quantize;
pub mod session;
pub mod tune;
mod values;

pub use error::Error;
pub use model::Model;
pub use nan::{NanOrigin, NanPolicy};
pub use options::{Engine, Options};
pub use session::Session;
pub use tune::Tuning;
pub use values::{Inputs, Outputs};
pub use windlass_frontend::onnx::Sizes;
pub use windlass_ir::{
    Builder, DType, Dim, Element, Graph, Limits, ScalarFn, Tensor, TensorType, bf16, f16, ops,
};
pub use windlass_runtime::{Executor, Helper};
