//! Tokens of kernel text.

use std::ops::Range;

use winnow::ascii::{digit1, hex_digit1, multispace1, till_line_ending};
use winnow::combinator::{alt, opt, preceded, repeat};
use winnow::stream::Location;
use winnow::token::{one_of, take_while};
use winnow::{LocatingSlice, Parser};

use crate::error::Error;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'t> {
    /// A letter or `_`, then letters, digits and `_`.
    Word(&'t str),
    /// An unsigned decimal number.
    Number(&'t str),
    /// The digits after `0x`.
    Hex(&'t str),
    /// A character that is a token by itself.
    Punct(char),
    /// `..`
    Dots,
    /// The end of the text.
    End,
}

const PUNCTUATION: &str = "{}()[],:=*/%+-<";

type Input<'t> = LocatingSlice<&'t str>;

/// Every token with its span, the end included.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, Range<usize>)>, Error> {
    let mut input = LocatingSlice::new(text);
    let mut tokens = Vec::new();
    loop {
        let blank = alt((multispace1.void(), ("//", till_line_ending).void()));
        let skipped: winnow::Result<()> = repeat(0.., blank).parse_next(&mut input);
        debug_assert!(skipped.is_ok(), "no repetition is one too");
        let start = input.current_token_start();
        if start == text.len() {
            tokens.push((Token::End, start..start));
            return Ok(tokens);
        }
        match token.parse_next(&mut input) {
            Ok(token) => tokens.push((token, start..input.current_token_start())),
            Err(_) => {
                let next = text[start..].chars().next().unwrap_or(' ');
                let message = format!("`{next}` begins nothing here");
                return Err(Error::Parse { span: start..start + next.len_utf8(), message });
            }
        }
    }
}

fn token<'t>(input: &mut Input<'t>) -> winnow::Result<Token<'t>> {
    let start = one_of(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = take_while(0.., |c: char| c.is_ascii_alphanumeric() || c == '_');
    let word = (start, rest).take().map(Token::Word);
    let hex = preceded("0x", hex_digit1).map(Token::Hex);
    let exponent = (one_of(['e', 'E']), opt(one_of(['+', '-'])), digit1);
    let number = (digit1, opt(('.', digit1)), opt(exponent)).take().map(Token::Number);
    let punct = one_of(|c: char| PUNCTUATION.contains(c)).map(Token::Punct);
    alt((word, hex, number, "..".value(Token::Dots), punct)).parse_next(input)
}
