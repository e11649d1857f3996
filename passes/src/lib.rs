//! Passes: from the graph a model gives to the graph worth compiling, and on to kernels.
//!
//! A [`Pass`] is data: a name, a line of help and a function from a graph to the changed graph, or to
//! `None` if nothing changed. [`PASSES`] lists them, [`PIPELINES`] says which run in what order, and
//! [`run`] runs them: it verifies what they make, holds each pass to what it claims, times it,
//! stops after so many rewrites if asked to ([`Options::fuel`]), and keeps a [`Record`] of each rule
//! that fired or did not, and why ([`Options::explain`]).
//!
//! ```
//! use windlass_ir::{Builder, DType, ScalarFn, TensorType};
//! use windlass_passes::{Options, pipeline, run};
//!
//! let mut b = Builder::new("one");
//! let x = b.input("x", TensorType::fixed(DType::F32, &[4]));
//! let one = b.scalar(DType::F32, 1.0);
//! let y = b.map(ScalarFn::Mul, &[x, one])?;
//! let z = b.map(ScalarFn::Exp, &[y])?;
//! b.output("z", z);
//!
//! let (graph, report) = run(&b.finish()?, pipeline("O1").unwrap().stages, &Options::default())?;
//! assert_eq!((graph.node_count(), report.rewrites()), (1, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod absorb;
mod algebra;
pub mod composites;
mod cx;
pub mod dot;
mod error;
mod fingerprint;
pub mod graph;
mod known;
pub mod lower;
mod manager;
pub mod pattern;
mod permutation;
mod pipelines;
mod range;
mod reason;
pub mod rewrite;
pub mod stats;
#[cfg(test)]
mod testing;

pub use cx::{Options, PassCx};
pub use error::Error;
pub use fingerprint::op_fingerprint;
pub use graph::PASSES;
pub use manager::{Pass, Report, Step, run, run_observed};
pub use pipelines::{PIPELINES, Pipeline, Stage, pass, pipeline};
pub use reason::{Outcome, Reason, Record};
