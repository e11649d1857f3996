//! Parsing formulas.

use super::{Formula, Term, TermId};

/// Parses a formula, or says what was expected.
pub(super) fn parse(text: &str) -> Result<Formula, String> {
    let formula = Formula { terms: Vec::new(), root: 0, names: Vec::new(), numbers: Vec::new() };
    let mut parser = Parser { rest: text.trim_start(), formula, definitions: Vec::new() };
    loop {
        let before = parser.rest;
        if let Some(name) = parser.name()
            && parser.take("=")
        {
            let definition = parser.choice()?;
            let slot = parser.slot(name);
            parser.definitions.push((slot, definition));
            parser.expect(";")?;
            continue;
        }
        parser.rest = before;
        parser.formula.root = parser.choice()?;
        break;
    }
    match parser.rest {
        "" => Ok(parser.formula),
        rest => Err(format!("`{rest}` is left over")),
    }
}

struct Parser<'t> {
    rest: &'t str,
    formula: Formula,
    definitions: Vec<(usize, TermId)>,
}

impl<'t> Parser<'t> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        match self.take(token) {
            true => Ok(()),
            false => Err(format!("expected `{token}` at `{}`", self.rest)),
        }
    }

    fn while_chars(&mut self, accept: impl Fn(char) -> bool) -> Option<&'t str> {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        (!token.is_empty()).then_some(token)
    }

    fn name(&mut self) -> Option<&'t str> {
        match self.rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
            true => self.while_chars(|c| c.is_ascii_alphanumeric() || c == '_'),
            false => None,
        }
    }

    fn slot(&mut self, name: &str) -> usize {
        slot(&mut self.formula.names, name)
    }

    fn term(&mut self, term: Term) -> TermId {
        self.formula.terms.push(term);
        self.formula.terms.len() - 1
    }

    fn choice(&mut self) -> Result<TermId, String> {
        let mut options = vec![self.sum()?];
        while self.take("|") {
            options.push(self.sum()?);
        }
        Ok(match options.len() {
            1 => options[0],
            _ => self.term(Term::Either(options)),
        })
    }

    fn sum(&mut self) -> Result<TermId, String> {
        self.chain(&[("+", "add"), ("-", "sub")], Self::product)
    }

    fn product(&mut self) -> Result<TermId, String> {
        self.chain(&[("*", "mul"), ("/", "div")], Self::factor)
    }

    fn chain(
        &mut self,
        operators: &[(&str, &str)],
        operand: fn(&mut Self) -> Result<TermId, String>,
    ) -> Result<TermId, String> {
        let mut left = operand(self)?;
        while let Some((_, op)) = operators.iter().find(|(token, _)| self.take(token)) {
            let right = operand(self)?;
            left = self.term(Term::Apply(op.to_string(), vec![left, right]));
        }
        Ok(left)
    }

    fn factor(&mut self) -> Result<TermId, String> {
        if self.take("(") {
            let inner = self.choice()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("#") {
            let name = self.name().ok_or("a number needs a name")?;
            let slot = slot(&mut self.formula.numbers, name);
            return Ok(self.term(Term::Uniform(slot)));
        }
        if let Some(name) = self.name() {
            return self.named(name);
        }
        let negative = self.take("-");
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            let digits = self.while_chars(|c| c.is_ascii_digit() || c == '.').unwrap_or("");
            let number: f64 = digits.parse().map_err(|_| format!("`{digits}` is no number"))?;
            return Ok(self.term(Term::Number(if negative { -number } else { number })));
        }
        if negative {
            let inner = self.factor()?;
            return Ok(self.term(Term::Apply("neg".to_string(), vec![inner])));
        }
        Err(format!("expected a term at `{}`", self.rest))
    }

    fn named(&mut self, name: &str) -> Result<TermId, String> {
        if !self.take("(") {
            let slot = self.slot(name);
            let definition = self.definitions.iter().find(|(s, _)| *s == slot).map(|(_, d)| *d);
            return Ok(self.term(Term::Name(slot, definition)));
        }
        let mut args = vec![self.choice()?];
        while self.take(",") {
            args.push(self.choice()?);
        }
        self.expect(")")?;
        if windlass_ir::Op::from_name(name).is_none() {
            return Err(format!("`{name}` is no op"));
        }
        Ok(self.term(Term::Apply(name.to_string(), args)))
    }
}

fn slot(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|n| n == name).unwrap_or_else(|| {
        names.push(name.to_string());
        names.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_and_definitions() {
        let f = parse("d = x - reduce_mean(x); d * d + -2 * #c | exp(d)").unwrap();
        assert_eq!(f.names, ["x", "d"]);
        assert_eq!(f.numbers, ["c"]);
        assert_eq!(f.roots(), ["exp", "add"]);
        assert_eq!(f.size(), 5);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse("x +").unwrap_err(), "expected a term at ``");
        assert_eq!(parse("nonsense(x)").unwrap_err(), "`nonsense` is no op");
        assert_eq!(parse("x x").unwrap_err(), "`x` is left over");
        assert_eq!(parse("(x").unwrap_err(), "expected `)` at ``");
    }
}
