//! `loop`: a body run while a condition holds.

use std::sync::Arc;

use super::body::{infer_body, is_pure, join, placeholder, run_body, stack};
use super::{Iota, OpDef, Scan, Vjp, VjpCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Graph, Value, Values};
use crate::limits::Limits;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType};

/// Runs the body while the trip count is not reached and the condition holds.
///
/// Operands are the trip count, the condition, `num_states` states, and what the body uses of the graph
/// around it. The body takes the iteration's number, the condition, the states and the latter; it gives
/// the next condition, the next states, and results that are stacked along a new first axis. The
/// results are the last states and the stacks.
///
/// - (C1) the trip count is an integer and the condition a bool, of one element each;
/// - (C2) the body takes the operands, also with the states it gives;
/// - (C3) it gives a bool and states of the element types and ranks of the first ones; sizes that
///   change are not known.
///
/// ONNX: `Loop` (1..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Loop {
    /// What runs.
    pub body: Arc<Graph>,
    /// How many operands after the first two are states.
    pub num_states: i64,
}

impl Loop {
    fn states(&self, operands: usize) -> Result<usize, Violation> {
        let states = usize::try_from(self.num_states).unwrap_or(usize::MAX);
        require!(states <= operands - 2, "C2", "{} states of {operands} operands", self.num_states);
        Ok(states)
    }

    /// Types of the states that hold at every iteration, and the body's results for them.
    fn settled(&self, ins: &[&TensorType]) -> Result<(Vec<TensorType>, Vec<TensorType>), Violation> {
        let states = self.states(ins.len())?;
        let mut types: Vec<TensorType> = ins.iter().map(|t| (*t).clone()).collect();
        // What the body sees as its own scalars, whatever their shape outside.
        for (ty, (_, input)) in types.iter_mut().zip(self.body.inputs()).take(2) {
            ty.dims = self.body.ty(*input).dims.clone();
        }
        loop {
            let outs = infer_body(&self.body, &types, "C2")?;
            let fits = outs.len() > states && outs[0].dtype == DType::Bool;
            require!(fits, "C3", "the body gives {} results for {states} states", outs.len());
            let mut changed = false;
            for (state, next) in types[2..2 + states].iter_mut().zip(&outs[1..]) {
                let Some(joined) = join(state, next) else {
                    return Err(Violation::new("C3", format!("a state {state} becomes {next}")));
                };
                changed |= joined != *state;
                *state = joined;
            }
            // Each round makes a dimension unknown, so this ends.
            if !changed {
                types.truncate(2 + states);
                return Ok((types.split_off(2), outs));
            }
        }
    }
}

impl Loop {
    /// How often the body runs, if that is known: its condition is the one it is given, or always true.
    fn trips(&self, b: &Builder, ins: &[Value]) -> Option<usize> {
        let single = |graph: &Graph, value| graph.as_constant(value)?.to_ints().first().copied();
        let (trips, condition) = (single(b.graph(), ins[0])?, single(b.graph(), ins[1])? != 0);
        let next = self.body.outputs()[0].1;
        let holds = next == self.body.inputs()[1].1 || single(&self.body, next).is_some_and(|c| c != 0);
        match condition {
            false => Some(0),
            true => holds.then_some(usize::try_from(trips).unwrap_or(0)),
        }
    }

    /// The last states as those of a scan over the iterations' numbers.
    fn as_scan(&self, cx: &mut VjpCx<'_>, trips: usize) -> Result<Values, Error> {
        let states = self.num_states as usize;
        let single = |at: usize| Shape::from_elem(1, self.body.ty(self.body.inputs()[at].1).rank());
        let mut b = Builder::new(&self.body.name);
        let operand =
            |b: &mut Builder, i: usize| b.input(&format!("in{i}"), cx.builder.ty(cx.ins[i]).clone());
        let mut values: Vec<Value> = (2..2 + states).map(|i| operand(&mut b, i)).collect();
        let number = b.input("number", TensorType::fixed(DType::I64, &[]));
        let number = b.reshape(number, &single(0))?;
        let condition = b.constant(Tensor::from_i128s(DType::Bool, &single(1), &[1]));
        values.extend((2 + states..cx.ins.len()).map(|i| operand(&mut b, i)));
        values.splice(0..0, [number, condition]);
        let types: Vec<TensorType> = values.iter().map(|&v| b.ty(v).clone()).collect();
        let outs = b.inline(&self.body.with_input_types(&types)?, &values)?;
        outs[1..].iter().enumerate().for_each(|(i, &out)| b.output(&format!("out{i}"), out));
        let numbers = Iota { shape: vec![trips as i64].into(), axis: 0, dtype: DType::I64 };
        let mut ins = cx.ins[2..2 + states].to_vec();
        ins.push(cx.push(numbers, &[])?);
        ins.extend(&cx.ins[2 + states..]);
        let scan = Scan {
            body: Arc::new(b.finish()?),
            num_captures: (ins.len() - states - 1) as i64,
            ..Scan::with_name("scan")
        };
        cx.builder.push(scan, &ins, None)
    }
}

