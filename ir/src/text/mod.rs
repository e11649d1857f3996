//! Graphs as text (`.wir`): printing, and parsing back to an equal graph.
//!
//! ```text
//! graph @main(%x: f32[batch, 3, 4], %w: f32[4, 5]) {
//!   %2 = constant {value = f32[2] [1.0, 2.5]} : f32[2]
//!   %3, %4 = top_k %x {k = [3]} "scores/top" : f32[batch, 3, 3], i64[batch, 3, 3]
//!   return %3 as "values", %4 as "indices"
//! }
//! ```
//!
//! The grammar, over tokens with blanks and `// comments` between them:
//!
//! ```text
//! graph  = "graph" "@" name "(" (value ("as" string)? ":" type),* ")" "{" node* "return" (value "as" string),* "}"
//! node   = value,* "=" op value,* ("{" (word "=" attr),* "}")? string? (":" type,*)?
//! attr   = number | word | string | "[" (number | word),* "]" | tensor | graph | value | "#" number
//! tensor = dtype "[" number,* "]" ("[" element,* "]" | hex)
//! type   = dtype "[" (number | word | string | "?"),* "]"
//! name   = word | string          value = "%" (letter | digit | "_" | ".")+
//! ```
//!
//! - An input is written by its own name where that is a word, else as a number with `as "name"`.
//! - Attributes at their defaults are left out. A late attribute held by an operand is that operand:
//!   `shape = %5`, which then is not listed with the others (`#1` names a listed one).
//! - Elements are decimal and exact; `nan` and `inf` are words, and `0x7fc00001` gives an element's
//!   bits. More than [`LISTED_ELEMENTS`] are one hexadecimal number: the little-endian bytes.
//! - Types after `:` are what the ops infer. They may be left out, and are checked where they stand.
//! - A dimension is a size, a name (quoted unless a word), or `?`.

mod build;
mod element;
mod lex;
mod parse;
mod print;

#[cfg(test)]
mod tests;

pub use print::{PrintOptions, print_graph, print_graph_with};

use crate::error::Error;
use crate::graph::{Graph, verify};
use crate::limits::Limits;

/// A tensor of more elements than this is written as bytes, not as a list.
pub const LISTED_ELEMENTS: usize = 64;

/// A graph from its text. It is type-checked as it is built and then verified.
///
/// # Errors
/// [`Error::Parse`], with the place in the text, for whatever is wrong with it; [`Error::Verify`] for
/// a broken invariant.
pub fn parse_graph(text: &str) -> Result<Graph, Error> {
    parse_graph_within(text, &Limits::default())
}

/// [`parse_graph`] with other than the default limits.
pub fn parse_graph_within(text: &str, limits: &Limits) -> Result<Graph, Error> {
    let graph = parse::parse(text, limits, build::Mode::Checked)?;
    verify(&graph)?;
    Ok(graph)
}

/// A graph from its text as it stands, types taken from their annotations: for testing the verifier.
pub fn parse_graph_unverified(text: &str) -> Result<Graph, Error> {
    parse::parse(text, &Limits::default(), build::Mode::AsWritten)
}

impl std::fmt::Display for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&print_graph(self))
    }
}
