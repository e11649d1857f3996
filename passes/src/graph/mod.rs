//! The passes over graphs, one a file. To add one: its file here, and a line in
//! [`PASSES`](crate::PASSES) (and in a pipeline, if it should run by default).

pub mod choose_layout;
pub mod cse;
pub mod dce;
pub mod decompose;
pub mod fold;
pub mod fold_batch_norm;
pub mod propagate_shapes;
pub mod recognize_composites;
pub mod simplify;
pub mod sink_transposes;
