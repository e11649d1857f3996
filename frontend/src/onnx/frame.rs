//! A graph while it is imported: the values under construction, and what its names stand for.

use std::collections::HashMap;

use windlass_ir::{Builder, Limits, Op, Tensor, TensorType, Value};

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Binding {
    Value(Value),
    /// An operand that a call of a function leaves out.
    Absent,
    /// The result of something that cannot be imported.
    Poisoned,
    /// A result that its importer does not give. That matters only if something reads it.
    Missing,
}

/// The names of one graph or function body.
#[derive(Default)]
pub(super) struct Names {
    pub map: HashMap<String, Binding>,
    /// Whether names not found here are looked up in the graph outside: so in bodies of If, Loop and
    /// Scan, not in functions.
    pub open: bool,
}

/// A graph under construction.
pub(super) struct Frame {
    pub builder: Builder,
    pub names: Names,
    /// Values of the graph outside that this one reads, with the inputs that stand for them.
    pub captures: Vec<(Value, Value)>,
    /// What values computed from weights are.
    known: HashMap<Value, Tensor>,
}

impl Frame {
    /// An empty graph. With `open` names are looked up outside too.
    pub fn new(name: &str, limits: &Limits, open: bool) -> Frame {
        Frame {
            builder: Builder::new(name).with_limits(limits.clone()),
            names: Names { map: HashMap::new(), open },
            captures: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// What a value is, if that is known.
    pub fn known(&self, value: Value) -> Option<&Tensor> {
        self.builder.graph().as_constant(value).or_else(|| self.known.get(&value))
    }

    /// Notes what a value that is computed from weights is.
    pub fn learn(&mut self, value: Value, tensor: Tensor) {
        self.known.insert(value, tensor);
    }

    /// Whether a value may be trained: a constant of the model, of floats in some dimension, or computed from one.
    pub fn is_weight(&self, value: Value) -> bool {
        let graph = self.builder.graph();
        let is_weight = |ty: &TensorType| ty.dtype.is_float() && ty.rank() > 0;
        let constant = graph.def_node(value).filter(|data| matches!(*data.op, Op::Constant(_)));
        self.known.contains_key(&value)
            || constant.is_some_and(|data| data.name.is_some() && is_weight(graph.ty(value)))
    }

    /// What a name stands for that is a value of the graph outside: that value's constant, if it is known, or an input.
    pub fn capture(&mut self, name: &str, outer: Value, known: Option<Tensor>, ty: TensorType) -> Binding {
        let inner = match (known, self.captures.iter().find(|(captured, _)| *captured == outer)) {
            (Some(tensor), _) => self.builder.constant(tensor),
            (None, Some((_, inner))) => *inner,
            (None, None) => {
                let inner = self.builder.input(name, ty);
                self.captures.push((outer, inner));
                inner
            }
        };
        let binding = Binding::Value(inner);
        self.names.map.insert(name.to_string(), binding);
        binding
    }
}
