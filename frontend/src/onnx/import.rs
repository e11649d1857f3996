//! From protobuf messages to a graph: names, scopes, functions and bodies.
//!
//! ONNX lists nodes in topological order and defines each name once, so one walk suffices: a name
//! read before it is defined (so every cycle) is an error. What cannot be imported is noted and its
//! results are poisoned; the walk goes on, so that one error lists everything.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use windlass_ir::{Builder, Graph, Limits, Tensor, TensorType, Value, ops};

use super::declared::{Sizes, check_declared};
use super::external::Source;
use super::four_bits::FourBits;
use super::frame::{Binding, Frame};
use super::node::NodeCx;
use super::problem::{Problem, invalid, unsupported};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, describe,
};
use super::rewire::{with_inputs, without_dead_nodes};
use super::{registry, tensor};
use crate::error::{Error, Unsupported};

/// The body of a control-flow node: closed, what it reads from outside being its last inputs.
pub(crate) struct Body {
    pub graph: Graph,
    /// The values of the graph outside for those inputs.
    pub captures: Vec<Value>,
}

/// The operator sets a model or function is written in, by domain.
pub(super) type OperatorSets = BTreeMap<String, u32>;

/// Imports one model.
pub(crate) struct Importer<'m> {
    pub(super) source: &'m Source<'m>,
    functions: HashMap<(&'m str, &'m str, &'m str), &'m FunctionProto>,
    pub(super) operator_sets: OperatorSets,
    pub(super) frames: Vec<Frame>,
    /// The functions being inlined, outermost first.
    pub(super) calls: Vec<&'m FunctionProto>,
    /// The attributes of the innermost call, to which nodes of its body may refer.
    pub(super) arguments: Vec<Cow<'m, AttributeProto>>,
    /// What the names of nodes start with, inside functions.
    pub(super) prefix: String,
    unsupported: Vec<Unsupported>,
    /// The initializers of elements of 4 bits, which are values of wider ones.
    four_bits: HashSet<&'m str>,
    nodes: u64,
}

/// `ai.onnx` is the long spelling of the default domain.
pub(crate) fn normalize_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

pub(super) fn operator_sets(imports: &[OperatorSetIdProto], subject: &str) -> Result<OperatorSets, Error> {
    let mut sets = OperatorSets::new();
    for import in imports {
        let Some(version) = u32::try_from(import.version()).ok().filter(|&v| v > 0) else {
            return Err(Error::invalid(subject, format!("operator set version {}", import.version())));
        };
        sets.insert(normalize_domain(import.domain()).to_string(), version);
    }
    Ok(sets)
}

