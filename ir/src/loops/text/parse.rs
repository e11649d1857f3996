//! The parser of kernels.

use std::collections::HashMap;
use std::ops::Range;

use cranelift_entity::{EntityRef, PrimaryMap};
use smallvec::SmallVec;

use super::lex::{Token, tokens};
use super::print::role;
use crate::dtype::{DType, Element};
use crate::error::Error;
use crate::limits::Limits;
use crate::loops::nest::const_bits;
use crate::loops::{
    Block, Buffer, BufferData, Guard, Index, Kernel, Let, LoopKind, Rhs, Role, Stmt, Val, Var,
};
use crate::scalar::ScalarFn;
use crate::with_element;

/// A kernel from its text. It is not verified.
///
/// # Errors
/// [`Error::Parse`], with the place in the text.
pub fn parse_kernel(text: &str) -> Result<Kernel, Error> {
    let tokens = tokens(text)?;
    let most_values = tokens.len();
    let mut parser = Parser {
        tokens,
        at: 0,
        buffers: PrimaryMap::new(),
        names: HashMap::new(),
        types: HashMap::new(),
        vars: Vec::new(),
        depth: 0,
        most_values,
    };
    parser.kernel()
}

struct Parser<'t> {
    tokens: Vec<(Token<'t>, Range<usize>)>,
    at: usize,
    buffers: PrimaryMap<Buffer, BufferData>,
    names: HashMap<String, Buffer>,
    types: HashMap<Val, DType>,
    /// Open loops.
    vars: Vec<Var>,
    depth: u64,
    /// No text numbers its values higher than it has tokens.
    most_values: usize,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Token<'t> {
        self.tokens[self.at].0
    }

    fn next(&mut self) -> Token<'t> {
        let token = self.peek();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    /// An error at the token just read.
    fn fail_last<T>(&self, message: String) -> Result<T, Error> {
        Err(Error::Parse { span: self.tokens[self.at.saturating_sub(1)].1.clone(), message })
    }

    /// An error at the token that comes.
    fn fail<T>(&self, message: &str) -> Result<T, Error> {
        Err(Error::Parse { span: self.tokens[self.at].1.clone(), message: message.to_string() })
    }

    fn punct(&mut self, c: char) -> Result<(), Error> {
        match self.eat(Token::Punct(c)) {
            true => Ok(()),
            false => self.fail(&format!("expected `{c}`")),
        }
    }

    fn keyword(&mut self, word: &str) -> Result<(), Error> {
        match self.eat(Token::Word(word)) {
            true => Ok(()),
            false => self.fail(&format!("expected `{word}`")),
        }
    }

    fn eat(&mut self, token: Token<'_>) -> bool {
        let found = self.peek() == token;
        if found {
            self.next();
        }
        found
    }

    fn word(&mut self, what: &str) -> Result<&'t str, Error> {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            _ => self.fail(&format!("expected {what}")),
        }
    }

    fn size(&mut self) -> Result<usize, Error> {
        match self.peek() {
            Token::Number(digits) => match digits.parse() {
                Ok(n) => {
                    self.next();
                    Ok(n)
                }
                Err(_) => self.fail("expected a size"),
            },
            _ => self.fail("expected a size"),
        }
    }

    fn dtype(&mut self) -> Result<DType, Error> {
        let word = self.word("an element type")?;
        word.parse().or_else(|()| self.fail_last(format!("`{word}` is no element type")))
    }

    fn kernel(&mut self) -> Result<Kernel, Error> {
        self.keyword("kernel")?;
        let name = self.word("the kernel's name")?.to_string();
        self.punct('(')?;
        while self.peek() != Token::Punct(')') {
            self.declare(true)?;
            if !self.eat(Token::Punct(',')) {
                break;
            }
        }
        self.punct(')')?;
        let vector_bits = self.eat(Token::Word("vectors")).then(|| self.size()).transpose()?;
        self.punct('{')?;
        while self.eat(Token::Word("local")) {
            self.declare(false)?;
        }
        let body = self.rest_of_block()?;
        if self.peek() != Token::End {
            return self.fail("expected the end of the text");
        }
        let count = self.types.keys().map(|v| v.index() + 1).max().unwrap_or(0);
        let vals = (0..count).map(|i| self.types.get(&Val::new(i)).copied().unwrap_or(DType::Bool));
        let vals = vals.collect();
        Ok(Kernel { name, buffers: std::mem::take(&mut self.buffers), vals, vector_bits, body: body.into() })
    }

    fn declare(&mut self, param: bool) -> Result<(), Error> {
        let name = self.word("a buffer's name")?.to_string();
        if self.names.contains_key(&name) {
            return self.fail_last(format!("two buffers are called `{name}`"));
        }
        self.punct(':')?;
        let dtype = self.dtype()?;
        self.punct('[')?;
        let len = self.size()?;
        self.punct(']')?;
        let word = self.word("what the buffer is")?;
        let roles = [Role::In, Role::Out, Role::InOut, Role::Register, Role::Stack];
        match roles.into_iter().find(|&r| role(r) == word && r.is_param() == param) {
            Some(role) => {
                let buffer = self.buffers.push(BufferData { name: name.clone(), dtype, len, role });
                self.names.insert(name, buffer);
                Ok(())
            }
            None => {
                let wanted = if param { "`in`, `out` or `inout`" } else { "`register` or `stack`" };
                self.fail_last(format!("expected {wanted}"))
            }
        }
    }

    /// Statements up to the closing brace.
    fn rest_of_block(&mut self) -> Result<Block, Error> {
        self.depth += 1;
        let limit = Limits::default().depth;
        Limits::check(|| "kernel text".to_string(), "blocks in each other", self.depth, limit)?;
        let mut block = Block::new();
        while !self.eat(Token::Punct('}')) {
            block.push(self.stmt()?);
        }
        self.depth -= 1;
        Ok(block)
    }

    fn stmt(&mut self) -> Result<Stmt, Error> {
        let kinds =
            [("parallel", LoopKind::Parallel), ("vector", LoopKind::Vector), ("unroll", LoopKind::Unroll)];
        let followed = self.tokens.get(self.at + 1).map(|(token, _)| *token);
        let word = self.word("a statement")?;
        if let Some((_, kind)) = kinds.into_iter().find(|(w, _)| *w == word)
            && followed == Some(Token::Word("for"))
        {
            self.next();
            return self.repeat(kind);
        }
        match (word, followed) {
            (_, Some(Token::Punct('['))) => {
                let buffer = self.buffer(word)?;
                self.punct('[')?;
                let index = self.index()?;
                self.punct(']')?;
                self.punct('=')?;
                Ok(Stmt::Store { buffer, index, val: self.val()? })
            }
            ("prefetch", Some(Token::Word(name))) => {
                self.next();
                let buffer = self.buffer(name)?;
                self.punct('[')?;
                let index = self.index()?;
                self.punct(']')?;
                Ok(Stmt::Prefetch { buffer, index })
            }
            ("for", _) => self.repeat(LoopKind::Serial),
            ("if", _) => {
                let guards = self.guards()?;
                self.punct('{')?;
                let then = self.rest_of_block()?;
                let otherwise = if self.eat(Token::Word("else")) {
                    self.punct('{')?;
                    self.rest_of_block()?
                } else {
                    Block::new()
                };
                Ok(Stmt::If { guards, then, otherwise })
            }
            (_, Some(Token::Punct('='))) => {
                let val = self.as_val(word)?;
                if self.types.contains_key(&val) {
                    return self.fail_last(format!("{val} is defined twice"));
                }
                self.punct('=')?;
                let (rhs, dtype) = self.rhs()?;
                self.types.insert(val, dtype);
                Ok(Stmt::Let(Let { val, rhs }))
            }
            _ => self.fail_last("expected a statement".to_string()),
        }
    }

    fn repeat(&mut self, kind: LoopKind) -> Result<Stmt, Error> {
        let name = self.word("a loop variable")?;
        let Some(id) = numbered(name, "i") else {
            return self.fail_last(format!("`{name}` is no loop variable: they are i0, i1, .."));
        };
        self.keyword("in")?;
        self.range_start()?;
        let extent = self.index()?;
        let most = if self.eat(Token::Word("below")) {
            self.size()?
        } else {
            match extent.as_constant().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => n,
                None => return self.fail("expected `below` and the most iterations there can be"),
            }
        };
        self.punct('{')?;
        let var = Var { id, extent: most };
        self.vars.push(var);
        let body = self.rest_of_block()?;
        self.vars.pop();
        Ok(Stmt::For { var, extent, kind, body })
    }

    fn range_start(&mut self) -> Result<(), Error> {
        if self.eat(Token::Number("0")) && self.eat(Token::Dots) {
            return Ok(());
        }
        self.fail("expected `0..`")
    }

    fn guards(&mut self) -> Result<Vec<Guard>, Error> {
        if self.eat(Token::Word("always")) {
            return Ok(Vec::new());
        }
        let mut guards = Vec::new();
        loop {
            let index = self.index()?;
            self.keyword("in")?;
            self.range_start()?;
            guards.push(Guard::new(index, self.size()?));
            if !self.eat(Token::Word("and")) {
                return Ok(guards);
            }
        }
    }

    fn buffer(&self, name: &str) -> Result<Buffer, Error> {
        match self.names.get(name) {
            Some(buffer) => Ok(*buffer),
            None => self.fail_last(format!("no buffer is called `{name}`")),
        }
    }

    fn as_val(&self, word: &str) -> Result<Val, Error> {
        match numbered(word, "v") {
            Some(id) if (id as usize) < self.most_values => Ok(Val::from_u32(id)),
            Some(_) => self.fail_last(format!("`{word}` is numbered higher than there are values")),
            None => self.fail_last(format!("`{word}` is no value: they are v0, v1, ..")),
        }
    }

    /// A value that is defined above.
    fn val(&mut self) -> Result<Val, Error> {
        let word = self.word("a value")?;
        let val = self.as_val(word)?;
        match self.types.contains_key(&val) {
            true => Ok(val),
            false => self.fail_last(format!("{val} is not defined above")),
        }
    }

    fn rhs(&mut self) -> Result<(Rhs, DType), Error> {
        let word = self.word("what the value is")?;
        Ok(match word {
            "load" => {
                let name = self.word("a buffer's name")?;
                let buffer = self.buffer(name)?;
                self.punct('[')?;
                let index = self.index()?;
                self.punct(']')?;
                let guarded = self.peek() == Token::Word("if");
                let guards = if guarded {
                    self.next();
                    self.guards()?
                } else {
                    Vec::new()
                };
                (Rhs::Load { buffer, index, guards }, self.buffers[buffer].dtype)
            }
            "const" => {
                let dtype = self.dtype()?;
                (Rhs::Const(self.literal(dtype)?), dtype)
            }
            "index" => (Rhs::Index(self.index()?), DType::I64),
            "inside" => (Rhs::Inside(self.guards()?), DType::Bool),
            _ => {
                let Some(mut f) = ScalarFn::from_name(word, DType::F32) else {
                    return self.fail_last(format!("`{word}` is no scalar function"));
                };
                if let ScalarFn::Cast(to) | ScalarFn::Bitcast(to) = &mut f {
                    *to = self.dtype()?;
                }
                let mut args: SmallVec<[Val; 3]> = SmallVec::new();
                for _ in 0..f.arity() {
                    args.push(self.val()?);
                }
                let types: SmallVec<[DType; 3]> = args.iter().map(|a| self.types[a]).collect();
                match f.result_type(&types) {
                    Ok(dtype) => (Rhs::Apply(f, args), dtype),
                    Err(message) => return self.fail_last(message),
                }
            }
        })
    }

    fn literal(&mut self, dtype: DType) -> Result<u64, Error> {
        let negative = self.eat(Token::Punct('-'));
        let width = 8 * dtype.size() as u32;
        let bits = match self.next() {
            Token::Hex(digits) if !negative => {
                u64::from_str_radix(digits, 16).ok().filter(|bits| bits.checked_shr(width).unwrap_or(0) == 0)
            }
            Token::Word("true") if dtype == DType::Bool => Some(1),
            Token::Word("false") if dtype == DType::Bool => Some(0),
            Token::Number(digits) if dtype.is_float() => digits.parse::<f64>().ok().map(|x| {
                let x = if negative { -x } else { x };
                const_bits(dtype, x)
            }),
            Token::Number(digits) if dtype.is_int() => digits.parse::<i128>().ok().and_then(|n| {
                let n = if negative { -n } else { n };
                let (low, high) = dtype.int_range();
                let bits = |n: i128| with_element!(dtype, T => {
                    let mut bytes = [0u8; 8];
                    bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&<T as Element>::from_i128(n)));
                    u64::from_le_bytes(bytes)
                });
                (low..=high).contains(&n).then(|| bits(n))
            }),
            _ => None,
        };
        match bits {
            Some(bits) => Ok(bits),
            None => self.fail_last(format!("expected a constant of type {dtype}")),
        }
    }

    fn integer(&mut self) -> Result<i64, Error> {
        match self.peek() {
            Token::Number(digits) => match digits.parse() {
                Ok(n) => {
                    self.next();
                    Ok(n)
                }
                Err(_) => self.fail("expected a 64-bit integer"),
            },
            _ => self.fail("expected an integer"),
        }
    }

    fn index(&mut self) -> Result<Index, Error> {
        let mut sum = Index::constant(0);
        let mut sign = if self.eat(Token::Punct('-')) { -1 } else { 1 };
        loop {
            sum = sum.add(&self.term()?.mul(sign));
            sign = match self.peek() {
                Token::Punct('+') => 1,
                Token::Punct('-') => -1,
                _ => return Ok(sum),
            };
            self.next();
        }
    }

    fn term(&mut self) -> Result<Index, Error> {
        if let Token::Number(_) = self.peek() {
            let c = self.integer()?;
            return match self.eat(Token::Punct('*')) {
                true => Ok(self.atom()?.mul(c)),
                false => Ok(Index::constant(c)),
            };
        }
        self.atom()
    }

    fn atom(&mut self) -> Result<Index, Error> {
        if self.eat(Token::Punct('(')) {
            self.depth += 1;
            let limit = Limits::default().depth;
            Limits::check(|| "kernel text".to_string(), "divisions in each other", self.depth, limit)?;
            let inner = self.index()?;
            self.depth -= 1;
            self.punct(')')?;
            let by = self.next();
            let divisor = match by {
                Token::Punct('/' | '%') => self.integer()?,
                _ => return self.fail_last("expected `/` or `%`".to_string()),
            };
            if divisor < 1 {
                return self.fail_last("a divisor is positive".to_string());
            }
            return Ok(if by == Token::Punct('/') { inner.div(divisor) } else { inner.rem(divisor) });
        }
        let word = self.word("a variable, a value or `(`")?;
        if let Some(id) = numbered(word, "i") {
            return match self.vars.iter().rev().find(|v| v.id == id) {
                Some(&var) => Ok(Index::var(var)),
                None => self.fail_last(format!("`{word}` is no open loop's variable")),
            };
        }
        let val = self.as_val(word)?;
        if self.types.get(&val) != Some(&DType::I64) {
            return self.fail_last(format!("{val} is no i64 value defined above"));
        }
        self.punct('<')?;
        Ok(Index::value(val, self.size()?))
    }
}

/// The number after a prefix, as `i12` has.
fn numbered(word: &str, prefix: &str) -> Option<u32> {
    let digits = word.strip_prefix(prefix)?;
    let plain = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()));
    digits.parse().ok().filter(|_| plain)
}
