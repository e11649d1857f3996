//! Patterns over graphs, written as formulas.
//!
//! ```text
//! d = x - reduce_mean(x);
//! d / sqrt(reduce_mean(d * d) + #epsilon) * scale + bias
//! ```
//!
//! ```text
//! formula := { name '=' choice ';' } choice
//! choice  := sum { '|' sum }
//! sum     := product { ('+' | '-') product }
//! product := factor { ('*' | '/') factor }
//! factor  := number | '#' name | '-' factor | '(' choice ')' | name [ '(' choice { ',' choice } ')' ]
//! ```
//!
//! - A name that takes operands is an op, as spelled in IR text; `+ - * /` are `add sub mul div`.
//! - Any other name stands for a value: for its definition if it has one, else for any. Where it
//!   occurs again it is the same value.
//! - A number is a constant all of whose elements are that number, up to rounding in its type.
//!   `#name` is a constant of equal elements, whichever; where it occurs again it is the same number.
//! - `a | b` is either. Operands of commutative functions match in either order.
//! - All `reduce_*` in a formula reduce the same axes and keep them as 1.

mod matching;
mod parse;

pub use matching::{Match, Matcher};

/// Identifies a term within its formula.
pub(crate) type TermId = usize;

/// One term.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Term {
    /// A value, by slot; with its definition where it has one.
    Name(usize, Option<TermId>),
    /// A constant of equal elements, by slot.
    Uniform(usize),
    /// This number.
    Number(f64),
    /// An op applied to operands.
    Apply(String, Vec<TermId>),
    /// Any one of these.
    Either(Vec<TermId>),
}

/// A formula, parsed.
#[derive(Clone, Debug)]
pub struct Formula {
    pub(crate) terms: Vec<Term>,
    pub(crate) root: TermId,
    /// The names of values, by slot.
    pub(crate) names: Vec<String>,
    /// The names of numbers, by slot.
    pub(crate) numbers: Vec<String>,
}

impl Formula {
    /// Parses a formula.
    ///
    /// # Panics
    /// If it is not one: formulas are part of the program.
    pub fn new(text: &str) -> Formula {
        parse::parse(text).unwrap_or_else(|message| panic!("{message} in the formula `{text}`"))
    }

    /// The ops that the root may be.
    pub fn roots(&self) -> Vec<&str> {
        let mut found = Vec::new();
        let mut pending = vec![self.root];
        while let Some(id) = pending.pop() {
            match &self.terms[id] {
                Term::Apply(op, _) => found.push(op.as_str()),
                Term::Either(options) => pending.extend(options.iter().copied()),
                Term::Name(_, definition) => pending.extend(*definition),
                Term::Uniform(_) | Term::Number(_) => {}
            }
        }
        found
    }

    /// The number of applied ops; of alternatives, the first's.
    pub fn size(&self) -> usize {
        let mut seen = vec![false; self.terms.len()];
        let mut pending = vec![self.root];
        let mut size = 0;
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id], true) {
                continue;
            }
            match &self.terms[id] {
                Term::Apply(_, args) => {
                    size += 1;
                    pending.extend(args.iter().copied());
                }
                Term::Either(options) => pending.extend(options.first().copied()),
                Term::Name(_, definition) => pending.extend(*definition),
                Term::Uniform(_) | Term::Number(_) => {}
            }
        }
        size
    }

    /// What a term looks for, in a few words.
    pub(crate) fn describe(&self, id: TermId) -> String {
        match &self.terms[id] {
            Term::Name(slot, _) => format!("the same `{}`", self.names[*slot]),
            Term::Uniform(slot) => format!("a constant `{}`", self.numbers[*slot]),
            Term::Number(x) => format!("the constant {x}"),
            Term::Apply(op, args) => format!("{op} of {}", args.len()),
            Term::Either(options) => {
                let options: Vec<String> = options.iter().map(|&o| self.describe(o)).collect();
                options.join(" or ")
            }
        }
    }
}
