//! Vectorization: from a graph of one example to a graph of a batch of them, as JAX's `vmap`.
//!
//! [`vmap`] walks over the nodes and asks each op that depends on the batch for its rule
//! ([`crate::ops::OpDef::vmap`]). What is the same for every example stays as it is, so that a product with weights
//! that examples share is one product whose rows are all examples. An op without a rule is run for one example after
//! the other, by a `scan`; the only ops that have no vectorized form are those whose results have a size that depends
//! on data.
//!
//! ```
//! use windlass_ir::{Builder, DType, Tensor, TensorType, interpret, ops::MatMul, vmap};
//!
//! let mut b = Builder::new("product");
//! let x = b.input("x", TensorType::fixed(DType::F64, &[1, 2]));
//! let w = b.input("w", TensorType::fixed(DType::F64, &[2, 1]));
//! let y = b.push1(MatMul::default(), &[x, w])?;
//! b.output("y", y);
//! let batch = vmap(&b.finish()?, &[true, false], 3)?;
//! let x = Tensor::new(&[3, 1, 2], &[1f64, 2., 3., 4., 5., 6.]);
//! let y = interpret(&batch, &[x, Tensor::new(&[2, 1], &[10f64, 1.])])?;
//! assert_eq!(y[0], Tensor::new(&[3, 1, 1], &[12f64, 34., 56.]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use cranelift_entity::SecondaryMap;

use crate::error::Error;
use crate::graph::{Builder, Graph, Node, Value, Values, late_operands};
use crate::ops::{Op, Scan, Vmap, VmapCx};
use crate::types::{Dim, TensorType};

/// How deep a rule may answer with graphs whose ops' rules answer with graphs.
const DEPTH: usize = 16;

/// The graph for a batch of examples: inputs that are `mapped` and all outputs have it as their first dimension.
///
/// Every size on the way is fixed ([`Graph::bind`] does that). A node whose results depend on the batch and have a size
/// that depends on data is an error that names it.
pub fn vmap(graph: &Graph, mapped: &[bool], batch: usize) -> Result<Graph, Error> {
    if mapped.len() != graph.inputs().len() {
        return Err(Error::InputCount { expected: graph.inputs().len(), found: mapped.len() });
    }
    let mut b = Builder::new(&graph.name);
    let mut ins = Vec::new();
    for ((name, value), &mapped) in graph.inputs().iter().zip(mapped) {
        let mut ty = graph.ty(*value).clone();
        if mapped {
            ty.dims.insert(0, Dim::Fixed(batch));
        }
        ins.push(b.input(name, ty));
    }
    let outs = vmap_into(&mut b, graph, &ins, mapped, batch)?;
    for ((name, _), out) in graph.outputs().iter().zip(outs) {
        let value = repeated(&mut b, out, batch)?;
        b.output(name, value);
    }
    b.finish()
}

/// Copies a graph of one example for a batch of them, with `ins` for its inputs, and returns what stands for its
/// outputs, each with whether it has the batch as its first dimension; one that has not is the same for every example.
pub fn vmap_into(
    b: &mut Builder,
    graph: &Graph,
    ins: &[Value],
    mapped: &[bool],
    batch: usize,
) -> Result<Vec<(Value, bool)>, Error> {
    if ins.len() != graph.inputs().len() || mapped.len() != ins.len() {
        return Err(Error::InputCount { expected: graph.inputs().len(), found: ins.len().min(mapped.len()) });
    }
    for (((name, value), &new), &mapped) in graph.inputs().iter().zip(ins).zip(mapped) {
        let expected = over(graph.ty(*value), mapped.then_some(batch));
        if *b.ty(new) != expected {
            return Err(Error::InputType { name: name.clone(), expected, found: b.ty(new).clone() });
        }
    }
    // Shapes calculated inside the graph become known.
    let types: Vec<TensorType> = graph.inputs().iter().map(|(_, v)| graph.ty(*v).clone()).collect();
    let graph = graph.with_input_types(&types)?;
    let outs = walk(b, &graph, ins, mapped, (batch, DEPTH));
    b.set_name(None);
    outs
}

/// A type with the batch, if any, before its dimensions.
fn over(ty: &TensorType, batch: Option<usize>) -> TensorType {
    let mut ty = ty.clone();
    if let Some(batch) = batch {
        ty.dims.insert(0, Dim::Fixed(batch));
    }
    ty
}

