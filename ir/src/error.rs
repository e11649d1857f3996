//! What can go wrong at the graph and loop levels.

use crate::attrs::AttrError;
use crate::types::TensorType;

/// The numbered constraint of an op that its operands or attributes do not satisfy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("({constraint}) {message}")]
pub struct Violation {
    /// `C1`, `C2`, ...: as numbered in the op's file.
    pub constraint: &'static str,
    /// What was found and what was expected.
    pub message: String,
}

impl Violation {
    /// A violation of `constraint`.
    pub fn new(constraint: &'static str, message: impl Into<String>) -> Violation {
        Violation { constraint, message: message.into() }
    }
}

/// Fails with a [`Violation`] unless the condition holds: `require!(ok, "C2", "found {x}")`.
#[macro_export]
macro_rules! require {
    ($ok:expr, $constraint:literal, $($message:tt)*) => {
        if !$ok {
            return Err($crate::Violation::new($constraint, format!($($message)*)));
        }
    };
}

/// An error of the graph or loop level.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// An op's constraint does not hold.
    #[error("{node}: {violation}")]
    Infer {
        /// The node.
        node: String,
        /// The constraint.
        violation: Violation,
    },
    /// An attribute could not be read.
    #[error("{node}: {error}")]
    Attr {
        /// The node.
        node: String,
        /// Which and why.
        error: AttrError,
    },
    /// A node could not be evaluated on the data it got.
    #[error("{node}: {message}")]
    Eval {
        /// The node.
        node: String,
        /// Why.
        message: String,
    },
    /// A graph or kernel breaks an invariant.
    #[error("invariant {invariant}: {message}")]
    Verify {
        /// `V1`.. for graphs, `L1`.. for loops.
        invariant: &'static str,
        /// Where and how.
        message: String,
    },
    /// A kernel did what no valid kernel does, or its arguments do not fit.
    #[error("kernel `{kernel}`: {message}")]
    Run {
        /// The kernel.
        kernel: String,
        /// What and where.
        message: String,
    },
    /// A graph without outputs.
    #[error("graph `{graph}` has no outputs")]
    NoOutputs {
        /// The graph.
        graph: String,
    },
    /// The wrong number of inputs.
    #[error("the graph takes {expected} inputs, found {found}")]
    InputCount {
        /// What the graph declares.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// An input of the wrong type.
    #[error("input `{name}` takes {expected}, found {found}")]
    InputType {
        /// The input.
        name: String,
        /// What the graph declares.
        expected: TensorType,
        /// What was given.
        found: TensorType,
    },
    /// A rewrite tried to replace a value by one of another type.
    #[error("{node}: a rewrite changed its type from {from} to {to}")]
    TypeChanged {
        /// The rewritten node.
        node: String,
        /// Before.
        from: TensorType,
        /// After.
        to: TensorType,
    },
    /// An op that gradients would have to flow through has none.
    #[error("{node} is not differentiable, and a gradient would flow through it: {way}")]
    NoGradient {
        /// The node.
        node: String,
        /// The way from what is differentiated over it to what the gradient is asked for, each computed from the next.
        way: String,
    },
    /// A node that gradients would flow through has sizes or attributes that are not known.
    #[error("{node}: gradients need every size fixed; bind the dimensions first")]
    GradientSizes {
        /// The node.
        node: String,
    },
    /// A gradient of or by what is not a float, or of more than one number.
    #[error("{value} of type {found} has no gradient: one float is differentiated, by floats")]
    NotFloat {
        /// Which value.
        value: String,
        /// Its type.
        found: TensorType,
    },
    /// What flows back into a value has another type.
    #[error("{value} has type {expected}, what flows back into it {found}")]
    Seed {
        /// Which value.
        value: String,
        /// Its type.
        expected: TensorType,
        /// What was given.
        found: TensorType,
    },
    /// A rule gave a gradient of another type than the operand's: a defect of the rule.
    #[error("the gradient rule of {node} gives {found} for an operand of {expected}")]
    GradientType {
        /// The node.
        node: String,
        /// The operand's type.
        expected: TensorType,
        /// The gradient's.
        found: TensorType,
    },
    /// A node that depends on the batch has sizes or attributes that are not known.
    #[error("{node} has no vectorized form: it depends on the batch, and its sizes depend on data")]
    VmapSizes {
        /// The node.
        node: String,
    },
    /// A rule gave a result of another type than that of a batch: a defect of the rule.
    #[error("the vectorized {node} gives {found}, not {expected}")]
    VmapType {
        /// The node.
        node: String,
        /// The type of a batch of results.
        expected: TensorType,
        /// What the rule gave.
        found: TensorType,
    },
    /// Gradients of single examples were asked for where there are none.
    #[error("there is no gradient of one example: {reason}")]
    NoExample {
        /// What stands in the way.
        reason: String,
    },
    /// A limit was exceeded.
    #[error("{subject}: {found} {what} exceed the limit of {limit}")]
    Limit {
        /// The node or input at fault.
        subject: String,
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// What was asked for.
        found: u64,
    },
    /// Text that is not IR.
    #[error("{message} at byte {}", span.start)]
    Parse {
        /// The bytes of the text that are at fault.
        span: std::ops::Range<usize>,
        /// What was expected and found.
        message: String,
    },
}
