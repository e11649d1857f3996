//! Reading graphs: from tokens to what the text says, by recursive descent of limited depth.

use std::ops::Range;
use std::sync::Arc;

use super::build::{Mode, build};
use super::element::{parse_bytes, parse_element};
use super::lex::{Token, tokens};
use crate::attrs::{AttrError, KeywordSlot, Late, Slot};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Graph;
use crate::limits::Limits;
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// Bytes of the text.
pub(super) type Span = Range<usize>;

/// A value's name where it is mentioned.
#[derive(Clone, Debug)]
pub(super) struct Mention<'t> {
    pub(super) name: &'t str,
    pub(super) span: Span,
}

/// An input as written.
pub(super) struct InputText<'t> {
    pub(super) value: Mention<'t>,
    pub(super) name: String,
    pub(super) ty: TensorType,
}

/// A node as written.
pub(super) struct NodeText<'t> {
    pub(super) outs: Vec<Mention<'t>>,
    pub(super) op: Op,
    pub(super) ins: Vec<Mention<'t>>,
    pub(super) name: Option<Arc<str>>,
    pub(super) types: Option<Vec<TensorType>>,
    pub(super) span: Span,
}

/// A graph as written.
pub(super) struct GraphText<'t> {
    pub(super) name: String,
    pub(super) inputs: Vec<InputText<'t>>,
    pub(super) nodes: Vec<NodeText<'t>>,
    pub(super) outputs: Vec<(String, Mention<'t>)>,
    pub(super) span: Span,
}

/// An attribute's value as written.
#[derive(Clone)]
enum AttrText<'t> {
    Single(Token<'t>),
    List(Vec<(Token<'t>, Span)>),
    Tensor(Tensor),
    Graph(Arc<Graph>),
    Operand(u32),
}

/// A graph from its whole text.
pub(super) fn parse(text: &str, limits: &Limits, mode: Mode) -> Result<Graph, Error> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0, limits, mode };
    let graph = parser.graph()?;
    parser.expect_token(&Token::End)?;
    Ok(graph)
}