impl OpDef for Loop {
    const NAMES: &'static [&'static str] = &["loop"];

    fn with_name(_: &str) -> Loop {
        Loop { body: placeholder(), num_states: 0 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("body", Slot::Graph(&mut self.body))?;
        codec.attr("num_states", Slot::Int(&mut self.num_states))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=usize::MAX)?;
        let single = |ty: &TensorType| ty.dims.iter().all(|d| d.may_equal(&Dim::Fixed(1)));
        let fits =
            ins[0].dtype == DType::I64 && ins[1].dtype == DType::Bool && single(ins[0]) && single(ins[1]);
        require!(fits, "C1", "the trip count is {}, the condition {}", ins[0], ins[1]);
        let (mut results, outs) = self.settled(ins)?;
        for stacked in &outs[1 + results.len()..] {
            let dims = std::iter::once(Dim::Unknown).chain(stacked.dims.iter().cloned());
            results.push(TensorType::new(stacked.dtype, dims));
        }
        Ok(results)
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let single = |t: &Tensor| t.to_ints().first().copied().ok_or("an operand of the loop is empty");
        let (trips, mut condition) = (single(&ins[0])?, single(&ins[1])? != 0);
        let states = self.num_states as usize;
        let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
        let (_, outs) = self.settled(&types.iter().collect::<Vec<_>>()).map_err(|v| v.to_string())?;
        let mut stacks: Vec<Vec<Tensor>> = vec![Vec::new(); outs.len() - 1 - states];
        let mut operands = ins.to_vec();
        let shape = |at: usize| -> Vec<usize> { vec![1; self.body.ty(self.body.inputs()[at].1).rank()] };
        let (shape_of_trip, shape_of_condition) = (shape(0), shape(1));
        let mut trip = 0;
        let mut elements = 0;
        while condition && trip < trips {
            operands[0] = Tensor::new(&shape_of_trip, &[trip]);
            operands[1] = Tensor::from_i128s(DType::Bool, &shape_of_condition, &[1]);
            let mut results = run_body(&self.body, &operands)?.into_iter();
            let next = results.next().ok_or("the body gives no condition")?;
            condition = single(&next)? != 0;
            for (state, next) in operands[2..].iter_mut().take(states).zip(&mut results) {
                *state = next;
            }
            for (stack, part) in stacks.iter_mut().zip(results) {
                elements += part.len() as u64 + 1;
                stack.push(part);
            }
            trip += 1;
            if elements.max(trip as u64) > Limits::default().elements {
                return Err(format!("the loop stacks too much after {trip} iterations"));
            }
        }
        let mut results = operands[2..2 + states].to_vec();
        for (parts, like) in stacks.iter().zip(&outs[1 + states..]) {
            results.push(stack(parts, 0, like)?);
        }
        Ok(results)
    }

    /// That of a scan, if the number of iterations is known and nothing is stacked.
    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        Ok(match self.trips(cx.builder, cx.ins) {
            Some(0) => {
                let state =
                    |i: usize| i.checked_sub(2).and_then(|state| cx.douts.get(state).copied().flatten());
                Vjp::Gradients((0..cx.ins.len()).map(state).collect())
            }
            Some(trips) => Vjp::Through(self.as_scan(cx, trips)?),
            None => Vjp::Undefined,
        })
    }

    /// Without the states that the body gives back as they are: it is given them like the other values around it.
    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let states = self.num_states as usize;
        let is_kept = |state: &usize| self.body.outputs()[1 + state].1 == self.body.inputs()[2 + state].1;
        let (kept, changed): (Vec<usize>, Vec<usize>) = (0..states).partition(is_kept);
        if kept.is_empty() {
            return Ok(None);
        }
        let at = |states: &[usize]| states.iter().map(|state| 2 + state).collect::<Vec<usize>>();
        let order = [vec![0, 1], at(&changed), (2 + states..ins.len()).collect(), at(&kept)].concat();
        let mut body = Builder::new(&self.body.name);
        let mut values = Values::from_elem(ins[0], ins.len());
        for &i in &order {
            let (name, value) = &self.body.inputs()[i];
            values[i] = body.input(name, self.body.ty(*value).clone());
        }
        let outs = body.inline(&self.body, &values)?;
        for (i, (name, _)) in self.body.outputs().iter().enumerate() {
            if !i.checked_sub(1).is_some_and(|state| kept.contains(&state)) {
                body.output(name, outs[i]);
            }
        }
        let op = Loop { body: Arc::new(body.finish()?), num_states: changed.len() as i64 };
        let ins_of: Values = order.iter().map(|&i| ins[i]).collect();
        let mut results = b.push(op, &ins_of, None)?.into_iter();
        let mut all: Values = (0..states)
            .map(|state| if kept.contains(&state) { Some(ins[2 + state]) } else { results.next() })
            .collect::<Option<_>>()
            .expect("the loop gives each other state");
        all.extend(results);
        Ok(Some(all))
    }

    fn is_pure(&self) -> bool {
        is_pure(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use crate::interpret::eval_op;
    use crate::ops::Concat;
    use crate::scalar::ScalarFn;

    /// Sums `x` until it passes 20, keeping every sum, and grows a list by each.
    fn summing() -> Loop {
        let mut b = Builder::new("body");
        let scalar = |dtype| TensorType::fixed(dtype, &[]);
        b.input("i", scalar(DType::I64));
        b.input("more", scalar(DType::Bool));
        let sum = b.input("sum", TensorType::fixed(DType::F32, &[1]));
        let list = b.input("list", TensorType::new(DType::F32, [Dim::Unknown]));
        let x = b.input("x", TensorType::fixed(DType::F32, &[1]));
        let next = b.map(ScalarFn::Add, &[sum, x]).unwrap();
        let bound = b.scalar(DType::F32, 20.0);
        let more = b.map(ScalarFn::Lt, &[next, bound]).unwrap();
        let longer = b.push1(Concat { axis: 0 }, &[list, next]).unwrap();
        for (name, value) in [("more", more), ("sum", next), ("list", longer), ("each", next)] {
            b.output(name, value);
        }
        Loop { body: Arc::new(b.finish().unwrap()), num_states: 2 }
    }

    fn operands(trips: i64, condition: i128) -> Vec<Tensor> {
        vec![
            Tensor::scalar(trips),
            Tensor::from_i128s(DType::Bool, &[], &[condition]),
            Tensor::new(&[1], &[0f32]),
            Tensor::new(&[0], &[0f32; 0]),
            Tensor::new(&[1], &[6f32]),
        ]
    }

    #[test]
    fn stops_at_the_trip_count_or_the_condition() {
        let run = |trips, condition| eval_op(&summing().into(), &operands(trips, condition)).unwrap();
        let y = run(i64::MAX, 1);
        assert_eq!(y[0].to_f64s(), [24.]);
        assert_eq!(y[1].to_f64s(), [6., 12., 18., 24.]);
        assert_eq!((y[2].shape(), y[2].to_f64s()), (&[4, 1][..], vec![6., 12., 18., 24.]));
        assert_eq!(run(2, 1)[1].to_f64s(), [6., 12.]);
        let none = run(5, 0);
        assert_eq!((none[0].to_f64s(), none[2].shape()), (vec![0.], &[0, 1][..]));
    }

    #[test]
    fn states_that_stay_are_passed_to_the_body() {
        let mut body = Builder::new("body");
        let scalar = |dtype| TensorType::fixed(dtype, &[]);
        let pair = TensorType::fixed(DType::F32, &[2]);
        body.input("i", scalar(DType::I64));
        let more = body.input("more", scalar(DType::Bool));
        let step = body.input("step", pair.clone());
        let sum = body.input("sum", pair.clone());
        let next = body.map(ScalarFn::Add, &[sum, step]).unwrap();
        for (name, value) in [("more", more), ("same", step), ("next", next), ("each", next)] {
            body.output(name, value);
        }
        let op = Loop { body: Arc::new(body.finish().unwrap()), num_states: 2 };
        let operands = [
            Tensor::scalar(3i64),
            Tensor::from_i128s(DType::Bool, &[], &[1]),
            Tensor::new(&[2], &[1f32, 2.]),
            Tensor::new(&[2], &[0f32, 10.]),
        ];
        let mut b = Builder::new("main");
        let ins: Vec<Value> = operands.iter().map(|x| b.input("", x.ty())).collect();
        let outs = op.simplify(&mut b, &ins).unwrap().unwrap();
        outs.iter().enumerate().for_each(|(i, &out)| b.output(&format!("y{i}"), out));
        let graph = b.finish().unwrap();
        let (_, node) = graph.nodes().next().unwrap();
        assert!(matches!(&*node.op, crate::Op::Loop(op) if op.num_states == 1), "{}", node.op.name());
        assert_eq!(outs[0], ins[2]);
        let expected = eval_op(&op.into(), &operands).unwrap();
        assert_eq!(crate::interpret::interpret(&graph, &operands).unwrap(), expected);
    }

    #[test]
    fn sizes_that_change_are_not_known() {
        let types: Vec<TensorType> = operands(1, 1).iter().map(Tensor::ty).collect();
        let outs = summing().infer(&types.iter().collect::<Vec<_>>()).unwrap();
        let spelled: Vec<String> = outs.iter().map(|t| t.to_string()).collect();
        assert_eq!(spelled, ["f32[1]", "f32[?]", "f32[?, 1]"]);
    }

    #[test]
    fn constraints_are_named() {
        let types: Vec<TensorType> = operands(1, 1).iter().map(Tensor::ty).collect();
        let mut ins: Vec<&TensorType> = types.iter().collect();
        let violated = |op: &Loop, ins: &[&TensorType]| op.infer(ins).unwrap_err().constraint;
        assert_eq!(violated(&Loop { num_states: 9, ..summing() }, &ins), "C2");
        assert_eq!(violated(&summing(), &ins[..4]), "C2");
        ins[0] = &types[2];
        assert_eq!(violated(&summing(), &ins), "C1");
    }
}
