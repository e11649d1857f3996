//! The gradient of `scan`: the gradient of its body, scanned the other way.

use std::sync::Arc;

use cranelift_entity::SecondaryMap;

use super::scan_sums::{factors, is_linear_in_products, sum_over_positions};
use super::vjp::{Vjp, VjpCx};
use super::{Broadcast, Concat, Gradients, Iota, Lowered, Op, Reshape, Scan, Slice};
use crate::dtype::DType;
use crate::error::Error;
use crate::grad::body_gradient;
use crate::graph::{Builder, Graph, NodeData, Value, late_operands};
use crate::loops::Expr;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// A scan on operands of known types.
pub(super) struct Scanned<'s> {
    pub scan: &'s Scan,
    /// The body for operands of these types.
    pub body: Graph,
    /// How many operands are states.
    pub states: usize,
    /// Which operands are scanned, and along which axes.
    pub scanned: std::ops::Range<usize>,
    pub axes: &'s [usize],
    /// The number of positions.
    pub length: usize,
    /// The axis of each stacked result.
    pub stacked: Vec<usize>,
}

impl Scanned<'_> {
    /// The operands of the body at one position.
    fn body_types(&self, cx: &VjpCx<'_>) -> Vec<TensorType> {
        let mut types: Vec<TensorType> = cx.ins.iter().map(|&v| cx.builder.ty(v).clone()).collect();
        for (ty, &axis) in types[self.scanned.clone()].iter_mut().zip(self.axes) {
            ty.dims.remove(axis);
        }
        types
    }

    /// Runs the scan again to stack what its gradient reads beside the operands: these states before every position, and
    /// these values of the body, along new first axes in the order of the scan. The other scan is then not needed.
    fn stacks(
        &self,
        cx: &mut VjpCx<'_>,
        states: &[usize],
        values: &[Value],
    ) -> Result<(Vec<Value>, Vec<Value>), Error> {
        let mut known: Vec<Option<Value>> = Vec::new();
        for &state in states {
            known.push(self.state_among_results(cx, state)?);
        }
        if values.is_empty() && known.iter().all(Option::is_some) {
            return Ok((known.into_iter().flatten().collect(), Vec::new()));
        }
        let types = self.body_types(cx);
        let mut b = Builder::new(&self.body.name);
        let ins: Vec<Value> =
            types.iter().enumerate().map(|(i, ty)| b.input(&format!("in{i}"), ty.clone())).collect();
        let results = self.body.outputs();
        let all: Vec<Value> = results.iter().map(|(_, v)| *v).chain(values.iter().copied()).collect();
        let made = b.inline_values(&self.body, &ins, &all)?;
        for ((name, _), &out) in results.iter().zip(&made) {
            b.output(name, out);
        }
        let unknown =
            || states.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(&state, _)| state);
        unknown().for_each(|state| b.output(&format!("state{state}"), ins[state]));
        for (i, &value) in made[results.len()..].iter().enumerate() {
            b.output(&format!("kept{i}"), value);
        }
        let added = unknown().count() + values.len();
        let directions = (0..self.stacked.len())
            .map(|i| i64::from(Scan::is_backward(&self.scan.scan_output_directions, i)));
        let scan = Scan {
            body: Arc::new(b.finish()?),
            scan_output_axes: self.stacked.iter().map(|&axis| axis as i64).chain(vec![0; added]).collect(),
            scan_output_directions: directions.chain(vec![0; added]).collect(),
            ..self.scan.clone()
        };
        let outs = cx.builder.push(scan, cx.ins, None)?;
        let (same, added) = outs.split_at(cx.outs.len());
        cx.stand_in(same);
        let (before, kept) = added.split_at(unknown().count());
        let mut before = before.iter().copied();
        let before = known.into_iter().filter_map(|known| known.or_else(|| before.next())).collect();
        Ok((before, kept.to_vec()))
    }

    /// A state before every position, if the body also stacks it.
    fn state_among_results(&self, cx: &mut VjpCx<'_>, state: usize) -> Result<Option<Value>, Error> {
        let outs = self.body.outputs();
        let stacked = (self.states..outs.len()).find(|&i| outs[i].1 == outs[state].1);
        let Some(result) = stacked else { return Ok(None) };
        let part = result - self.states;
        if self.stacked[part] != 0 || Scan::is_backward(&self.scan.scan_output_directions, part) {
            return Ok(None);
        }
        let mut one = cx.shape(cx.ins[state]);
        one.insert(0, 1);
        let first = cx.push(Reshape::to(&one), &[cx.ins[state]])?;
        let rest = cx.push(Slice::along(0, 0, self.length as i64 - 1), &[cx.outs[result]])?;
        Ok(Some(cx.push(Concat { axis: 0 }, &[first, rest])?))
    }

    /// The gradients of the operands.
    pub fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let types = self.body_types(cx);
        let captures = self.scanned.end..cx.ins.len();
        let is_float = |i: &usize| types[*i].dtype.is_float();
        // Every float state may pass a gradient on to the position before.
        let states: Vec<usize> = (0..self.states).filter(is_float).collect();
        let wanted = |range: std::ops::Range<usize>, cx: &VjpCx<'_>| -> Vec<usize> {
            range.filter(|&i| cx.wanted[i]).collect()
        };
        let scanned = wanted(self.scanned.clone(), cx);
        let captured = wanted(captures.clone(), cx);
        let stacks: Vec<usize> = (self.states..cx.outs.len()).filter(|&i| cx.douts[i].is_some()).collect();
        let results: Vec<usize> = states.iter().chain(&stacks).copied().collect();
        let operands: Vec<usize> = states.iter().chain(&scanned).chain(&captured).copied().collect();
        let dear = dear_values(&self.body)?;
        let gradient = body_gradient(&self.body, &types, &results, &operands, &dear)?;
        let (gradient, kept) = with_values_kept(&gradient, operands.len(), &dear)?;
        // Sums of products are taken of all positions at once, others are carried along.
        let of_captures = &gradient.outputs()[states.len() + scanned.len()..][..captured.len()];
        let (summed, carried): (Vec<_>, Vec<_>) = captured
            .iter()
            .copied()
            .zip(of_captures.iter().map(|(_, v)| *v))
            .partition(|&(_, flow)| is_linear_in_products(&gradient, flow));
        let mut stacked = Vec::new();
        summed.iter().for_each(|&(_, flow)| factors(&gradient, flow, &mut stacked));
        let reads = read_inputs(&gradient);
        let read = |range: std::ops::Range<usize>| -> Vec<usize> { range.filter(|&i| reads[i]).collect() };
        let [before, slices, constant] = [0..self.states, self.scanned.clone(), captures].map(read);
        let back = Backward {
            gradient: &gradient,
            flows: types.len(),
            count: results.len(),
            states: &states,
            carried: &carried,
            scanned: scanned.len(),
            read: [&before, &slices, &constant],
        };

        let (befores, kepts) = self.stacks(cx, &before, &kept)?;
        let mut ins = Vec::new();
        for &state in &states {
            ins.push(cx.dout(state));
        }
        for &(capture, _) in &carried {
            let zero = cx.builder.scalar(types[capture].dtype, 0.0);
            ins.push(cx.push(Broadcast::to(&types[capture].shape()), &[zero])?);
        }
        // What is scanned, with its axis and direction: all of it from the end to the start.
        let mut axes: Vec<(usize, bool)> = Vec::new();
        let mut scan_one = |value: Value, axis: usize, backward: bool| {
            ins.push(value);
            axes.push((axis, !backward));
        };
        // What stands along first axes in the order of the scan needs no stacking.
        let inputs = gradient.inputs();
        let mut known: Vec<(Value, Value)> = Vec::new();
        known.extend(before.iter().zip(&befores).map(|(&i, &value)| (inputs[i].1, value)));
        known
            .extend(inputs[types.len() + results.len()..].iter().map(|(_, v)| *v).zip(kepts.iter().copied()));
        befores.into_iter().for_each(|value| scan_one(value, 0, false));
        let is_back = |i: usize| Scan::is_backward(&self.scan.scan_input_directions, i);
        for part in slices.iter().map(|i| i - self.scanned.start) {
            let value = cx.ins[self.scanned.start + part];
            scan_one(value, self.axes[part], is_back(part));
            if (self.axes[part], is_back(part)) == (0, false) {
                known.push((inputs[self.scanned.start + part].1, value));
            }
        }
        kepts.into_iter().for_each(|value| scan_one(value, 0, false));
        for part in stacks.iter().map(|i| i - self.states) {
            let backward = Scan::is_backward(&self.scan.scan_output_directions, part);
            scan_one(cx.dout(self.states + part), self.stacked[part], backward);
        }
        if axes.is_empty() {
            // Nothing differs from one position to the next but their number.
            let iota = Iota { shape: vec![self.length as i64].into(), axis: 0, dtype: DType::I64 };
            ins.push(cx.push(iota, &[])?);
            axes.push((0, false));
        }
        ins.extend(constant.iter().map(|&i| cx.ins[i]));
        let part = |&i: &usize| i - self.scanned.start;
        let is_along_time = |i: usize| (self.axes[i - self.scanned.start], is_back(part(&i))) == (0, false);
        // The gradients of slices are stacked anyway.
        let of_scanned: Vec<(usize, Value)> = (0..scanned.len())
            .filter(|&at| is_along_time(scanned[at]))
            .map(|at| (at, gradient.outputs()[states.len() + at].1))
            .collect();
        stacked.retain(|value| {
            known.iter().all(|(known, _)| known != value) && of_scanned.iter().all(|(_, v)| v != value)
        });
        let count = stacked.len();
        let scan = Scan {
            body: Arc::new(back.body(&self.body.name, &stacked)?),
            num_scan_inputs: axes.len() as i64,
            num_captures: constant.len() as i64,
            scan_input_axes: axes.iter().map(|(axis, _)| *axis as i64).collect(),
            scan_input_directions: axes.iter().map(|(_, backward)| i64::from(*backward)).collect(),
            scan_output_axes: scanned
                .iter()
                .map(|i| self.axes[part(i)] as i64)
                .chain(vec![0; count])
                .collect(),
            scan_output_directions: scanned
                .iter()
                .map(|i| i64::from(!is_back(part(i))))
                .chain(vec![1; count])
                .collect(),
        };
        let flows = cx.builder.push(scan, &ins, None)?;
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        let order = states.iter().copied().chain(carried.iter().map(|(i, _)| *i)).chain(scanned);
        order.zip(&flows).for_each(|(operand, &flow)| gradients[operand] = Some(flow));
        known.extend(stacked.into_iter().zip(flows[flows.len() - count..].iter().copied()));
        known.extend(of_scanned.iter().map(|&(at, value)| (value, flows[states.len() + carried.len() + at])));
        let mut find = |value: Value| {
            known.iter().find(|(known, _)| *known == value).expect("all factors are stacked").1
        };
        for (capture, flow) in summed {
            gradients[capture] = Some(sum_over_positions(cx, &gradient, flow, &mut find)?);
        }
        Ok(Vjp::Gradients(gradients))
    }
}