impl<'m> Importer<'m> {
    pub fn new(
        source: &'m Source<'m>,
        functions: &'m [FunctionProto],
        imports: &[OperatorSetIdProto],
    ) -> Result<Importer<'m>, Error> {
        let mut table = HashMap::new();
        for function in functions {
            let key = (normalize_domain(function.domain()), function.name(), function.overload());
            if table.insert(key, function).is_some() {
                return Err(Error::invalid(format!("function `{}`", function.name()), "is defined twice"));
            }
        }
        Ok(Importer {
            source,
            functions: table,
            operator_sets: operator_sets(imports, "model")?,
            frames: Vec::new(),
            calls: Vec::new(),
            arguments: Vec::new(),
            prefix: String::new(),
            unsupported: Vec::new(),
            four_bits: HashSet::new(),
            nodes: 0,
        })
    }

    pub fn source(&self) -> &'m Source<'m> {
        self.source
    }

    pub fn builder_ref(&self) -> &Builder {
        &self.frames.last().expect("a graph is being imported").builder
    }

    pub fn builder(&mut self) -> &mut Builder {
        &mut self.frames.last_mut().expect("a graph is being imported").builder
    }

    /// What a value is, if that is known.
    pub fn known(&self, value: Value) -> Option<&Tensor> {
        self.frames.last()?.known(value)
    }

    /// Notes what a value that is computed from weights is.
    pub fn learn(&mut self, value: Value, tensor: Tensor) {
        self.frames.last_mut().expect("a graph is being imported").learn(value, tensor);
    }

    /// Whether a value may be trained.
    pub fn is_weight(&self, value: Value) -> bool {
        self.frames.last().is_some_and(|frame| frame.is_weight(value))
    }

    /// Imports the main graph, with the inputs that are initializers too.
    pub fn import_main(
        mut self,
        graph: &'m GraphProto,
        sizes: &Sizes,
    ) -> Result<(Graph, Vec<(String, Tensor)>), Error> {
        let sizes = sizes.completed(&graph.input, self.source.limits())?;
        self.frames.push(Frame::new(graph.name(), self.source.limits(), false));
        self.bind_initializers(graph)?;
        let mut defaults = Vec::new();
        let mut seen = HashSet::new();
        for input in &graph.input {
            let known = self.frames[0].names.map.get(input.name()).copied();
            if let Some(binding) = known.filter(|_| seen.insert(input.name())) {
                if let Binding::Value(value) = binding
                    && let Some(tensor) = self.builder().graph().as_constant(value)
                {
                    let tensor = tensor.clone();
                    defaults.push((input.name().to_string(), tensor));
                }
                continue;
            }
            seen.insert(input.name());
            let binding = match sizes.input_type(input, self.source.limits()) {
                Ok(ty) => Binding::Value(self.builder().input(input.name(), ty)),
                Err(problem) => self.note(format!("input `{}`", input.name()), problem)?,
            };
            self.bind(input.name(), binding, || format!("input `{}`", input.name()))?;
        }
        self.import_nodes(&graph.node)?;
        for output in &graph.output {
            let subject = || format!("output `{}`", output.name());
            let Some(binding) = self.lookup(output.name()) else {
                return Err(Error::invalid(subject(), "is not defined"));
            };
            let value = match binding {
                Binding::Value(value) => value,
                Binding::Absent | Binding::Poisoned => continue,
                Binding::Missing => {
                    self.note(subject(), missing(output.name()))?;
                    continue;
                }
            };
            if let Err(problem) = check_declared(output.r#type.as_ref(), self.builder().ty(value)) {
                self.note(subject(), problem)?;
            }
            self.builder().output(output.name(), value);
        }
        if !self.unsupported.is_empty() {
            return Err(Error::Unsupported(self.unsupported));
        }
        let frame = self.frames.pop().expect("the main graph");
        Ok((without_dead_nodes(&frame.builder.finish()?)?, defaults))
    }

    /// Makes constants of a graph's initializers, dense and sparse.
    fn bind_initializers(&mut self, graph: &'m GraphProto) -> Result<(), Error> {
        for tensor in &graph.initializer {
            let decoded = self.initializer(tensor);
            self.bind_initializer(tensor.name(), decoded)?;
        }
        for tensor in &graph.sparse_initializer {
            let name = tensor.values.as_ref().map_or("", |values| values.name());
            let decoded = tensor::decode_sparse(tensor, self.source).and_then(|t| self.constant(t, name));
            self.bind_initializer(name, decoded)?;
        }
        Ok(())
    }

    fn initializer(&mut self, tensor: &'m TensorProto) -> Result<Value, Problem> {
        match FourBits::decode(tensor, self.source)? {
            Some(small) => {
                self.four_bits.insert(tensor.name());
                Ok(small.build(self.builder())?)
            }
            None => {
                let decoded = tensor::decode(tensor, self.source)?;
                self.constant(decoded, tensor.name())
            }
        }
    }

    fn constant(&mut self, value: Tensor, name: &str) -> Result<Value, Problem> {
        Ok(self.builder().push(ops::Constant { value }, &[], Some(name.into()))?[0])
    }

    fn bind_initializer(&mut self, name: &str, decoded: Result<Value, Problem>) -> Result<(), Error> {
        let subject = || format!("initializer `{name}`");
        let binding = match decoded {
            Ok(value) => Binding::Value(value),
            Err(problem) => self.note(subject(), problem)?,
        };
        self.bind(name, binding, subject)
    }

    pub(super) fn import_nodes(&mut self, nodes: &'m [NodeProto]) -> Result<(), Error> {
        nodes.iter().try_for_each(|node| self.import_node(node))
    }

    fn import_node(&mut self, node: &'m NodeProto) -> Result<(), Error> {
        let subject = || describe(node);
        self.nodes += 1;
        Limits::check(subject, "nodes", self.nodes, self.source.limits().nodes)?;
        let mut ins: Vec<Option<Value>> = Vec::with_capacity(node.input.len());
        let mut poisoned = false;
        for name in &node.input {
            ins.push(match name.as_str() {
                "" => None,
                name => match self.lookup(name) {
                    Some(Binding::Value(value)) => Some(value),
                    Some(Binding::Absent) => None,
                    Some(Binding::Poisoned) => {
                        poisoned = true;
                        None
                    }
                    Some(Binding::Missing) => {
                        self.note(subject(), missing(name))?;
                        poisoned = true;
                        None
                    }
                    None => {
                        let message = format!("reads `{name}`, which nothing before it defines");
                        return Err(Error::invalid(subject(), message));
                    }
                },
            });
        }
        let outs = match self.apply(node, ins, poisoned) {
            Ok(outs) => outs,
            Err(problem) => {
                self.note(subject(), problem)?;
                None
            }
        };
        for (i, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let binding = match outs.as_ref().map(|outs| outs.get(i).copied()) {
                None => Binding::Poisoned,
                Some(None) => Binding::Missing,
                Some(Some(Binding::Absent)) => {
                    return Err(Error::invalid(subject(), format!("its result `{name}` is not defined")));
                }
                Some(Some(binding)) => binding,
            };
            self.bind(name, binding, subject)?;
        }
        Ok(())
    }

    /// The results of a node; `None` if they are poisoned by an operand.
    fn apply(
        &mut self,
        node: &'m NodeProto,
        ins: Vec<Option<Value>>,
        poisoned: bool,
    ) -> Result<Option<Vec<Binding>>, Problem> {
        let attributes = self.attributes_of(node)?;
        // Other operators would see integers of 8 bits.
        if self.calls.is_empty()
            && let Some(small) = node.input.iter().find(|name| self.four_bits.contains(name.as_str()))
            && node.op_type() != "DequantizeLinear"
        {
            unsupported!("`{small}`, which has elements of 4 bits");
        }
        let domain = normalize_domain(node.domain());
        if let Some(&function) = self.functions.get(&(domain, node.op_type(), node.overload())) {
            return match poisoned {
                true => Ok(None),
                false => self.call(node, function, ins, attributes).map(Some),
            };
        }
        let Some(&version) = self.operator_sets.get(domain) else {
            invalid!("no version of operator set `{domain}` is imported");
        };
        let import = registry::find(domain, node.op_type(), version)?;
        if poisoned {
            return Ok(None);
        }
        let name = format!("{}{}", self.prefix, node_name(node));
        let name: Option<Arc<str>> = (!name.is_empty()).then(|| name.into());
        self.builder().set_name(name.clone());
        let mut cx = NodeCx::new(self, node, name, version, ins, attributes);
        let outs = import.apply(&mut cx)?;
        cx.finish()?;
        Ok(Some(outs.into_iter().map(Binding::Value).collect()))
    }

    /// Imports the body of a control-flow node, for parameters of these types.
    pub fn import_body(&mut self, graph: &'m GraphProto, types: &[TensorType]) -> Result<Body, Problem> {
        let depth = self.calls.len() + self.frames.len() + 1;
        let limits = self.source.limits();
        Limits::check(|| format!("graph `{}`", graph.name()), "levels", depth as u64, limits.depth)?;
        if graph.input.len() != types.len() {
            invalid!("graph `{}` takes {} values, gets {}", graph.name(), graph.input.len(), types.len());
        }
        self.frames.push(Frame::new(graph.name(), limits, true));
        let noted = self.unsupported.len();
        let result = self.fill_body(graph, types);
        let frame = self.frames.pop().expect("pushed above");
        let parameters = result?;
        if self.unsupported.len() > noted {
            unsupported!("graph `{}` cannot be imported", graph.name());
        }
        let inputs: Vec<Value> =
            parameters.into_iter().chain(frame.captures.iter().map(|(_, inner)| *inner)).collect();
        let captures = frame.captures.iter().map(|(outer, _)| *outer).collect();
        Ok(Body { graph: with_inputs(&frame.builder.finish()?, &inputs)?, captures })
    }

    fn fill_body(&mut self, graph: &'m GraphProto, types: &[TensorType]) -> Result<Vec<Value>, Problem> {
        self.bind_initializers(graph)?;
        let mut parameters = Vec::with_capacity(types.len());
        for (input, ty) in graph.input.iter().zip(types) {
            let value = self.builder().input(input.name(), ty.clone());
            parameters.push(value);
            self.bind(input.name(), Binding::Value(value), || format!("input `{}`", input.name()))?;
        }
        self.import_nodes(&graph.node)?;
        let mut outputs = HashSet::new();
        for (i, output) in graph.output.iter().enumerate() {
            match self.lookup(output.name()) {
                None | Some(Binding::Absent) => {
                    invalid!("graph `{}` does not define its output `{}`", graph.name(), output.name())
                }
                // The same value may be given back more than once; the names of outputs are distinct.
                Some(Binding::Value(value)) => match outputs.insert(output.name()) {
                    true => self.builder().output(output.name(), value),
                    false => self.builder().output(&format!("{}.{i}", output.name()), value),
                },
                Some(Binding::Missing) => return Err(missing(output.name())),
                Some(Binding::Poisoned) => unsupported!("graph `{}` cannot be imported", graph.name()),
            }
        }
        Ok(parameters)
    }

    /// What a name stands for in the innermost graph.
    pub(super) fn lookup(&mut self, name: &str) -> Option<Binding> {
        self.lookup_at(self.frames.len() - 1, name)
    }

    fn lookup_at(&mut self, level: usize, name: &str) -> Option<Binding> {
        let names = &self.frames[level].names;
        if let Some(binding) = names.map.get(name) {
            return Some(*binding);
        }
        if !names.open || level == 0 {
            return None;
        }
        let outer = match self.lookup_at(level - 1, name)? {
            Binding::Value(value) => value,
            other => return Some(other),
        };
        let outside = &self.frames[level - 1];
        let (known, ty) = (outside.known(outer).cloned(), outside.builder.ty(outer).clone());
        Some(self.frames[level].capture(name, outer, known, ty))
    }

    fn bind(&mut self, name: &str, binding: Binding, subject: impl Fn() -> String) -> Result<(), Error> {
        let names = &mut self.frames.last_mut().expect("a graph is being imported").names;
        match names.map.insert(name.to_string(), binding) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(subject(), format!("defines `{name}`, which is defined already"))),
        }
    }

    /// Notes what is unsupported; anything else ends the import.
    fn note(&mut self, subject: String, problem: Problem) -> Result<Binding, Error> {
        match problem.within(subject) {
            Error::Unsupported(list) => self.unsupported.extend(list),
            error => return Err(error),
        }
        Ok(Binding::Poisoned)
    }
}

/// Something reads a result that its importer does not give.
fn missing(name: &str) -> Problem {
    Problem::Unsupported(format!("reads `{name}`, a result that is not supported"))
}

/// A node's name, or else that of its first result.
pub(super) fn node_name(node: &NodeProto) -> &str {
    match node.name() {
        "" => node.output.iter().map(String::as_str).find(|name| !name.is_empty()).unwrap_or(""),
        name => name,
    }
}
