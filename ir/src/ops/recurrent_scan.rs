//! A recurrent cell as a scan of a body of smaller ops: what gradients through time are made of.

use std::sync::Arc;

use super::activation::Activation;
use super::cell::CellKind;
use super::{Iota, MatMul, Recurrence, RecurrentSteps, Reshape, ReverseSequence, Scan, Slice, Vjp, VjpCx};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Graph, Value};
use crate::scalar::ScalarFn::{Add, Lt, Max, Min, Mul, Select, Sub};
use crate::types::TensorType;

/// What the operands of a step are, beside the states and the step's input.
struct Step<'s> {
    op: &'s RecurrentSteps,
    f: &'s [Activation],
    size: usize,
}

impl RecurrentSteps {
    /// The results as those of a scan over the steps.
    pub(super) fn as_scan(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let places = self.places();
        let f = self.cell.parsed(1, "C3").expect("infer accepted the activations").remove(0);
        let (mut x, lens) = (cx.ins[0], places.lens.map(|i| cx.ins[i]));
        let (shape, size) = (cx.shape(x), cx.shape(cx.ins[places.h])[1]);
        let r = cx.transpose(cx.ins[Recurrence::WEIGHTS], &[1, 0])?;
        // Sequences of lengths of their own are turned round each by itself.
        let turned = if self.reverse { lens } else { None };
        let turn = ReverseSequence { batch_axis: 1, time_axis: 0 };
        if let Some(lens) = turned {
            x = cx.push(turn.clone(), &[x, lens])?;
        }
        let backward = vec![i64::from(self.reverse && turned.is_none())];
        let mut ins = vec![cx.ins[places.h]];
        ins.extend(places.c.map(|i| cx.ins[i]));
        let states = ins.len();
        ins.push(x);
        if lens.is_some() {
            let iota = Iota { shape: vec![shape[0] as i64].into(), axis: 0, dtype: DType::I32 };
            ins.push(cx.push(iota, &[])?);
        }
        let captures = ins.len();
        ins.push(r);
        let optional = [places.bias, places.peepholes, places.lens];
        ins.extend(optional.into_iter().flatten().map(|i| cx.ins[i]));
        let types: Vec<TensorType> = ins
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let mut ty = cx.builder.ty(v).clone();
                if (states..captures).contains(&i) {
                    ty.dims.remove(0);
                }
                ty
            })
            .collect();
        let body = Step { op: self, f: &f, size }.body(&types)?;
        let scan = Scan {
            body: Arc::new(body),
            num_scan_inputs: (captures - states) as i64,
            num_captures: (ins.len() - captures) as i64,
            scan_input_axes: Vec::new(),
            scan_input_directions: backward.iter().copied().cycle().take(captures - states).collect(),
            scan_output_axes: Vec::new(),
            scan_output_directions: backward,
        };
        let mut outs = cx.builder.push(scan, &ins, None)?;
        let mut y = outs.remove(states);
        if let Some(lens) = turned {
            y = cx.push(turn, &[y, lens])?;
        }
        outs.insert(0, y);
        // Once is enough.
        cx.stand_in(&outs);
        Ok(Vjp::Through(outs))
    }
}

