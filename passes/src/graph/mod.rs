//! The passes over graphs, one a file. To add one: its file here, its `pub mod`, and its line in
//! [`PASSES`] (and in a pipeline, if it should run by default).

use crate::manager::Pass;

pub mod bf16_weights;
pub mod checkpoint;
pub mod choose_layout;
pub mod cse;
pub mod dce;
pub mod decompose;
pub mod early_outputs;
pub mod fold;
pub mod fold_batch_norm;
pub mod grad;
pub mod integer_products;
pub mod propagate_shapes;
pub mod recognize_composites;
pub mod simplify;
pub mod sink_transposes;
pub mod sub_pixel;
pub mod vmap;
pub mod wide_products;
pub mod winograd;

/// Every pass over graphs, by name.
pub const PASSES: &[&Pass] = &[
    &bf16_weights::PASS,
    &checkpoint::PASS,
    &choose_layout::PASS,
    &cse::PASS,
    &dce::PASS,
    &decompose::PASS,
    &early_outputs::PASS,
    &fold::PASS,
    &fold_batch_norm::PASS,
    &grad::PASS,
    &integer_products::PASS,
    &propagate_shapes::PASS,
    &recognize_composites::PASS,
    &simplify::PASS,
    &sink_transposes::PASS,
    &sub_pixel::PASS,
    &vmap::PASS,
    &wide_products::PASS,
    &winograd::PASS,
];