struct Parser<'t, 'l> {
    tokens: Vec<(Token<'t>, Span)>,
    at: usize,
    depth: u64,
    limits: &'l Limits,
    mode: Mode,
}

pub(super) fn fail<T>(span: &Span, message: impl Into<String>) -> Result<T, Error> {
    Err(Error::Parse { span: span.clone(), message: message.into() })
}

/// An error of what the text at a span says; that a limit is exceeded stays one of its own kind.
pub(super) fn fail_with<T>(span: &Span, error: Error) -> Result<T, Error> {
    match error {
        Error::Limit { .. } => Err(error),
        other => fail(span, other.to_string()),
    }
}

impl<'t> Parser<'t, '_> {
    fn peek(&self) -> &Token<'t> {
        &self.tokens[self.at].0
    }

    fn span(&self) -> Span {
        self.tokens[self.at].1.clone()
    }

    fn next(&mut self) -> (Token<'t>, Span) {
        let token = self.tokens[self.at].clone();
        // The end is read any number of times.
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    /// The text from the first of these bytes to the last token read.
    fn since(&self, start: usize) -> Span {
        start..self.tokens[self.at.saturating_sub(1)].1.end.max(start)
    }

    fn wanted<T>(&self, what: &str) -> Result<T, Error> {
        fail(&self.span(), format!("{what} is expected, found {}", self.peek().describe()))
    }

    fn eat(&mut self, token: &Token<'_>) -> bool {
        let found = self.peek() == token;
        if found {
            self.next();
        }
        found
    }

    fn expect_token(&mut self, token: &Token<'_>) -> Result<(), Error> {
        match self.eat(token) {
            true => Ok(()),
            false => self.wanted(&token.describe()),
        }
    }

    fn expect(&mut self, punct: char) -> Result<(), Error> {
        self.expect_token(&Token::Punct(punct))
    }

    fn text(&mut self) -> Result<String, Error> {
        match self.next() {
            (Token::Text(text), _) => Ok(text),
            (other, span) => fail(&span, format!("a string is expected, found {}", other.describe())),
        }
    }

    /// A word or a string.
    fn name(&mut self) -> Result<String, Error> {
        match self.peek() {
            Token::Word(word) => {
                let word = word.to_string();
                self.next();
                Ok(word)
            }
            _ => self.text(),
        }
    }

    fn value(&mut self) -> Result<Mention<'t>, Error> {
        match self.next() {
            (Token::Value(name), span) => Ok(Mention { name, span }),
            (other, span) => fail(&span, format!("a value is expected, found {}", other.describe())),
        }
    }

    /// `item`s separated by commas, while the next token can begin one.
    fn separated<T>(
        &mut self,
        begins: impl Fn(&Token<'t>) -> bool,
        mut item: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        if begins(self.peek()) {
            items.push(item(self)?);
            while self.eat(&Token::Punct(',')) {
                items.push(item(self)?);
            }
        }
        Ok(items)
    }

    fn graph(&mut self) -> Result<Graph, Error> {
        let start = self.span().start;
        self.depth += 1;
        if self.depth > self.limits.depth {
            let subject = format!("the graph at byte {start}");
            return Err(Error::Limit {
                subject,
                what: "levels",
                limit: self.limits.depth,
                found: self.depth,
            });
        }
        self.expect_token(&Token::Word("graph"))?;
        self.expect('@')?;
        let name = self.name()?;
        self.expect('(')?;
        let is_value = |token: &Token<'_>| matches!(token, Token::Value(_));
        let inputs = self.separated(is_value, |p| {
            let value = p.value()?;
            let name = match p.eat(&Token::Word("as")) {
                true => p.text()?,
                false => value.name.to_string(),
            };
            p.expect(':')?;
            Ok(InputText { value, name, ty: p.ty()? })
        })?;
        self.expect(')')?;
        self.expect('{')?;
        let mut nodes = Vec::new();
        while is_value(self.peek()) {
            nodes.push(self.node()?);
        }
        self.expect_token(&Token::Word("return"))?;
        let outputs = self.separated(is_value, |p| {
            let value = p.value()?;
            p.expect_token(&Token::Word("as"))?;
            Ok((p.text()?, value))
        })?;
        self.expect('}')?;
        self.depth -= 1;
        let span = self.since(start);
        build(GraphText { name, inputs, nodes, outputs, span }, self.limits, self.mode)
    }

    fn node(&mut self) -> Result<NodeText<'t>, Error> {
        let start = self.span().start;
        let is_value = |token: &Token<'_>| matches!(token, Token::Value(_));
        let outs = self.separated(is_value, Self::value)?;
        self.expect('=')?;
        let (op, op_span) = match self.next() {
            (Token::Word(word), span) => match Op::from_name(word) {
                Some(op) => (op, span),
                None => return fail(&span, format!("there is no op `{word}`")),
            },
            (other, span) => return fail(&span, format!("an op is expected, found {}", other.describe())),
        };
        let mut ins = self.operands()?;
        let attrs = match self.eat(&Token::Punct('{')) {
            false => Vec::new(),
            true => {
                let attrs = self.separated(|token| matches!(token, Token::Word(_)), Self::attr)?;
                self.expect('}')?;
                attrs
            }
        };
        let op = fill(op, &op_span, attrs, &mut ins)?;
        let name = match self.peek() {
            Token::Text(_) => Some(self.text()?.into()),
            _ => None,
        };
        let types = match self.eat(&Token::Punct(':')) {
            true => Some(self.separated(|token| matches!(token, Token::Word(_)), Self::ty)?),
            false => None,
        };
        Ok(NodeText { outs, op, ins, name, types, span: self.since(start) })
    }

    /// A node's operands. The next node begins with a value too, but no comma stands before it.
    fn operands(&mut self) -> Result<Vec<Mention<'t>>, Error> {
        let begins_node = |p: &Self| {
            let mut at = p.at;
            while matches!(p.tokens[at].0, Token::Value(_)) {
                match p.tokens[at + 1].0 {
                    Token::Punct('=') => return true,
                    Token::Punct(',') => at += 2,
                    _ => return false,
                }
            }
            false
        };
        match begins_node(self) {
            true => Ok(Vec::new()),
            false => self.separated(|token| matches!(token, Token::Value(_)), Self::value),
        }
    }

    fn attr(&mut self) -> Result<(&'t str, AttrText<'t>, Span), Error> {
        let start = self.span().start;
        let name = match self.next() {
            (Token::Word(word), _) => word,
            (other, span) => {
                return fail(&span, format!("an attribute is expected, found {}", other.describe()));
            }
        };
        self.expect('=')?;
        let value = match self.peek().clone() {
            Token::Word("graph") => AttrText::Graph(Arc::new(self.graph()?)),
            Token::Word(_) if matches!(self.tokens[self.at + 1].0, Token::Punct('[')) => {
                AttrText::Tensor(self.tensor()?)
            }
            Token::Punct('[') => AttrText::List(self.list()?),
            Token::Punct('#') => {
                self.next();
                AttrText::Operand(self.size()? as u32)
            }
            Token::Punct(_) | Token::End => return self.wanted("a value of an attribute"),
            Token::Word(_) | Token::Value(_) | Token::Number(_) | Token::Hex(_) | Token::Text(_) => {
                AttrText::Single(self.next().0)
            }
        };
        Ok((name, value, self.since(start)))
    }

    fn list(&mut self) -> Result<Vec<(Token<'t>, Span)>, Error> {
        self.expect('[')?;
        let begins = |token: &Token<'t>| matches!(token, Token::Word(_) | Token::Number(_) | Token::Hex(_));
        let items = self.separated(begins, |p| match begins(p.peek()) {
            true => Ok(p.next()),
            false => p.wanted("a number"),
        })?;
        self.expect(']')?;
        Ok(items)
    }

    fn size(&mut self) -> Result<usize, Error> {
        let (token, span) = self.next();
        let size = match &token {
            Token::Number(digits) => digits.parse().ok(),
            _ => None,
        };
        size.map_or_else(|| fail(&span, format!("a size is expected, found {}", token.describe())), Ok)
    }

    fn ty(&mut self) -> Result<TensorType, Error> {
        let start = self.span();
        let dtype = match self.next() {
            (Token::Word(word), span) => {
                word.parse::<DType>().or_else(|()| fail(&span, format!("`{word}` is not an element type")))?
            }
            (other, span) => return fail(&span, format!("a type is expected, found {}", other.describe())),
        };
        self.expect('[')?;
        let begins = |token: &Token<'t>| *token != Token::Punct(']');
        let dims = self.separated(begins, |p| match p.peek() {
            Token::Punct('?') => {
                p.next();
                Ok(Dim::Unknown)
            }
            Token::Number(_) => Ok(Dim::Fixed(p.size()?)),
            _ => Ok(Dim::named(&p.name()?)),
        })?;
        self.expect(']')?;
        let ty = TensorType::new(dtype, dims);
        let span = self.since(start.start);
        self.limits.check_type(&ty, || format!("the type at byte {}", span.start))?;
        Ok(ty)
    }

    fn tensor(&mut self) -> Result<Tensor, Error> {
        let start = self.span().start;
        let ty = self.ty()?;
        let span = self.since(start);
        let Some((shape, len)) = ty.as_shape().zip(ty.as_len()) else {
            return fail(&span, "a tensor's sizes are numbers");
        };
        let size = ty.dtype.size();
        let bytes = match self.peek().clone() {
            Token::Hex(digits) => {
                let (_, span) = self.next();
                match parse_bytes(digits) {
                    Some(bytes) => bytes,
                    None => return fail(&span, "a byte takes two digits"),
                }
            }
            Token::Punct('[') => {
                let mut bytes = Vec::with_capacity(len.min(self.tokens.len()) * size);
                for (token, span) in self.list()? {
                    match parse_element(ty.dtype, &token) {
                        Some(bits) => bytes.extend_from_slice(&bits.to_le_bytes()[..size]),
                        None => {
                            return fail(&span, format!("{} is not of type {}", token.describe(), ty.dtype));
                        }
                    }
                }
                bytes
            }
            _ => return self.wanted("a list of elements or their bytes"),
        };
        let found = bytes.len() as f64 / size as f64;
        let span = self.since(start);
        Tensor::from_bytes(ty.dtype, &shape, &bytes)
            .map_or_else(|| fail(&span, format!("{ty} has {len} elements, found {found}")), Ok)
    }
}

