//! Attributes: an op lists its own once, and printer, parser, importer and hasher all walk that list.
//!
//! An op's `attrs` method hands each attribute's name and a [`Slot`] borrowing the field to a
//! [`Codec`]. A printing codec reads the slot, a parsing or importing one fills it.

use std::sync::Arc;

use crate::dtype::DType;
use crate::graph::Graph;
use crate::tensor::Tensor;

/// Why an attribute could not be read or written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("attribute `{name}`: {message}")]
pub struct AttrError {
    /// The attribute.
    pub name: String,
    /// What was wrong with it.
    pub message: String,
}

/// Integers that are known when the graph is built, or are the value of an operand known later.
///
/// [`crate::graph::Builder::push`] turns an operand that is a constant into `Known` and drops it, so
/// `Operand` means that the value truly is not known yet. `eval`, `lower` and `vjp` only ever see
/// `Known`: the interpreter and the passes resolve it first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Late {
    /// The integers themselves.
    Known(Vec<i64>),
    /// The node's operand of this index holds them.
    Operand(u32),
}

impl Late {
    /// The integers, if known.
    pub fn as_known(&self) -> Option<&[i64]> {
        match self {
            Late::Known(ints) => Some(ints),
            Late::Operand(_) => None,
        }
    }

    /// The integers, where the contract says they are known (`eval`, `lower`, `vjp`).
    ///
    /// # Panics
    /// If they are not.
    pub fn known(&self) -> &[i64] {
        self.as_known().expect("late attributes are resolved before use")
    }
}

impl Default for Late {
    fn default() -> Late {
        Late::Known(Vec::new())
    }
}

impl From<&[i64]> for Late {
    fn from(ints: &[i64]) -> Late {
        Late::Known(ints.to_vec())
    }
}

impl From<Vec<i64>> for Late {
    fn from(ints: Vec<i64>) -> Late {
        Late::Known(ints)
    }
}

/// An enum spelled as a word in IR text, such as a reduction's kind.
pub trait Keyword: Copy + PartialEq + 'static {
    /// Every value with its spelling.
    const ALL: &'static [(&'static str, Self)];

    /// The spelling.
    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, v)| *v == self).map_or("?", |(word, _)| word)
    }
}

/// A [`Keyword`] field behind one type, for [`Slot`].
pub trait KeywordSlot {
    /// The spelling of the present value.
    fn word(&self) -> &'static str;
    /// Sets the value by its spelling; false if there is none such.
    fn set_word(&mut self, word: &str) -> bool;
    /// Every spelling.
    fn words(&self) -> Vec<&'static str>;
}

impl<K: Keyword> KeywordSlot for K {
    fn word(&self) -> &'static str {
        Keyword::word(*self)
    }

    fn set_word(&mut self, word: &str) -> bool {
        match K::ALL.iter().find(|(w, _)| *w == word) {
            Some((_, value)) => {
                *self = *value;
                true
            }
            None => false,
        }
    }

    fn words(&self) -> Vec<&'static str> {
        K::ALL.iter().map(|(word, _)| *word).collect()
    }
}

/// A borrowed attribute field.
pub enum Slot<'a> {
    /// An integer.
    Int(&'a mut i64),
    /// A list of integers.
    Ints(&'a mut Vec<i64>),
    /// A float.
    Float(&'a mut f64),
    /// A list of floats.
    Floats(&'a mut Vec<f64>),
    /// Free text, such as an einsum equation.
    Text(&'a mut String),
    /// A flag; ONNX spells it as an integer.
    Bool(&'a mut bool),
    /// A word.
    Keyword(&'a mut dyn KeywordSlot),
    /// An element type.
    DType(&'a mut DType),
    /// A tensor, shared.
    Tensor(&'a mut Tensor),
    /// A nested graph, shared.
    Graph(&'a mut Arc<Graph>),
    /// Integers that may be an operand.
    Late(&'a mut Late),
}

/// What walks over an op's attributes.
pub trait Codec {
    /// Visits one attribute.
    fn attr(&mut self, name: &'static str, slot: Slot<'_>) -> Result<(), AttrError>;
}

/// A codec from a closure.
impl<F: FnMut(&'static str, Slot<'_>) -> Result<(), AttrError>> Codec for F {
    fn attr(&mut self, name: &'static str, slot: Slot<'_>) -> Result<(), AttrError> {
        self(name, slot)
    }
}
