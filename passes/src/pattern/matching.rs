//! Matching formulas against graphs, with backtracking over operand orders and alternatives.

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::Def;
use windlass_ir::{DType, Graph, Node, Op, Value, normalize_axis};

use super::{Formula, Term, TermId};
use crate::reason::Reason;

/// A graph with what matching asks about it.
pub struct Matcher<'g> {
    graph: &'g Graph,
    uses: SecondaryMap<Value, u32>,
}

/// A formula found in a graph.
#[derive(Clone, Debug)]
pub struct Match<'f> {
    formula: &'f Formula,
    values: Vec<Option<Value>>,
    numbers: Vec<Option<f64>>,
    axes: Option<Vec<usize>>,
    /// The nodes that the formula's ops stand for, the root first.
    pub nodes: Vec<Node>,
}

impl Match<'_> {
    /// The value that a name stands for.
    ///
    /// # Panics
    /// If the formula has no such name.
    pub fn value(&self, name: &str) -> Value {
        self.as_value(name).unwrap_or_else(|| panic!("the formula has no `{name}`"))
    }

    /// The value that a name stands for, if the formula that matched has it.
    pub fn as_value(&self, name: &str) -> Option<Value> {
        self.values[self.formula.names.iter().position(|n| n == name)?]
    }

    /// The number that a name stands for, if the formula that matched has it.
    pub fn as_number(&self, name: &str) -> Option<f64> {
        self.numbers[self.formula.numbers.iter().position(|n| n == name)?]
    }

    /// The axes that the formula's reductions reduce, ascending.
    pub fn axes(&self) -> &[usize] {
        self.axes.as_deref().unwrap_or(&[])
    }
}

/// The furthest that matching came before it failed.
struct Failure {
    matched: usize,
    term: TermId,
    value: Value,
}

impl Failure {
    /// Matching failed at a value, which may be further than before.
    fn note(&mut self, found: &Match<'_>, term: TermId, value: Value) {
        if found.nodes.len() > self.matched {
            *self = Failure { matched: found.nodes.len(), term, value };
        }
    }
}