/// The op with attributes as written. Values of late attributes are added to the operands.
fn fill<'t>(
    mut op: Op,
    op_span: &Span,
    mut attrs: Vec<(&'t str, AttrText<'t>, Span)>,
    ins: &mut Vec<Mention<'t>>,
) -> Result<Op, Error> {
    let mut listed: Vec<u32> = Vec::new();
    let mut place = op_span.clone();
    let mut visit = |name: &'static str, slot: Slot<'_>| {
        let Some(found) = attrs.iter().position(|(given, _, _)| *given == name) else {
            return Ok(());
        };
        let (_, text, span) = attrs.remove(found);
        place = span.clone();
        match (text, slot) {
            (AttrText::Single(Token::Value(name)), Slot::Late(late)) => {
                *late = Late::Operand(ins.len() as u32);
                ins.push(Mention { name, span });
                Ok(())
            }
            (AttrText::Operand(index), Slot::Late(late)) => {
                listed.push(index);
                *late = Late::Operand(index);
                Ok(())
            }
            (text, slot) => set(slot, &text)
                .map_err(|wanted| AttrError { name: name.to_string(), message: format!("takes {wanted}") }),
        }
    };
    op.attrs(&mut visit).or_else(|error| fail(&place, error.to_string()))?;
    if let Some((name, _, span)) = attrs.first() {
        return fail(span, format!("{} has no attribute `{name}`, or it is given twice", op.name()));
    }
    match listed.iter().find(|&&i| i as usize >= ins.len()) {
        Some(i) => fail(op_span, format!("there is no operand #{i}")),
        None => Ok(op),
    }
}

