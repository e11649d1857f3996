//! The verifier. A valid graph satisfies:
//!
//! - (V1) every operand is an input or a result of an earlier node;
//! - (V2) every value has exactly one definition, and its definition names it;
//! - (V3) every value's type is the one its op infers from its operands' types, or one no less precise;
//! - (V4) every late attribute names an operand that exists and is an integer tensor of rank 0 or 1;
//! - (V5) input names are distinct and not empty, and so are output names;
//! - (V6) every output is defined, and there is at least one.

use std::collections::BTreeSet;

use cranelift_entity::EntityRef;

use super::{Def, Graph, Value, late_operands};
use crate::error::Error;
use crate::types::TensorType;

/// Checks every invariant; the first that fails is the error.
pub fn verify(graph: &Graph) -> Result<(), Error> {
    let fail = |invariant: &'static str, message: String| Err(Error::Verify { invariant, message });
    let mut defined = vec![false; graph.value_count()];
    let mut define = |value: Value, def: Def| {
        if value.index() >= defined.len() || std::mem::replace(&mut defined[value.index()], true) {
            return fail("V2", format!("{value} is defined twice or does not exist"));
        }
        if graph.def(value) != def {
            return fail("V2", format!("the definition of {value} does not name it"));
        }
        Ok(())
    };
    let mut names = BTreeSet::new();
    for (index, (name, value)) in graph.inputs().iter().enumerate() {
        define(*value, Def::Input(index as u32))?;
        if name.is_empty() || !names.insert(name) {
            return fail("V5", format!("the input name `{name}` is empty or given twice"));
        }
    }
    let mut is_defined: Vec<bool> =
        (0..graph.value_count()).map(|i| matches!(graph.def(Value::new(i)), Def::Input(_))).collect();
    for (node, data) in graph.nodes() {
        for &value in &data.ins {
            if value.index() >= is_defined.len() || !is_defined[value.index()] {
                return fail("V1", format!("{} reads {value} before it is defined", graph.describe(node)));
            }
        }
        for (name, index) in late_operands(&data.op) {
            let ty = data.ins.get(index as usize).map(|&v| graph.ty(v));
            if !ty.is_some_and(|ty| ty.dtype.is_int() && ty.rank() <= 1) {
                let node = graph.describe(node);
                return fail("V4", format!("`{name}` of {node} is not an integer operand of rank 0 or 1"));
            }
        }
        let in_types: Vec<&TensorType> = data.ins.iter().map(|&v| graph.ty(v)).collect();
        let types = data
            .op
            .infer(&in_types)
            .map_err(|violation| Error::Infer { node: graph.describe(node), violation })?;
        if types.len() != data.outs.len() {
            return fail("V3", format!("{} has the wrong number of results", graph.describe(node)));
        }
        for (index, (&out, inferred)) in data.outs.iter().zip(&types).enumerate() {
            let def = Def::Output { node, index: index as u32 };
            define(out, def)?;
            is_defined[out.index()] = true;
            let found = graph.ty(out);
            let fits = found.dtype == inferred.dtype
                && found.rank() == inferred.rank()
                && found.dims.iter().zip(&inferred.dims).all(|(f, i)| f.may_equal(i));
            if !fits {
                let node = graph.describe(node);
                return fail("V3", format!("{out} of {node} has type {found}, inferred {inferred}"));
            }
        }
    }
    let mut names = BTreeSet::new();
    for (name, value) in graph.outputs() {
        if value.index() >= is_defined.len() || !is_defined[value.index()] {
            return fail("V6", format!("the output `{name}` is not defined"));
        }
        if name.is_empty() || !names.insert(name) {
            return fail("V5", format!("the output name `{name}` is empty or given twice"));
        }
    }
    match graph.outputs().is_empty() {
        true => fail("V6", "there is no output".to_string()),
        false => Ok(()),
    }
}
