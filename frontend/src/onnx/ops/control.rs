//! If, Loop and Scan: bodies become closed graphs, what they read from outside becomes operands.

use std::sync::Arc;

use windlass_ir::{Bool8, Builder, DType, Dim, Graph, Tensor, TensorType, Value, normalize_axis, ops};

use crate::error::Error;
use crate::onnx::declared::declared_rank;
use crate::onnx::import::Body;
use crate::onnx::node::{Imported, NodeCx};
use crate::onnx::problem::{Problem, invalid, unsupported};
use crate::onnx::proto::GraphProto;
use crate::onnx::registry::{Entry, entry, entry_at};
use crate::onnx::rewire::rebuild;

pub(super) const ENTRIES: &[Entry] =
    &[entry("If", if_), entry("Loop", loop_), entry_at("Scan", 9..=u32::MAX, scan)];

fn if_(cx: &mut NodeCx<'_, '_>) -> Imported {
    let condition = cx.input(0)?;
    let (then, otherwise) = (cx.graph("then_branch")?, cx.graph("else_branch")?);
    if let Some(known) = cx.constant(condition).and_then(|t| t.to_ints().first().copied()) {
        let body = cx.body(if known != 0 { then } else { otherwise }, &[])?;
        return cx.inline(&body.graph, &body.captures);
    }
    let (then, otherwise) = match (cx.body(then, &[]), cx.body(otherwise, &[])) {
        (Ok(then), Err(problem)) => {
            let otherwise = failing(&then, problem)?;
            (then, otherwise)
        }
        (Err(problem), Ok(otherwise)) => (failing(&otherwise, problem)?, otherwise),
        (then, otherwise) => (then?, otherwise?),
    };
    let ranks = |body: &Body| -> Vec<usize> {
        body.graph.outputs().iter().map(|(_, v)| body.graph.ty(*v).rank()).collect()
    };
    if ranks(&then) != ranks(&otherwise) {
        unsupported!("branches whose results have different ranks");
    }
    let mut captures = then.captures.clone();
    captures.extend(otherwise.captures.iter().filter(|c| !then.captures.contains(c)));
    let then_branch = with_captures(cx, &then, &captures)?;
    let else_branch = with_captures(cx, &otherwise, &captures)?;
    let ins: Vec<Value> = std::iter::once(condition).chain(captures).collect();
    cx.push_whole(ops::If { then_branch, else_branch }, &ins)
}

/// A branch in place of one that does not fit the types around it, and so can only be one that is never taken: as in a
/// model for two rates of sampling, when it is imported for sizes of the one. It gives what the other branch gives.
fn failing(other: &Body, problem: Problem) -> Imported<Body> {
    let message = match problem {
        Problem::Error(Error::Graph(error @ windlass_ir::Error::Infer { .. })) => error.to_string(),
        problem => return Err(problem),
    };
    let mut b = Builder::new("failing");
    for (name, value) in other.graph.outputs() {
        let ty = other.graph.ty(*value);
        let shape = ty.dims.iter().map(|dim| dim.as_fixed().unwrap_or(0) as i64).collect();
        let result = b.push1(ops::Fail { message: message.clone(), shape, dtype: ty.dtype }, &[])?;
        b.output(name, result);
    }
    Ok(Body { graph: b.finish()?, captures: Vec::new() })
}

/// A body without parameters, over all these captures rather than only its own.
fn with_captures(cx: &NodeCx<'_, '_>, body: &Body, captures: &[Value]) -> Imported<Arc<Graph>> {
    let names: Vec<String> = (0..captures.len()).map(|i| format!("captured.{i}")).collect();
    let inputs: Vec<(Option<Value>, &str, TensorType)> = captures
        .iter()
        .zip(&names)
        .map(|(capture, name)| {
            let own = body.captures.iter().position(|c| c == capture);
            (own.map(|i| body.graph.inputs()[i].1), name.as_str(), cx.ty(*capture).clone())
        })
        .collect();
    Ok(Arc::new(rebuild(&body.graph, &inputs)?))
}

