//! Tokens of graph text, each with the bytes it spans.

use std::ops::Range;

use winnow::ascii::{digit1, hex_digit1, multispace1, till_line_ending};
use winnow::combinator::{alt, delimited, opt, preceded, repeat};
use winnow::stream::Location;
use winnow::token::{one_of, take_till, take_while};
use winnow::{LocatingSlice, Parser};

use crate::error::Error;

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'t> {
    /// A letter or `_`, then letters, digits, `_` and `.`.
    Word(&'t str),
    /// What follows `%`.
    Value(&'t str),
    /// A decimal number, or `-inf`.
    Number(&'t str),
    /// The digits after `0x`.
    Hex(&'t str),
    /// A quoted string, escapes replaced.
    Text(String),
    /// One of the characters in [`PUNCTUATION`].
    Punct(char),
    /// The end of the text.
    End,
}

/// The characters that are tokens by themselves.
const PUNCTUATION: [char; 11] = ['{', '}', '(', ')', '[', ']', ',', ':', '=', '@', '#'];

impl Token<'_> {
    /// What it is called in messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Token::Word(word) => format!("`{word}`"),
            Token::Value(name) => format!("`%{name}`"),
            Token::Number(digits) => format!("`{digits}`"),
            Token::Hex(_) => "a hexadecimal number".to_string(),
            Token::Text(_) => "a string".to_string(),
            Token::Punct(c) => format!("`{c}`"),
            Token::End => "the end of the text".to_string(),
        }
    }
}

type Input<'t> = LocatingSlice<&'t str>;

/// Whether `text` is a word.
pub(super) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(is_word_char)
}

fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// Every token with its span, the end included.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, Range<usize>)>, Error> {
    let mut input = LocatingSlice::new(text);
    let mut tokens = Vec::new();
    loop {
        skip(&mut input);
        let start = input.current_token_start();
        if start == text.len() {
            tokens.push((Token::End, start..start));
            return Ok(tokens);
        }
        match token.parse_next(&mut input) {
            Ok(token) => tokens.push((token, start..input.current_token_start())),
            Err(_) => {
                let next = text[start..].chars().next().unwrap_or(' ');
                let message = match next {
                    '"' => "a string that does not end, or has an unknown escape".to_string(),
                    other => format!("`{other}` begins nothing here"),
                };
                return Err(Error::Parse { span: start..start + next.len_utf8(), message });
            }
        }
    }
}

fn skip(input: &mut Input<'_>) {
    let blank = alt((multispace1.void(), ("//", till_line_ending).void()));
    let skipped: winnow::Result<()> = repeat(0.., blank).parse_next(input);
    debug_assert!(skipped.is_ok(), "no repetition is one too");
}

fn token<'t>(input: &mut Input<'t>) -> winnow::Result<Token<'t>> {
    let start = one_of(|c: char| c.is_ascii_alphabetic() || c == '_');
    let word = (start, take_while(0.., is_word_char)).take().map(Token::Word);
    let value = preceded('%', take_while(1.., is_word_char)).map(Token::Value);
    let hex = preceded("0x", hex_digit1).map(Token::Hex);
    let exponent = (one_of(['e', 'E']), opt(one_of(['+', '-'])), digit1);
    let decimal = (opt('-'), digit1, opt(('.', digit1)), opt(exponent)).take();
    let number = alt((decimal, "-inf")).map(Token::Number);
    let punct = one_of(|c: char| c == '?' || PUNCTUATION.contains(&c)).map(Token::Punct);
    alt((word, value, hex, number, quoted.map(Token::Text), punct)).parse_next(input)
}

/// A quoted string.
fn quoted(input: &mut Input<'_>) -> winnow::Result<String> {
    let plain = take_till(1.., ['"', '\\']).map(str::to_string);
    let code = |digits: &str| u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
    let unicode = delimited("u{", take_while(1..=6, |c: char| c.is_ascii_hexdigit()), '}').verify_map(code);
    let escape = alt(('"', '\\', 'n'.value('\n'), 'r'.value('\r'), 't'.value('\t'), unicode));
    let fragment = alt((plain, preceded('\\', escape).map(String::from)));
    let text = repeat(0.., fragment).fold(String::new, |mut text, fragment: String| {
        text.push_str(&fragment);
        text
    });
    delimited('"', text, '"').parse_next(input)
}

/// A string as [`quoted`] reads it.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