/// What the body of the scan back is made of.
struct Backward<'g> {
    /// From operands of the body, flows to its results and values that were kept to flows to its operands: to states,
    /// slices and captures.
    gradient: &'g Graph,
    /// The first input of the gradient that is a flow, and how many are; those after are kept.
    flows: usize,
    count: usize,
    states: &'g [usize],
    /// The captures whose gradients are summed up in turn, and these as values of the gradient.
    carried: &'g [(usize, Value)],
    /// How many of the results are flows to slices.
    scanned: usize,
    /// The states, slices and captures that are read.
    read: [&'g [usize]; 3],
}

impl Backward<'_> {
    /// It carries the gradients of the states and the sums of those of the captures; it scans the states, slices and kept
    /// values that are read, and the gradients of what was stacked. It also stacks some values of the gradient.
    fn body(&self, name: &str, stacked: &[Value]) -> Result<Graph, Error> {
        let mut b = Builder::new(&format!("{name}_back"));
        let inputs = self.gradient.inputs();
        let add = |b: &mut Builder, i: usize| {
            let name = format!("in{}", b.graph().inputs().len());
            b.input(&name, self.gradient.ty(inputs[i].1).clone())
        };
        let of_states = self.flows..self.flows + self.states.len();
        let of_stacks = of_states.end..self.flows + self.count;
        let kept = of_stacks.end..inputs.len();
        let [before, slices, constant] = self.read;
        let mut values: Vec<Option<Value>> = vec![None; inputs.len()];
        of_states.for_each(|i| values[i] = Some(add(&mut b, i)));
        let sums: Vec<Value> = self.carried.iter().map(|&(i, _)| add(&mut b, i)).collect();
        let scanned: Vec<usize> = before.iter().chain(slices).copied().chain(kept).chain(of_stacks).collect();
        scanned.iter().for_each(|&i| values[i] = Some(add(&mut b, i)));
        if scanned.is_empty() {
            b.input("position", TensorType::fixed(DType::I64, &[]));
        }
        constant.iter().for_each(|&i| values[i] = Some(add(&mut b, i)));
        // Nothing reads the others.
        let mut ins = Vec::new();
        for (value, (_, input)) in values.into_iter().zip(inputs) {
            let ty = self.gradient.ty(*input);
            ins.push(value.unwrap_or_else(|| b.constant(Tensor::zeros(ty.dtype, &ty.shape()))));
        }
        let results = self.gradient.outputs()[..self.states.len() + self.scanned].iter().map(|(_, v)| *v);
        let carried = self.carried.iter().map(|(_, v)| *v);
        let all: Vec<Value> = results.chain(carried).chain(stacked.iter().copied()).collect();
        let outs = b.inline_values(self.gradient, &ins, &all)?;
        let (of_states, rest) = outs.split_at(self.states.len());
        let (of_scanned, rest) = rest.split_at(self.scanned);
        let (of_captures, of_stacked) = rest.split_at(self.carried.len());
        for (i, &out) in of_states.iter().enumerate() {
            b.output(&format!("d_state{i}"), out);
        }
        for (i, (&sum, &out)) in sums.iter().zip(of_captures).enumerate() {
            let total = b.map(ScalarFn::Add, &[sum, out])?;
            b.output(&format!("d_capture{i}"), total);
        }
        for (i, &out) in of_scanned.iter().enumerate() {
            b.output(&format!("d_scanned{i}"), out);
        }
        for (i, &out) in of_stacked.iter().enumerate() {
            b.output(&format!("factor{i}"), out);
        }
        // A body has a result even where no gradient is asked for.
        if b.graph().outputs().is_empty() {
            let nothing = b.constant(Tensor::scalar(0f32));
            b.output("nothing", nothing);
        }
        b.finish()
    }
}

