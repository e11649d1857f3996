//! The IR of Windlass: graphs of ops over tensors, the loops they become, and what both mean.
//!
//! Two levels, each with text, a verifier and an interpreter:
//!
//! - [`graph`]: nodes applying [`ops`] to values. [`interpret()`] runs a graph op by op; it is the
//!   definition of meaning that everything compiled is tested against.
//!   [`gradients()`] differentiates one by the rules of its ops, and [`vmap()`] makes one for a batch of examples of one
//!   for a single example.
//! - [`loops`]: nests (formulas) and kernels (scheduled loops), from which machine code is made.
//!
//! This crate does no I/O and has no unsafe code.

#![forbid(unsafe_code)]

pub mod attrs;
mod dtype;
mod error;
mod grad;
pub mod graph;
mod interpret;
mod limits;
pub mod loops;
pub mod ops;
mod scalar;
mod tensor;
pub mod text;
mod types;
mod vmap;

pub use attrs::Late;
pub use dtype::{Bool8, DType, Element};
pub use error::{Error, Violation};
pub use grad::gradients;
pub use graph::{Builder, Edit, Graph, Node, Value, verify};
pub use half::{bf16, f16};
pub use interpret::{check_inputs, eval_op, interpret, interpret_observed};
pub use limits::Limits;
pub use ops::Op;
pub use scalar::{ScalarFn, TypeRule};
pub use tensor::{Recycler, Tensor};
pub use types::{Dim, Dims, Shape, TensorType, broadcast_dims, normalize_axis, strides};
pub use vmap::{vmap, vmap_into};