/// A value with the batch as its first dimension.
pub(crate) fn repeated(
    b: &mut Builder,
    (value, batched): (Value, bool),
    batch: usize,
) -> Result<Value, Error> {
    if batched {
        return Ok(value);
    }
    let Some(mut shape) = b.ty(value).as_shape() else {
        return Err(Error::VmapSizes { node: format!("a result of type {}", b.ty(value)) });
    };
    shape.insert(0, batch);
    b.broadcast(value, &shape)
}

fn walk(
    b: &mut Builder,
    graph: &Graph,
    ins: &[Value],
    mapped: &[bool],
    (batch, depth): (usize, usize),
) -> Result<Vec<(Value, bool)>, Error> {
    let mut map: SecondaryMap<Value, Option<(Value, bool)>> = SecondaryMap::new();
    for (((_, old), &new), &mapped) in graph.inputs().iter().zip(ins).zip(mapped) {
        map[*old] = Some((new, mapped));
    }
    for (node, data) in graph.nodes() {
        let operands: Vec<(Value, bool)> =
            data.ins.iter().map(|&v| map[v].expect("operands are vectorized before their users")).collect();
        let ins: Values = operands.iter().map(|(value, _)| *value).collect();
        let batched: Vec<bool> = operands.iter().map(|(_, batched)| *batched).collect();
        let (outs, over) = match batched.contains(&true) {
            false => (b.push(data.op.clone(), &ins, data.name.clone())?, false),
            true => (vectorized(b, (graph, node), &ins, &batched, (batch, depth))?, true),
        };
        for (&old, new) in data.outs.iter().zip(outs) {
            map[old] = Some((new, over));
        }
    }
    Ok(graph.outputs().iter().map(|(_, v)| map[*v].expect("every value is vectorized")).collect())
}

/// The results of a node for every example.
fn vectorized(
    b: &mut Builder,
    (graph, node): (&Graph, Node),
    ins: &[Value],
    batched: &[bool],
    (batch, depth): (usize, usize),
) -> Result<Values, Error> {
    let data = graph.node(node);
    let describe = || graph.describe(node);
    let outs: Vec<TensorType> = data.outs.iter().map(|&v| graph.ty(v).clone()).collect();
    let sizes = data.ins.iter().chain(&data.outs).all(|&v| graph.ty(v).as_shape().is_some());
    if !sizes || !late_operands(&data.op).is_empty() {
        return Err(Error::VmapSizes { node: describe() });
    }
    b.set_name(data.name.clone());
    let name = data.name.clone();
    let answer = data.op.vmap(&mut VmapCx { builder: b, ins, batched, outs: &outs, batch, name })?;
    let values = match answer {
        Vmap::Values(values) => values,
        Vmap::Through(body) if depth > 0 => {
            let mut values = Values::new();
            for out in walk(b, &body, ins, batched, (batch, depth - 1))? {
                values.push(repeated(b, out, batch)?);
            }
            values
        }
        Vmap::Through(_) | Vmap::OneByOne => one_by_one(b, &data.op, ins, batched)?,
    };
    for (&value, ty) in values.iter().zip(&outs) {
        let (expected, found) = (over(ty, Some(batch)), b.ty(value).clone());
        if expected != found {
            return Err(Error::VmapType { node: describe(), expected, found });
        }
    }
    Ok(values)
}

/// The results of an op for one example after the other.
fn one_by_one(b: &mut Builder, op: &Op, ins: &[Value], batched: &[bool]) -> Result<Values, Error> {
    let mut body = Builder::new(op.name());
    let (scanned, captured): (Vec<usize>, Vec<usize>) = (0..ins.len()).partition(|&i| batched[i]);
    let order: Vec<usize> = scanned.iter().chain(&captured).copied().collect();
    let mut operands: Vec<Option<Value>> = vec![None; ins.len()];
    for &i in &order {
        let mut ty = b.ty(ins[i]).clone();
        if batched[i] {
            ty.dims.remove(0);
        }
        operands[i] = Some(body.input(&format!("in{i}"), ty));
    }
    let operands: Vec<Value> = operands.into_iter().flatten().collect();
    for (i, out) in body.push(op.clone(), &operands, None)?.into_iter().enumerate() {
        body.output(&format!("out{i}"), out);
    }
    let scan = Scan {
        body: Arc::new(body.finish()?),
        num_scan_inputs: scanned.len() as i64,
        num_captures: captured.len() as i64,
        scan_input_axes: Vec::new(),
        scan_input_directions: Vec::new(),
        scan_output_axes: Vec::new(),
        scan_output_directions: Vec::new(),
    };
    let ins: Values = order.iter().map(|&i| ins[i]).collect();
    b.push(scan, &ins, None)
}
