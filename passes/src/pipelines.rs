//! The pipelines made of passes, as plain data.

use crate::error::Error;
use crate::graph::{
    PASSES, choose_layout, cse, dce, early_outputs, fold, fold_batch_norm, integer_products,
    propagate_shapes, recognize_composites, simplify, sink_transposes, sub_pixel, wide_products, winograd,
};
use crate::manager::Pass;

/// A part of a pipeline.
#[derive(Clone, Copy)]
pub enum Stage {
    /// One pass, once.
    Pass(&'static Pass),
    /// Passes in turn until none changes anything, at most `rounds` times.
    Fixpoint {
        /// The passes.
        passes: &'static [&'static Pass],
        /// The bound.
        rounds: usize,
    },
}

/// A named list of stages.
pub struct Pipeline {
    /// The name on the command line.
    pub name: &'static str,
    /// What it is for, in a line.
    pub help: &'static str,
    /// What runs, in order.
    pub stages: &'static [Stage],
}

/// What every other pass relies on: each value computed once, nothing constant computed at all.
const CLEAN: Stage = Stage::Fixpoint { passes: &[&simplify::PASS, &fold::PASS, &cse::PASS], rounds: 8 };

/// Every pipeline, least work first.
pub const PIPELINES: &[Pipeline] = &[
    Pipeline { name: "O0", help: "only what costs nothing", stages: &[Stage::Pass(&dce::PASS)] },
    Pipeline {
        name: "O1",
        help: "remove what need not be computed",
        stages: &[
            Stage::Pass(&dce::PASS),
            Stage::Pass(&propagate_shapes::PASS),
            CLEAN,
            Stage::Pass(&fold_batch_norm::PASS),
        ],
    },
    Pipeline {
        name: "O2",
        help: "everything",
        stages: &[
            // Dead nodes count as readers and would block rules that ask for a single one.
            Stage::Pass(&dce::PASS),
            // Shapes first: what they depend on may be dead afterwards.
            Stage::Pass(&propagate_shapes::PASS),
            // Before weights are folded into floats.
            Stage::Pass(&integer_products::PASS),
            CLEAN,
            // After cleaning, which formulas rely on.
            Stage::Pass(&recognize_composites::PASS),
            Stage::Pass(&sub_pixel::PASS),
            Stage::Pass(&choose_layout::PASS),
            // Also brings together batch norms and the convolutions before them.
            Stage::Pass(&sink_transposes::PASS),
            // Scales and transposes weights in one go, so `fold` must not have transposed them before.
            Stage::Pass(&fold_batch_norm::PASS),
            CLEAN,
            // What composites transposed may now cancel.
            Stage::Pass(&sink_transposes::PASS),
            CLEAN,
            // Batch norms stand beside their convolutions no more.
            Stage::Pass(&wide_products::PASS),
            // Where channels stand, and which are few, is settled now.
            Stage::Pass(&winograd::PASS),
            // Changes nothing but the order.
            Stage::Pass(&early_outputs::PASS),
        ],
    },
];

/// The pass of that name.
pub fn pass(name: &str) -> Result<&'static Pass, Error> {
    PASSES.iter().copied().find(|p| p.name == name).ok_or_else(|| {
        let known: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
        Error::UnknownPass { name: name.to_string(), known: known.join(", ") }
    })
}

/// The pipeline of that name.
pub fn pipeline(name: &str) -> Option<&'static Pipeline> {
    PIPELINES.iter().find(|p| p.name == name)
}
