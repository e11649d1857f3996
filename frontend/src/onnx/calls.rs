//! Calls of a model's own functions: their bodies are inlined, with scopes of names, operator sets and attributes of
//! their own.

use std::borrow::Cow;

use windlass_ir::{Limits, Value};

use super::frame::{Binding, Names};
use super::import::{Importer, node_name, operator_sets};
use super::problem::{Problem, invalid, unsupported};
use super::proto::{AttributeProto, FunctionProto, NodeProto, describe};

impl<'m> Importer<'m> {
    /// A node's attributes, those that refer to the function's replaced by what the call gave.
    pub(super) fn attributes_of(&self, node: &'m NodeProto) -> Result<Vec<Cow<'m, AttributeProto>>, Problem> {
        let mut attributes: Vec<Cow<'m, AttributeProto>> = Vec::with_capacity(node.attribute.len());
        for attribute in &node.attribute {
            if attributes.iter().any(|a| a.name() == attribute.name()) {
                invalid!("attribute `{}` is given twice", attribute.name());
            }
            if attribute.ref_attr_name().is_empty() {
                attributes.push(Cow::Borrowed(attribute));
                continue;
            }
            if self.calls.is_empty() {
                invalid!("attribute `{}` refers to a function's, outside of one", attribute.name());
            }
            let named = |a: &&Cow<'m, AttributeProto>| a.name() == attribute.ref_attr_name();
            if let Some(argument) = self.arguments.iter().find(named) {
                if argument.g.is_some() || !argument.graphs.is_empty() {
                    unsupported!("attribute `{}` is a graph passed to a function", attribute.name());
                }
                let mut argument = argument.clone().into_owned();
                argument.name = Some(attribute.name().to_string());
                attributes.push(Cow::Owned(argument));
            }
        }
        Ok(attributes)
    }

    /// Inlines a call of a model's own function.
    pub(super) fn call(
        &mut self,
        node: &'m NodeProto,
        function: &'m FunctionProto,
        ins: Vec<Option<Value>>,
        mut attributes: Vec<Cow<'m, AttributeProto>>,
    ) -> Result<Vec<Binding>, Problem> {
        if self.calls.iter().any(|&active| std::ptr::eq(active, function)) {
            invalid!("function `{}` calls itself", function.name());
        }
        let depth = self.calls.len() + self.frames.len() + 1;
        Limits::check(|| describe(node), "levels", depth as u64, self.source.limits().depth)?;
        if ins.len() > function.input.len() {
            invalid!("{} operands for function `{}`", ins.len(), function.name());
        }
        let declares = |name: &str| {
            function.attribute.iter().any(|a| a == name)
                || function.attribute_proto.iter().any(|a| a.name() == name)
        };
        if let Some(odd) = attributes.iter().find(|a| !declares(a.name())) {
            unsupported!("attribute `{}`, which function `{}` does not have", odd.name(), function.name());
        }
        for default in &function.attribute_proto {
            if !attributes.iter().any(|a| a.name() == default.name()) {
                attributes.push(Cow::Borrowed(default));
            }
        }
        let mut sets = operator_sets(&function.opset_import, function.name())?;
        for (domain, version) in &self.operator_sets {
            sets.entry(domain.clone()).or_insert(*version);
        }
        let mut names = Names::default();
        let given = ins.into_iter().chain(std::iter::repeat(None));
        for (name, value) in function.input.iter().zip(given) {
            names.map.insert(name.clone(), value.map_or(Binding::Absent, Binding::Value));
        }
        let prefix = format!("{}{}/", self.prefix, node_name(node));
        let frame = self.frames.last_mut().expect("a graph is being imported");
        let outer_names = std::mem::replace(&mut frame.names, names);
        let outer_sets = std::mem::replace(&mut self.operator_sets, sets);
        let outer_arguments = std::mem::replace(&mut self.arguments, attributes);
        let outer_prefix = std::mem::replace(&mut self.prefix, prefix);
        self.calls.push(function);
        let outs = self.import_function_body(function);
        self.calls.pop();
        self.prefix = outer_prefix;
        self.arguments = outer_arguments;
        self.operator_sets = outer_sets;
        self.frames.last_mut().expect("a graph is being imported").names = outer_names;
        outs
    }

    fn import_function_body(&mut self, function: &'m FunctionProto) -> Result<Vec<Binding>, Problem> {
        self.import_nodes(&function.node)?;
        let mut outs = Vec::with_capacity(function.output.len());
        for name in &function.output {
            let Some(binding) = self.lookup(name) else {
                invalid!("function `{}` does not define its result `{name}`", function.name());
            };
            outs.push(binding);
        }
        Ok(outs)
    }
}