/// Sets an attribute to what the text says, or tells what it takes.
fn set(slot: Slot<'_>, text: &AttrText<'_>) -> Result<(), String> {
    fn int(token: &Token<'_>) -> Option<i64> {
        match token {
            Token::Number(digits) => digits.parse().ok(),
            _ => None,
        }
    }
    fn float(token: &Token<'_>) -> Option<f64> {
        parse_element(DType::F64, token).map(f64::from_bits)
    }
    fn all<T>(list: &[(Token<'_>, Span)], one: impl Fn(&Token<'_>) -> Option<T>) -> Option<Vec<T>> {
        list.iter().map(|(token, _)| one(token)).collect()
    }
    fn store<T>(slot: &mut T, value: Option<T>, wanted: &str) -> Result<(), String> {
        *slot = value.ok_or_else(|| wanted.to_string())?;
        Ok(())
    }
    fn word(slot: &mut dyn KeywordSlot, text: &AttrText<'_>) -> Result<(), String> {
        match text {
            AttrText::Single(Token::Word(word)) if slot.set_word(word) => Ok(()),
            _ => Err(format!("one of {}", slot.words().join(", "))),
        }
    }
    let single = match text {
        AttrText::Single(token) => Some(token),
        _ => None,
    };
    let list = match text {
        AttrText::List(list) => Some(list.as_slice()),
        _ => None,
    };
    match slot {
        Slot::Int(i) => store(i, single.and_then(int), "an integer"),
        Slot::Ints(ints) => store(ints, list.and_then(|l| all(l, int)), "a list of integers"),
        Slot::Float(x) => store(x, single.and_then(float), "a number"),
        Slot::Floats(xs) => store(xs, list.and_then(|l| all(l, float)), "a list of numbers"),
        Slot::Bool(flag) => {
            let value = single.and_then(|token| parse_element(DType::Bool, token));
            store(flag, value.map(|bits| bits != 0), "true or false")
        }
        Slot::Text(t) => {
            let value = single.and_then(|token| match token {
                Token::Text(text) => Some(text.clone()),
                _ => None,
            });
            store(t, value, "a string")
        }
        Slot::Keyword(keyword) => word(keyword, text),
        Slot::DType(dtype) => {
            let value = single.and_then(|token| match token {
                Token::Word(word) => word.parse().ok(),
                _ => None,
            });
            store(dtype, value, "an element type")
        }
        Slot::Tensor(tensor) => match text {
            AttrText::Tensor(value) => {
                *tensor = value.clone();
                Ok(())
            }
            _ => Err("a tensor".to_string()),
        },
        Slot::Graph(graph) => match text {
            AttrText::Graph(value) => {
                *graph = value.clone();
                Ok(())
            }
            _ => Err("a graph".to_string()),
        },
        Slot::Late(late) => {
            store(late, list.and_then(|l| all(l, int)).map(Late::Known), "a list of integers or a value")
        }
    }
}