/// Imports a body whose parameters `states` take the results from `first` on in the next round: their
/// types are those that hold in every round.
fn settle<'m>(
    cx: &mut NodeCx<'_, 'm>,
    graph: &'m GraphProto,
    types: &mut [TensorType],
    states: std::ops::Range<usize>,
    first: usize,
) -> Imported<Body> {
    loop {
        let body = cx.body(graph, types)?;
        let outs = body.graph.outputs();
        if outs.len() < first + states.len() {
            invalid!("the body gives {} results for {} states", outs.len(), states.len());
        }
        let mut changed = false;
        for (ty, (_, out)) in types[states.clone()].iter_mut().zip(&outs[first..]) {
            let next = body.graph.ty(*out);
            if next.dtype != ty.dtype {
                invalid!("a state {ty} becomes {next}");
            }
            if next.rank() != ty.rank() {
                unsupported!("a state {ty} becomes {next}");
            }
            for (dim, next) in ty.dims.iter_mut().zip(&next.dims) {
                if dim != next && *dim != Dim::Unknown {
                    *dim = Dim::Unknown;
                    changed = true;
                }
            }
        }
        // Each round makes a size unknown, so this ends.
        if !changed {
            return Ok(body);
        }
    }
}

fn loop_(cx: &mut NodeCx<'_, '_>) -> Imported {
    let graph = cx.graph("body")?;
    let trips = match cx.optional(0) {
        Some(trips) => trips,
        None => cx.add_constant(Tensor::scalar(i64::MAX)),
    };
    let condition = match cx.optional(1) {
        Some(condition) => condition,
        None => cx.add_constant(Tensor::scalar(Bool8(1))),
    };
    let states: Vec<Value> = (2..cx.input_count()).map(|i| cx.input(i)).collect::<Result<_, _>>()?;
    // The body sees the round and the condition as scalars of the shape that it declares.
    let scalar = |i: usize, dtype| {
        let declared = graph.input.get(i).and_then(|input| declared_rank(input.r#type.as_ref()));
        TensorType::fixed(dtype, &vec![1; declared.map_or(0, |rank| rank.min(1))])
    };
    let mut types = vec![scalar(0, DType::I64), scalar(1, DType::Bool)];
    types.extend(states.iter().map(|&state| cx.ty(state).clone()));
    let body = settle(cx, graph, &mut types, 2..2 + states.len(), 1)?;
    let num_states = states.len() as i64;
    let ins: Vec<Value> =
        [trips, condition].into_iter().chain(states).chain(body.captures.iter().copied()).collect();
    cx.push_whole(ops::Loop { body: Arc::new(body.graph), num_states }, &ins)
}

fn scan(cx: &mut NodeCx<'_, '_>) -> Imported {
    let graph = cx.graph("body")?;
    let ins = cx.inputs()?;
    let Some(num_scan_inputs) = cx.int("num_scan_inputs")? else {
        invalid!("attribute `num_scan_inputs` is missing");
    };
    let scanned = usize::try_from(num_scan_inputs).unwrap_or(usize::MAX);
    let Some(states) = ins.len().checked_sub(scanned) else {
        invalid!("attribute `num_scan_inputs` is {num_scan_inputs}, of {} operands", ins.len());
    };
    let mut lists = Vec::with_capacity(4);
    for name in ["scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions"] {
        lists.push(cx.ints(name)?.unwrap_or_default());
    }
    let mut types: Vec<TensorType> = ins.iter().map(|&value| cx.ty(value).clone()).collect();
    for (i, ty) in types[states..].iter_mut().enumerate() {
        let axis = lists[0].get(i).copied().unwrap_or(0);
        match normalize_axis(axis, ty.rank()) {
            Some(axis) => drop(ty.dims.remove(axis)),
            None => invalid!("axis {axis} is outside {ty}"),
        }
    }
    let body = settle(cx, graph, &mut types, 0..states, 0)?;
    let mut lists = lists.into_iter();
    let mut list = || lists.next().unwrap_or_default();
    let op = ops::Scan {
        num_scan_inputs,
        num_captures: body.captures.len() as i64,
        scan_input_axes: list(),
        scan_input_directions: list(),
        scan_output_axes: list(),
        scan_output_directions: list(),
        body: Arc::new(body.graph),
    };
    let ins: Vec<Value> = ins.into_iter().chain(body.captures).collect();
    cx.push_whole(op, &ins)
}