/// The values of a body that are dearer to compute again than to keep.
fn dear_values(body: &Graph) -> Result<Vec<Value>, Error> {
    let mut dear = Vec::new();
    for (_, data) in body.nodes() {
        if is_dear(body, data)? {
            dear.extend(&data.outs);
        }
    }
    Ok(dear)
}

/// The gradient of a body, whose results after the first ones are values of the body, without what computes those: the
/// ones that are read become further inputs. Which these are, as values of the body.
fn with_values_kept(gradient: &Graph, results: usize, dear: &[Value]) -> Result<(Graph, Vec<Value>), Error> {
    let (results, inner) = gradient.outputs().split_at(results);
    let mut is_inner: SecondaryMap<Value, bool> = SecondaryMap::new();
    inner.iter().for_each(|(_, v)| is_inner[*v] = true);
    let mut live: SecondaryMap<Value, bool> = SecondaryMap::new();
    results.iter().for_each(|(_, v)| live[*v] = true);
    let is_computed = |live: &SecondaryMap<Value, bool>, data: &NodeData| {
        data.outs.iter().any(|&v| live[v] && !is_inner[v])
    };
    for (_, data) in gradient.nodes().rev() {
        if is_computed(&live, data) {
            data.ins.iter().for_each(|&v| live[v] = true);
        }
    }
    let mut b = Builder::new(&gradient.name);
    let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::new();
    for (name, value) in gradient.inputs() {
        map[*value] = Some(b.input(name, gradient.ty(*value).clone()));
    }
    let mut kept = Vec::new();
    for ((_, value), &of_body) in inner.iter().zip(dear) {
        if live[*value] && map[*value].is_none() {
            map[*value] = Some(b.input(&format!("kept{}", kept.len()), gradient.ty(*value).clone()));
            kept.push(of_body);
        }
    }
    for (_, data) in gradient.nodes().filter(|(_, data)| is_computed(&live, data)) {
        let ins: Vec<Value> =
            data.ins.iter().map(|&v| map[v].expect("operands are copied before their users")).collect();
        let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
        for (&old, new) in data.outs.iter().zip(outs) {
            map[old].get_or_insert(new);
        }
    }
    for (name, value) in results {
        b.output(name, map[*value].expect("outputs are copied"));
    }
    // A gradient of nothing.
    if results.is_empty() {
        let nothing = b.constant(Tensor::scalar(0f32));
        b.output("nothing", nothing);
    }
    Ok((b.finish()?, kept))
}

