//! From what the text says to a graph: through the builder, or as it stands.

use std::collections::HashMap;

use super::parse::{GraphText, Mention, NodeText, fail, fail_with};
use super::print::print_type;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Def, Graph, Node, NodeData, Value};
use crate::limits::Limits;
use crate::types::TensorType;

/// How a graph is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    /// By the builder, which infers types; annotations must agree.
    Checked,
    /// As written, whether valid or not.
    AsWritten,
}

/// The graph that a text describes.
pub(super) fn build(text: GraphText<'_>, limits: &Limits, mode: Mode) -> Result<Graph, Error> {
    match mode {
        Mode::Checked => build_checked(text, limits),
        Mode::AsWritten => Ok(build_as_written(text)),
    }
}

/// The values that names stand for.
#[derive(Default)]
struct Names<'t>(HashMap<&'t str, Value>);

impl<'t> Names<'t> {
    fn define(&mut self, mention: &Mention<'t>, value: Value) -> Result<(), Error> {
        match self.0.insert(mention.name, value) {
            Some(_) => fail(&mention.span, format!("`%{}` is defined twice", mention.name)),
            None => Ok(()),
        }
    }

    fn lookup(&self, mention: &Mention<'t>) -> Result<Value, Error> {
        match self.0.get(mention.name) {
            Some(value) => Ok(*value),
            None => fail(&mention.span, format!("`%{}` is not defined before this", mention.name)),
        }
    }
}

fn build_checked(text: GraphText<'_>, limits: &Limits) -> Result<Graph, Error> {
    let mut builder = Builder::new(&text.name).with_limits(limits.clone());
    let mut names = Names::default();
    for input in text.inputs {
        let value = builder.input(&input.name, input.ty);
        names.define(&input.value, value)?;
    }
    for NodeText { outs, op, ins, name, types, span } in text.nodes {
        let ins: Vec<Value> = ins.iter().map(|m| names.lookup(m)).collect::<Result<_, _>>()?;
        let op_name = op.name();
        let results = builder.push(op, &ins, name).or_else(|error| fail_with(&span, error))?;
        if results.len() != outs.len() {
            return fail(&span, format!("{op_name} has {} results, found {}", results.len(), outs.len()));
        }
        let inferred: Vec<TensorType> = results.iter().map(|&v| builder.ty(v).clone()).collect();
        if let Some(types) = types.filter(|types| *types != inferred) {
            let list = |types: &[TensorType]| types.iter().map(print_type).collect::<Vec<_>>().join(", ");
            return fail(&span, format!("{op_name} gives {}, not {}", list(&inferred), list(&types)));
        }
        for (mention, &value) in outs.iter().zip(&results) {
            names.define(mention, value)?;
        }
    }
    for (name, mention) in &text.outputs {
        builder.output(name, names.lookup(mention)?);
    }
    builder.finish().or_else(|error| fail_with(&text.span, error))
}

/// Values in order of mention, with definitions once they are found.
#[derive(Default)]
struct Written<'t> {
    ids: HashMap<&'t str, usize>,
    values: Vec<Option<(Def, TensorType)>>,
}

impl<'t> Written<'t> {
    fn id(&mut self, mention: &Mention<'t>) -> usize {
        *self.ids.entry(mention.name).or_insert_with(|| {
            self.values.push(None);
            self.values.len() - 1
        })
    }

    /// Defines a value; of several definitions the first stays.
    fn define(&mut self, mention: &Mention<'t>, def: Def, ty: TensorType) -> Value {
        let id = self.id(mention);
        self.values[id].get_or_insert((def, ty));
        Value::at(id)
    }
}

fn build_as_written(text: GraphText<'_>) -> Graph {
    let mut written = Written::default();
    let mut inputs = Vec::new();
    for (index, input) in text.inputs.into_iter().enumerate() {
        let value = written.define(&input.value, Def::Input(index as u32), input.ty);
        inputs.push((input.name, value));
    }
    let unknown = || TensorType::new(DType::F32, []);
    let mut nodes = Vec::new();
    for (index, NodeText { outs, op, ins, name, types, .. }) in text.nodes.into_iter().enumerate() {
        let ins: Vec<usize> = ins.iter().map(|m| written.id(m)).collect();
        let types = types.unwrap_or_else(|| {
            let types: Option<Vec<&TensorType>> =
                ins.iter().map(|&id| written.values[id].as_ref().map(|(_, ty)| ty)).collect();
            types.and_then(|types| op.infer(&types).ok()).unwrap_or_default()
        });
        let mut types = types.into_iter();
        let node = Node::at(index);
        let outs = outs.iter().enumerate().map(|(index, mention)| {
            let def = Def::Output { node, index: index as u32 };
            written.define(mention, def, types.next().unwrap_or_else(unknown))
        });
        let outs = outs.collect();
        nodes.push(NodeData { op: op.into(), ins: ins.into_iter().map(Value::at).collect(), outs, name });
    }
    let outputs = text.outputs.into_iter().map(|(name, m)| (name, Value::at(written.id(&m)))).collect();
    let nowhere = Def::Output { node: Node::at(nodes.len()), index: 0 };
    let values = written.values.into_iter().map(|value| value.unwrap_or_else(|| (nowhere, unknown())));
    Graph::assemble(&text.name, values.collect(), nodes, inputs, outputs)
}
