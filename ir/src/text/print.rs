//! Writing graphs as text.

use std::collections::BTreeSet;
use std::fmt::Write;

use cranelift_entity::SecondaryMap;

use super::LISTED_ELEMENTS;
use super::element::{print_bytes, print_element, print_f64};
use super::lex::{is_word, quote};
use crate::attrs::{Late, Slot};
use crate::graph::{Graph, NodeData, Value, late_operands};
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// What may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrintOptions {
    /// Tensors of more elements are written as `...`, which does not parse.
    pub elide_above: Option<usize>,
}

/// A graph as text that parses back to it.
pub fn print_graph(graph: &Graph) -> String {
    print_graph_with(graph, PrintOptions::default())
}

/// A graph as text.
pub fn print_graph_with(graph: &Graph, options: PrintOptions) -> String {
    let mut text = String::new();
    Printer::new(graph, options, 0).graph(&mut text);
    text.push('\n');
    text
}

struct Printer<'g> {
    graph: &'g Graph,
    options: PrintOptions,
    /// What each value is called.
    names: SecondaryMap<Value, String>,
    indent: usize,
}

impl<'g> Printer<'g> {
    /// Values are numbered in the order of their definitions, inputs first: their ids, unless the graph
    /// was built with inputs after nodes.
    fn new(graph: &'g Graph, options: PrintOptions, indent: usize) -> Printer<'g> {
        let mut names = SecondaryMap::with_capacity(graph.value_count());
        let inputs = graph.inputs().iter().map(|(_, v)| *v);
        let outs = graph.nodes().flat_map(|(_, data)| data.outs.iter().copied());
        for (number, value) in inputs.chain(outs).enumerate() {
            names[value] = number.to_string();
        }
        let mut taken = BTreeSet::new();
        for (name, value) in graph.inputs() {
            if is_word(name) && taken.insert(name) {
                names[*value] = name.clone();
            }
        }
        Printer { graph, options, names, indent }
    }

    fn graph(&self, text: &mut String) {
        let pad = "  ".repeat(self.indent);
        let _ = write!(text, "graph @{}(", name(&self.graph.name));
        for (i, (input, value)) in self.graph.inputs().iter().enumerate() {
            text.push_str(if i > 0 { ", " } else { "" });
            let _ = write!(text, "%{}", self.names[*value]);
            if self.names[*value] != *input {
                let _ = write!(text, " as {}", quote(input));
            }
            let _ = write!(text, ": {}", print_type(self.graph.ty(*value)));
        }
        text.push_str(") {\n");
        for (_, data) in self.graph.nodes() {
            let _ = write!(text, "{pad}  ");
            self.node(text, data);
            text.push('\n');
        }
        let outputs = self.graph.outputs().iter();
        let outputs: Vec<String> =
            outputs.map(|(name, value)| format!(" %{} as {}", self.names[*value], quote(name))).collect();
        let _ = write!(text, "{pad}  return{}\n{pad}}}", outputs.join(","));
    }

    fn values(&self, values: impl IntoIterator<Item = Value>) -> String {
        values.into_iter().map(|v| format!("%{}", self.names[v])).collect::<Vec<_>>().join(", ")
    }

    fn node(&self, text: &mut String, data: &NodeData) {
        let _ = write!(text, "{} = {}", self.values(data.outs.iter().copied()), data.op.name());
        // Late operands in the order of their attributes, after all others, are written there instead.
        let late: Vec<u32> = late_operands(&data.op).into_iter().map(|(_, i)| i).collect();
        let plain = data.ins.len().saturating_sub(late.len());
        let in_order = late.iter().copied().eq(plain as u32..data.ins.len() as u32);
        let listed = if in_order { plain } else { data.ins.len() };
        let operands = self.values(data.ins[..listed].iter().copied());
        if !operands.is_empty() {
            let _ = write!(text, " {operands}");
        }
        let attrs = self.attrs(&data.op, data, in_order);
        let default = Op::from_name(data.op.name());
        let defaults = default.map_or_else(Vec::new, |op| self.attrs(&op, data, in_order));
        // A constant always shows its value.
        let is_default = |attr: &String| defaults.contains(attr) && !matches!(*data.op, Op::Constant(_));
        let changed: Vec<String> = attrs.into_iter().filter(|attr| !is_default(attr)).collect();
        if !changed.is_empty() {
            let _ = write!(text, " {{{}}}", changed.join(", "));
        }
        if let Some(name) = &data.name {
            let _ = write!(text, " {}", quote(name));
        }
        let types: Vec<String> = data.outs.iter().map(|&v| print_type(self.graph.ty(v))).collect();
        let _ = write!(text, " : {}", types.join(", "));
    }

    /// Every attribute as `name = value`.
    fn attrs(&self, op: &Op, data: &NodeData, in_order: bool) -> Vec<String> {
        let mut written = Vec::new();
        let mut visit = |name: &'static str, slot: Slot<'_>| {
            let value = match slot {
                Slot::Int(i) => i.to_string(),
                Slot::Ints(ints) => format!("{ints:?}"),
                Slot::Float(x) => print_f64(*x),
                Slot::Floats(xs) => {
                    format!("[{}]", xs.iter().map(|&x| print_f64(x)).collect::<Vec<_>>().join(", "))
                }
                Slot::Text(t) => quote(t),
                Slot::Bool(flag) => flag.to_string(),
                Slot::Keyword(keyword) => keyword.word().to_string(),
                Slot::DType(dtype) => dtype.to_string(),
                Slot::Tensor(tensor) => print_tensor(tensor, self.options),
                Slot::Graph(graph) => {
                    let mut nested = String::new();
                    Printer::new(graph, self.options, self.indent + 1).graph(&mut nested);
                    nested
                }
                Slot::Late(Late::Known(ints)) => format!("{ints:?}"),
                Slot::Late(Late::Operand(i)) => match data.ins.get(*i as usize) {
                    Some(&value) if in_order => self.values([value]),
                    _ => format!("#{i}"),
                },
            };
            written.push(format!("{name} = {value}"));
            Ok(())
        };
        op.clone().attrs(&mut visit).expect("reading attributes cannot fail");
        written
    }
}

/// A name, quoted unless it is a word.
fn name(name: &str) -> String {
    if is_word(name) { name.to_string() } else { quote(name) }
}

/// A type, with names of dimensions quoted where they are not words.
pub(super) fn print_type(ty: &TensorType) -> String {
    let dims = ty.dims.iter().map(|dim| match dim {
        Dim::Fixed(n) => n.to_string(),
        Dim::Named(dim) => name(dim),
        Dim::Unknown => "?".to_string(),
    });
    format!("{}[{}]", ty.dtype, dims.collect::<Vec<_>>().join(", "))
}

fn print_tensor(tensor: &Tensor, options: PrintOptions) -> String {
    let ty = print_type(&tensor.ty());
    if options.elide_above.is_some_and(|most| tensor.len() > most) {
        return format!("{ty} ...");
    }
    match tensor.len() <= LISTED_ELEMENTS {
        true => {
            let elements: Vec<String> = (0..tensor.len()).map(|i| print_element(tensor, i)).collect();
            format!("{ty} [{}]", elements.join(", "))
        }
        false => format!("{ty} {}", print_bytes(tensor)),
    }
}