/// Whether a node is more than a formula without sums.
fn is_dear(graph: &Graph, data: &NodeData) -> Result<bool, Error> {
    let types = |values: &[Value]| values.iter().map(|&v| graph.ty(v).clone()).collect::<Vec<_>>();
    // What has no known size has no gradient either.
    let is_open = |&v: &Value| graph.ty(v).as_shape().is_none();
    let unknown = data.ins.iter().chain(&data.outs).any(is_open) || !late_operands(&data.op).is_empty();
    if unknown || matches!(*data.op, Op::Constant(_)) {
        return Ok(false);
    }
    Ok(match data.op.lower(&types(&data.ins), &types(&data.outs))? {
        Lowered::Nest(nest) => nest.exprs.values().any(|(expr, _)| matches!(expr, Expr::Reduce { .. })),
        _ => true,
    })
}

/// For each input of a graph, whether a node or an output reads it.
fn read_inputs(graph: &Graph) -> Vec<bool> {
    let mut read: SecondaryMap<Value, bool> = SecondaryMap::new();
    graph.nodes().flat_map(|(_, data)| &data.ins).for_each(|&v| read[v] = true);
    graph.outputs().iter().for_each(|(_, v)| read[*v] = true);
    graph.inputs().iter().map(|(_, v)| read[*v]).collect()
}