impl Step<'_> {
    /// The body: states, the step's input, with lengths its number, the recurrence weights, a bias, peepholes,
    /// lengths; it gives the next states and the step's result.
    fn body(&self, types: &[TensorType]) -> Result<Graph, Error> {
        let mut b = Builder::new("step");
        let mut ins = types.iter().enumerate().map(|(i, ty)| b.input(&format!("in{i}"), ty.clone()));
        let mut next = || ins.next().expect("there is an operand for each");
        let op = self.op;
        let is_lstm = op.cell.kind == CellKind::Lstm;
        let h = next();
        let c = is_lstm.then(&mut next);
        let x = next();
        let step = op.sequence_lens.then(&mut next);
        let r = next();
        let bias = op.hidden_bias.then(&mut next);
        let peepholes = op.peepholes.then(&mut next);
        let lens = op.sequence_lens.then(&mut next);
        drop(ins);
        let (mut new_h, mut new_c) = match (op.cell.kind, c) {
            (CellKind::Rnn, _) => {
                let product = product(&mut b, h, r)?;
                let sum = b.map(Add, &[x, product])?;
                (self.activate(&mut b, 0, sum)?, None)
            }
            (CellKind::Gru, _) => (self.gru(&mut b, [h, x, r], bias)?, None),
            (CellKind::Lstm, c) => {
                let c = c.expect("an LSTM has a memory");
                let (h, c) = self.lstm(&mut b, [h, c, x, r], peepholes)?;
                (h, Some(c))
            }
        };
        let mut y = new_h;
        if let (Some(step), Some(lens)) = (step, lens) {
            // Past a sequence's end its states stay, and results are 0.
            let batch = b.ty(lens).shape()[0];
            let lens = b.push1(Reshape::to(&[batch, 1]), &[lens])?;
            let runs = b.map(Lt, &[step, lens])?;
            let zero = b.scalar_like(y, 0.0);
            y = b.map(Select, &[runs, new_h, zero])?;
            new_h = b.map(Select, &[runs, new_h, h])?;
            if let (Some(new), Some(old)) = (new_c, c) {
                new_c = Some(b.map(Select, &[runs, new, old])?);
            }
        }
        b.output("h", new_h);
        if let Some(c) = new_c {
            b.output("c", c);
        }
        b.output("y", y);
        b.finish()
    }

    fn activate(&self, b: &mut Builder, which: usize, mut x: Value) -> Result<Value, Error> {
        let clip = self.op.cell.clip;
        if clip > 0.0 {
            let (low, high) = (b.scalar_like(x, -clip), b.scalar_like(x, clip));
            let raised = b.map(Max, &[x, low])?;
            x = b.map(Min, &[raised, high])?;
        }
        self.f[which].emit(b, x)
    }

    /// The columns of one gate, or of several neighbours.
    fn gate(&self, b: &mut Builder, x: Value, first: usize, count: usize) -> Result<Value, Error> {
        let (from, to) = (first * self.size, (first + count) * self.size);
        b.push1(Slice::along(1, from as i64, to as i64), &[x])
    }

    fn gru(&self, b: &mut Builder, [h, x, r]: [Value; 3], bias: Option<Value>) -> Result<Value, Error> {
        let linear = self.op.cell.linear_before_reset;
        let (of_gates, of_hidden) = (self.gate(b, r, 0, 2)?, self.gate(b, r, 2, 1)?);
        let products = product(b, h, of_gates)?;
        let inputs = self.gate(b, x, 0, 2)?;
        let sums = b.map(Add, &[inputs, products])?;
        let (z, reset) = (self.gate(b, sums, 0, 1)?, self.gate(b, sums, 1, 1)?);
        let (z, reset) = (self.activate(b, 0, z)?, self.activate(b, 0, reset)?);
        let recurrent = match linear {
            false => {
                let kept = b.map(Mul, &[reset, h])?;
                product(b, kept, of_hidden)?
            }
            true => {
                let mut hidden = product(b, h, of_hidden)?;
                if let Some(bias) = bias {
                    hidden = b.map(Add, &[hidden, bias])?;
                }
                b.map(Mul, &[reset, hidden])?
            }
        };
        let input = self.gate(b, x, 2, 1)?;
        let sum = b.map(Add, &[input, recurrent])?;
        let hidden = self.activate(b, 1, sum)?;
        let one = b.scalar_like(z, 1.0);
        let rest = b.map(Sub, &[one, z])?;
        let (new, old) = (b.map(Mul, &[rest, hidden])?, b.map(Mul, &[z, h])?);
        b.map(Add, &[new, old])
    }

    fn lstm(
        &self,
        b: &mut Builder,
        [h, c, x, r]: [Value; 4],
        peepholes: Option<Value>,
    ) -> Result<(Value, Value), Error> {
        let products = product(b, h, r)?;
        let sums = b.map(Add, &[x, products])?;
        let seen = |b: &mut Builder, sum: Value, gate: usize, c: Value| match peepholes {
            None => Ok(sum),
            Some(peepholes) => {
                let (from, to) = ((gate * self.size) as i64, ((gate + 1) * self.size) as i64);
                let weights = b.push1(Slice::along(0, from, to), &[peepholes])?;
                let part = b.map(Mul, &[weights, c])?;
                b.map(Add, &[sum, part])
            }
        };
        let sum = self.gate(b, sums, 0, 1)?;
        let sum = seen(b, sum, 0, c)?;
        let input = self.activate(b, 0, sum)?;
        let forget = match self.op.cell.input_forget {
            true => {
                let one = b.scalar_like(input, 1.0);
                b.map(Sub, &[one, input])?
            }
            false => {
                let sum = self.gate(b, sums, 2, 1)?;
                let sum = seen(b, sum, 2, c)?;
                self.activate(b, 0, sum)?
            }
        };
        let sum = self.gate(b, sums, 3, 1)?;
        let candidate = self.activate(b, 1, sum)?;
        let (kept, new) = (b.map(Mul, &[forget, c])?, b.map(Mul, &[input, candidate])?);
        let c = b.map(Add, &[kept, new])?;
        let sum = self.gate(b, sums, 1, 1)?;
        let sum = seen(b, sum, 1, c)?;
        let output = self.activate(b, 0, sum)?;
        // The last activation is not clipped.
        let shown = self.f[2].emit(b, c)?;
        Ok((b.map(Mul, &[output, shown])?, c))
    }
}

fn product(b: &mut Builder, x: Value, w: Value) -> Result<Value, Error> {
    b.push1(MatMul::default(), &[x, w])
}
