//! The gradient of `scan`: the gradient of its body, scanned the other way.

use std::sync::Arc;

use super::vjp::{Vjp, VjpCx};
use super::{Broadcast, Concat, Gradients, Reshape, Scan, Slice};
use crate::error::Error;
use crate::grad::body_gradient;
use crate::graph::{Builder, Graph, Value};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// A scan on operands of known types.
pub(super) struct Scanned<'s> {
    pub scan: &'s Scan,
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

    /// Each state before every position, stacked in the order of the scan along a new first axis.
    fn states_before(&self, cx: &mut VjpCx<'_>) -> Result<Vec<Value>, Error> {
        let mut known: Vec<Option<Value>> = Vec::new();
        for state in 0..self.states {
            known.push(self.state_among_results(cx, state)?);
        }
        if known.iter().any(Option::is_none) {
            // Scans again, stacking the states.
            let types = self.body_types(cx);
            let mut b = Builder::new(&format!("{}_states", self.scan.body.name));
            let values: Vec<Value> =
                types.iter().enumerate().map(|(i, ty)| b.input(&format!("in{i}"), ty.clone())).collect();
            let outs = b.inline(&self.scan.body, &values)?;
            for (i, &out) in outs[..self.states].iter().enumerate() {
                b.output(&format!("next{i}"), out);
            }
            for (i, &state) in values[..self.states].iter().enumerate() {
                b.output(&format!("state{i}"), state);
            }
            let scan = Scan {
                body: Arc::new(b.finish()?),
                scan_output_axes: Vec::new(),
                scan_output_directions: Vec::new(),
                ..self.scan.clone()
            };
            let outs = cx.builder.push(scan, cx.ins, None)?;
            for (slot, &out) in known.iter_mut().zip(&outs[self.states..]) {
                slot.get_or_insert(out);
            }
        }
        Ok(known.into_iter().flatten().collect())
    }

    /// A state before every position, if the body also stacks it.
    fn state_among_results(&self, cx: &mut VjpCx<'_>, state: usize) -> Result<Option<Value>, Error> {
        let outs = self.scan.body.outputs();
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
        let gradient = body_gradient(&self.scan.body, &types, &results, &operands)?;
        let body = self.backward_body(&gradient, &types, [&states, &scanned, &captured, &stacks])?;

        let before = self.states_before(cx)?;
        let mut ins = Vec::new();
        for &state in &states {
            ins.push(cx.dout(state));
        }
        for &capture in &captured {
            let zero = cx.builder.scalar(types[capture].dtype, 0.0);
            ins.push(cx.push(Broadcast::to(&types[capture].shape()), &[zero])?);
        }
        ins.extend(&before);
        ins.extend(&cx.ins[self.scanned.clone()]);
        for &stack in &stacks {
            ins.push(cx.dout(stack));
        }
        ins.extend(&cx.ins[captures.clone()]);
        let (axes, backward) =
            (|d: &usize| *d as i64, |list: &[i64], i| i64::from(!Scan::is_backward(list, i)));
        let scan = Scan {
            body: Arc::new(body),
            num_scan_inputs: (self.states + self.scanned.len() + stacks.len()) as i64,
            num_captures: captures.len() as i64,
            scan_input_axes: std::iter::repeat_n(0, self.states)
                .chain(self.axes.iter().map(axes))
                .chain(stacks.iter().map(|&i| self.stacked[i - self.states] as i64))
                .collect(),
            scan_input_directions: std::iter::repeat_n(1, self.states)
                .chain((0..self.scanned.len()).map(|i| backward(&self.scan.scan_input_directions, i)))
                .chain(stacks.iter().map(|&i| backward(&self.scan.scan_output_directions, i - self.states)))
                .collect(),
            scan_output_axes: scanned.iter().map(|&i| self.axes[i - self.scanned.start] as i64).collect(),
            scan_output_directions: scanned
                .iter()
                .map(|&i| backward(&self.scan.scan_input_directions, i - self.scanned.start))
                .collect(),
        };
        let flows = cx.builder.push(scan, &ins, None)?;
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        let order = states.iter().chain(&captured).chain(&scanned);
        order.zip(flows).for_each(|(&operand, flow)| gradients[operand] = Some(flow));
        Ok(Vjp::Gradients(gradients))
    }

    /// The body of the scan back: it carries the gradients of the states and the sums of those of the captures; it
    /// scans the states, what was scanned and the gradients of what was stacked.
    fn backward_body(
        &self,
        gradient: &Graph,
        types: &[TensorType],
        [states, scanned, captured, stacks]: [&[usize]; 4],
    ) -> Result<Graph, Error> {
        let mut b = Builder::new(&format!("{}_back", self.scan.body.name));
        let flow_type = |result: usize| {
            let place = types.len() + states.iter().chain(stacks).position(|&r| r == result).unwrap_or(0);
            gradient.ty(gradient.inputs()[place].1).clone()
        };
        let input = |b: &mut Builder, ty: TensorType| {
            let name = format!("in{}", b.graph().inputs().len());
            b.input(&name, ty)
        };
        let carried: Vec<Value> = states.iter().map(|&s| input(&mut b, flow_type(s))).collect();
        let sums: Vec<Value> = captured.iter().map(|&c| input(&mut b, types[c].clone())).collect();
        let of = |range: std::ops::Range<usize>| types[range].to_vec();
        let mut operands: Vec<Value> = Vec::new();
        for ty in of(0..self.scanned.end) {
            operands.push(input(&mut b, ty));
        }
        let flows: Vec<Value> = stacks.iter().map(|&s| input(&mut b, flow_type(s))).collect();
        for ty in of(self.scanned.end..types.len()) {
            operands.push(input(&mut b, ty));
        }
        operands.extend(carried.iter().chain(&flows));
        let outs = b.inline(gradient, &operands)?;
        let (of_states, rest) = outs.split_at(states.len());
        let (of_scanned, of_captures) = rest.split_at(scanned.len());
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
        // A body has a result even where no gradient is asked for.
        if b.graph().outputs().is_empty() {
            let nothing = b.constant(Tensor::scalar(0f32));
            b.output("nothing", nothing);
        }
        b.finish()
    }
}
