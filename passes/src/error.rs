//! What can go wrong while passes run.

use crate::reason::Reason;

/// An error of the pass level.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A rewrite could not be built.
    #[error(transparent)]
    Ir(#[from] windlass_ir::Error),
    /// A pass produced a graph that the verifier refuses: a defect of the pass, not of the model.
    #[error("pass `{pass}` made an invalid graph: {error}")]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// What the verifier found.
        error: windlass_ir::Error,
    },
    /// A pass's claim about whether it changed the graph is not true: a defect of the pass.
    #[error("pass `{pass}` claims {claim}, which is not so")]
    Dishonest {
        /// The pass.
        pass: &'static str,
        /// What it claims.
        claim: &'static str,
    },
    /// No pass of that name.
    #[error("there is no pass `{name}`; passes are {known}")]
    UnknownPass {
        /// What was asked for.
        name: String,
        /// Every name.
        known: String,
    },
    /// Something a pass must do cannot be done.
    #[error("{node}: {reason}")]
    Refused {
        /// The node.
        node: String,
        /// Why.
        reason: Reason,
    },
}
