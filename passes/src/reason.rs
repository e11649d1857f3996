//! Why a rule fired or did not: what `explain` shows.

use std::fmt;

use windlass_ir::TensorType;

/// One decision of a rule at a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The pass.
    pub pass: &'static str,
    /// The rule within it.
    pub rule: &'static str,
    /// The node, by its model name where it has one.
    pub node: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of trying a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The node was rewritten.
    Fired,
    /// It was not.
    Blocked(Reason),
}

/// Why a rule that applies to this kind of node left it as it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Reason {
    /// The rewrite would duplicate work: others read the intermediate result.
    #[error("{value} is also read by others ({readers} readers, {expected} expected)")]
    OtherReaders {
        /// Whose result.
        value: String,
        /// How many there are.
        readers: u32,
        /// How many the rule accounts for.
        expected: u32,
    },
    /// The node does not have the form the rule looks for, though it comes close.
    #[error("expected {expected} at {found}")]
    Form {
        /// The part of the formula.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// An operand would have to be a constant.
    #[error("{what} is not a constant")]
    NotConstant {
        /// Which operand.
        what: String,
    },
    /// A type the rule is not right for.
    #[error("{what} has type {found}")]
    Type {
        /// Of what.
        what: &'static str,
        /// The type.
        found: TensorType,
    },
    /// It would be no less work.
    #[error("it takes {found} operations in place of {present}")]
    Cost {
        /// Of the other form.
        found: u64,
        /// As it is.
        present: u64,
    },
    /// A size would have to be known.
    #[error("a size of {what} is not known")]
    UnknownSize {
        /// Of what.
        what: String,
    },
    /// The result is more than the limit allows.
    #[error("{found} {what} exceed the limit of {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What it would take.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Compiled code computes it once before the first run, together with what else is done to it.
    #[error("{bytes} bytes of constants are left to be prepared by compiled code")]
    Prepared {
        /// The size of its operands and results.
        bytes: u64,
    },
    /// It would not be cheaper.
    #[error("it would move {after} bytes where {before} are moved now")]
    NoGain {
        /// Cost now.
        before: u64,
        /// Cost after.
        after: u64,
    },
    /// It would not mean the same.
    #[error("{0}")]
    Unsound(&'static str),
    /// The node could not be evaluated.
    #[error("evaluation failed: {0}")]
    Eval(String),
    /// A rewrite was due but the fuel had run out.
    #[error("the fuel is spent")]
    Fuel,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {}: ", self.pass, self.rule, self.node)?;
        match &self.outcome {
            Outcome::Fired => f.write_str("fired"),
            Outcome::Blocked(reason) => write!(f, "blocked: {reason}"),
        }
    }
}