impl<'g> Matcher<'g> {
    /// Prepares a graph.
    pub fn new(graph: &'g Graph) -> Matcher<'g> {
        Matcher { graph, uses: graph.use_counts() }
    }

    /// The graph.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// What defines a value, for messages.
    pub fn describe(&self, value: Value) -> String {
        match self.graph.def(value) {
            Def::Input(i) => format!("input `{}`", self.graph.inputs()[i as usize].0),
            Def::Output { node, .. } => self.graph.describe(node),
        }
    }

    /// Matches a formula with its root at a node.
    ///
    /// The error is `None` where the node is nothing like it, and says what is missing where at least
    /// half of the formula's ops were found.
    pub fn find<'f>(&self, formula: &'f Formula, root: Node) -> Result<Match<'f>, Option<Reason>> {
        let value = self.graph.node(root).outs[0];
        let start = Match {
            formula,
            values: vec![None; formula.names.len()],
            numbers: vec![None; formula.numbers.len()],
            axes: None,
            nodes: Vec::new(),
        };
        let mut failure = Failure { matched: 0, term: formula.root, value };
        let Some(found) = self.solve(vec![(formula.root, value)], start, &mut failure) else {
            let close = failure.matched * 2 >= formula.size() && failure.matched > 1;
            return Err(close.then(|| Reason::Form {
                expected: formula.describe(failure.term),
                found: self.describe(failure.value),
            }));
        };
        match self.other_readers(&found) {
            None => Ok(found),
            Some(reason) => Err(Some(reason)),
        }
    }

    /// An inner value of the match that others read too.
    fn other_readers(&self, found: &Match<'_>) -> Option<Reason> {
        let reads = |value: Value| {
            let ins = found.nodes.iter().flat_map(|&n| self.graph.node(n).ins.iter());
            ins.filter(|&&v| v == value).count() as u32
        };
        let inner = found.nodes.iter().skip(1).flat_map(|&n| self.graph.node(n).outs.iter().copied());
        inner.map(|v| (v, self.uses[v], reads(v))).find(|(_, readers, expected)| readers > expected).map(
            |(value, readers, expected)| Reason::OtherReaders {
                value: self.describe(value),
                readers,
                expected,
            },
        )
    }

    /// Satisfies every goal, or notes how far it came.
    fn solve<'f>(
        &self,
        mut goals: Vec<(TermId, Value)>,
        mut found: Match<'f>,
        failure: &mut Failure,
    ) -> Option<Match<'f>> {
        while let Some((term, value)) = goals.pop() {
            let held = match &found.formula.terms[term] {
                Term::Name(slot, definition) => match found.values[*slot] {
                    Some(bound) => bound == value,
                    None => {
                        found.values[*slot] = Some(value);
                        goals.extend(definition.map(|d| (d, value)));
                        true
                    }
                },
                Term::Number(number) => {
                    let dtype = self.graph.ty(value).dtype;
                    self.uniform(value).is_some_and(|x| (x - number).abs() <= tolerance(dtype) * number.abs())
                }
                Term::Uniform(slot) => match (self.uniform(value), found.numbers[*slot]) {
                    (Some(x), Some(bound)) => x.to_bits() == bound.to_bits(),
                    (Some(x), None) => {
                        found.numbers[*slot] = Some(x);
                        true
                    }
                    (None, _) => false,
                },
                Term::Either(options) => {
                    for &option in options {
                        if self.is_other(&found, option, value, failure) {
                            continue;
                        }
                        let mut goals = goals.clone();
                        goals.push((option, value));
                        if let Some(found) = self.solve(goals, found.clone(), failure) {
                            return Some(found);
                        }
                    }
                    return None;
                }
                Term::Apply(name, args) => match self.applied(name, args.len(), value, &mut found) {
                    None => false,
                    Some(data) => {
                        if data.ins.len() == 2 && is_commutative(name) {
                            for order in [[0, 1], [1, 0]] {
                                if self.is_other(&found, args[0], data.ins[order[0]], failure) {
                                    continue;
                                }
                                let mut goals = goals.clone();
                                goals.extend([(args[1], data.ins[order[1]]), (args[0], data.ins[order[0]])]);
                                if let Some(found) = self.solve(goals, found.clone(), failure) {
                                    return Some(found);
                                }
                            }
                            return None;
                        }
                        goals.extend(args.iter().copied().zip(data.ins.iter().copied()).rev());
                        true
                    }
                },
            };
            if !held {
                failure.note(&found, term, value);
                return None;
            }
        }
        Some(found)
    }

    /// Whether a value is plainly not a term: of another op. What is tried in vain is copied otherwise.
    fn is_other(&self, found: &Match<'_>, term: TermId, value: Value, failure: &mut Failure) -> bool {
        let Term::Apply(name, _) = &found.formula.terms[term] else { return false };
        let other = self.graph.def_node(value).is_none_or(|data| data.op.name() != name);
        if other {
            failure.note(found, term, value);
        }
        other
    }

    /// The node that defines `value`, if it applies this op to as many operands.
    fn applied(
        &self,
        name: &str,
        operands: usize,
        value: Value,
        found: &mut Match<'_>,
    ) -> Option<&'g windlass_ir::graph::NodeData> {
        let Def::Output { node, index: 0 } = self.graph.def(value) else { return None };
        let data = self.graph.node(node);
        if data.op.name() != name || data.ins.len() != operands {
            return None;
        }
        if let Op::Reduce(reduce) = &*data.op {
            let rank = self.graph.ty(data.ins[0]).rank();
            let mut axes: Vec<usize> = match reduce.axes.as_known()? {
                [] if !reduce.none_if_empty => (0..rank).collect(),
                axes => axes.iter().filter_map(|&a| normalize_axis(a, rank)).collect(),
            };
            axes.sort_unstable();
            if !reduce.keep || found.axes.as_ref().is_some_and(|bound| *bound != axes) {
                return None;
            }
            found.axes = Some(axes);
        }
        if !found.nodes.contains(&node) {
            found.nodes.push(node);
        }
        Some(data)
    }

    fn uniform(&self, value: Value) -> Option<f64> {
        self.graph.as_constant(value)?.as_uniform_f64()
    }
}

fn is_commutative(op: &str) -> bool {
    matches!(op, "add" | "mul" | "min" | "max" | "and" | "or" | "xor" | "eq" | "ne")
}

/// How far a constant written in decimal may be from the same constant in a model, relative.
///
/// Exporters compute such constants in the model's type or write few digits of them.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 1e-2,
        _ => 1e-6,
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ScalarFn;

    use super::*;
    use crate::testing::graph;

    /// sigmoid(x) * x, with sigmoid(x) read `readers` times.
    fn silu(readers: usize) -> Graph {
        graph(&[&[4]], |b, x| {
            let s = b.map(ScalarFn::Sigmoid, &[x[0]])?;
            let mut outs = smallvec![b.map(ScalarFn::Mul, &[s, x[0]])?];
            outs.extend(std::iter::repeat_n(s, readers - 1));
            Ok(outs)
        })
    }

    #[test]
    fn operands_match_in_either_order() {
        let g = silu(1);
        let formula = Formula::new("x * sigmoid(x)");
        let found = Matcher::new(&g).find(&formula, Node::at(1)).unwrap();
        assert_eq!(found.value("x"), g.inputs()[0].1);
        assert_eq!(found.nodes, [Node::at(1), Node::at(0)]);
    }

    #[test]
    fn failures_say_what_is_missing() {
        let g = silu(2);
        let matcher = Matcher::new(&g);
        let reason = matcher.find(&Formula::new("x * sigmoid(x)"), Node::at(1)).unwrap_err().unwrap();
        assert_eq!(reason.to_string(), "sigmoid node0 is also read by others (2 readers, 1 expected)");
        let reason = matcher.find(&Formula::new("x * sigmoid(1.5 * x)"), Node::at(1)).unwrap_err().unwrap();
        assert_eq!(reason.to_string(), "expected mul of 2 at input `in0`");
        assert_eq!(matcher.find(&Formula::new("x + 1"), Node::at(1)).unwrap_err(), None);
    }
}
