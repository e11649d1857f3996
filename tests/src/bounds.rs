//! What a float result may differ by, element by element, from what each op on its way may do.
//!
//! DESIGN's rules for numbers are rules for one op: an elementary operation is rounded correctly, a
//! transcendental function is right to 4 ULP, a sum of products to `2 n u sum|a_i b_i|`. They are all
//! forms of one bound, in which `J` are the op's partial derivatives at its operands:
//!
//! ```text
//! local(y_i) = u (8 |y_i| + n_i sum_j |J_ij x_j|)        n_i: how many operands' elements matter to y_i
//! error(y_i) = local(y_i) + sum_j |J_ij| error(x_j)
//! ```
//!
//! For a sum of `n` products `2 n` elements matter, and the sum over both factors counts each product
//! twice, so `local` is what the rule says for the two sides of a comparison together. A result that is
//! one of its operands' elements, or the opposite of one, has no local error. Where positions are computed
//! in floats (`resize` and the like), they are rounded too, and with them the weights of the elements
//! around them.
//!
//! A composite is as wrong as its definition computed op by op may be: those that lower to a graph of
//! smaller ops are followed through that graph, and those whose formula subtracts what is nearly equal
//! (`gelu`, `log_softmax`) through the graph that [`definition`] gives.
//!
//! The derivatives are differences of `eval` at 64 bits: the bound follows from the definition, never
//! from how an op is lowered. A difference is taken over the error itself where that is the larger
//! step, so that corners (`relu`, `max`) inside the error are seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use windlass_ir::attrs::Slot;
use windlass_ir::ops::{Constant, GeluForm, Lowered, Reduce, ReduceKind, decompose};
use windlass_ir::{Builder, DType, Error, Graph, Late, Op, ScalarFn, Tensor, TensorType, Value, eval_op};

use crate::generate::Generated;

/// For each output of a graph and each of its elements, how far two implementations may be apart.
/// Where nothing may differ, and for integers, all are 0.
pub fn bounds(generated: &Generated) -> Vec<Vec<f64>> {
    let graph = &generated.graph;
    let inputs = generated.inputs.iter().map(|t| (t.clone(), vec![0.0; t.len()])).collect();
    let found = follow(graph, inputs, &|value| generated.exact_values.contains(&value));
    found.into_iter().map(|(_, errors)| errors).collect()
}

/// A tensor and the error of each element.
type Inexact = (Tensor, Vec<f64>);

/// The outputs of a graph with their errors. What `is_exact` has none.
fn follow(graph: &Graph, inputs: Vec<Inexact>, is_exact: &dyn Fn(Value) -> bool) -> Vec<Inexact> {
    let mut values: BTreeMap<Value, Inexact> = BTreeMap::new();
    values.extend(graph.inputs().iter().map(|(_, value)| *value).zip(inputs));
    for (_, data) in graph.nodes() {
        let ins: Vec<&Inexact> = data.ins.iter().map(|v| &values[v]).collect();
        let tensors: Vec<Tensor> = ins.iter().map(|(tensor, _)| tensor.clone()).collect();
        let outs = eval_op(&data.op, &tensors).expect("generated graphs evaluate");
        let known = data.outs.iter().zip(&outs).all(|(v, t)| is_exact(*v) || !t.dtype().is_float());
        let errors = match known || matches!(*data.op, Op::Constant(_)) {
            true => outs.iter().map(|t| vec![0.0; t.len()]).collect(),
            false => op_errors(&data.op, &ins, &outs),
        };
        for ((&value, tensor), mut errors) in data.outs.iter().zip(outs).zip(errors) {
            if is_exact(value) || !tensor.dtype().is_float() {
                errors.fill(0.0);
            }
            values.insert(value, (tensor, errors));
        }
    }
    graph.outputs().iter().map(|(_, value)| values[value].clone()).collect()
}

/// The errors of an op's results.
fn op_errors(op: &Op, ins: &[&Inexact], outs: &[Tensor]) -> Vec<Vec<f64>> {
    let tensors: Vec<Tensor> = ins.iter().map(|(tensor, _)| tensor.clone()).collect();
    let (op, held) = settle(op, &tensors);
    let ins: Vec<&Inexact> =
        ins.iter().zip(&held).filter(|(_, held)| !**held).map(|(inexact, _)| *inexact).collect();
    let types: Vec<TensorType> = ins.iter().map(|(tensor, _)| tensor.ty()).collect();
    let out_types: Vec<TensorType> = outs.iter().map(Tensor::ty).collect();
    let body = definition(&op, &types).or_else(|| match op.lower(&types, &out_types) {
        Ok(Lowered::Graph(body)) => Some(*body),
        _ => None,
    });
    match body {
        Some(body) => {
            let inputs = ins.iter().map(|inexact| (*inexact).clone()).collect();
            follow(&body, inputs, &|_| false).into_iter().map(|(_, errors)| errors).collect()
        }
        None => differences(&op, &ins, outs),
    }
}

/// The formula that defines a composite, for those whose formula loses digits that the result has.
/// Source: the function bodies of `Gelu` and `LogSoftmax` in the ONNX standard.
fn definition(op: &Op, types: &[TensorType]) -> Option<Graph> {
    let formula = |b: &mut Builder, x: Value, dtype: DType| -> Result<Value, Error> {
        let constant = |b: &mut Builder, value| b.scalar(dtype, value);
        match op {
            Op::Gelu(gelu) => {
                let inner = match gelu.approximate {
                    GeluForm::None => {
                        let root = constant(b, std::f64::consts::FRAC_1_SQRT_2);
                        let scaled = b.map(ScalarFn::Mul, &[x, root])?;
                        b.map(ScalarFn::Erf, &[scaled])?
                    }
                    GeluForm::Tanh => {
                        let cubic = constant(b, 0.044715);
                        let scale = constant(b, (2.0 / std::f64::consts::PI).sqrt());
                        let square = b.map(ScalarFn::Mul, &[x, x])?;
                        let cube = b.map(ScalarFn::Mul, &[square, x])?;
                        let cube = b.map(ScalarFn::Mul, &[cube, cubic])?;
                        let sum = b.map(ScalarFn::Add, &[x, cube])?;
                        let scaled = b.map(ScalarFn::Mul, &[sum, scale])?;
                        b.map(ScalarFn::Tanh, &[scaled])?
                    }
                };
                let (one, half) = (constant(b, 1.0), constant(b, 0.5));
                let gate = b.map(ScalarFn::Add, &[inner, one])?;
                let scaled = b.map(ScalarFn::Mul, &[x, half])?;
                b.map(ScalarFn::Mul, &[scaled, gate])
            }
            Op::Softmax(softmax) => {
                let largest = b.push1(Reduce::over(ReduceKind::Max, &[softmax.axis], true), &[x])?;
                let shifted = b.map(ScalarFn::Sub, &[x, largest])?;
                let exponentials = b.map(ScalarFn::Exp, &[shifted])?;
                let sum = b.push1(Reduce::over(ReduceKind::Sum, &[softmax.axis], true), &[exponentials])?;
                let log = b.map(ScalarFn::Log, &[sum])?;
                b.map(ScalarFn::Sub, &[shifted, log])
            }
            _ => unreachable!("checked below"),
        }
    };
    match op {
        Op::Gelu(_) => {}
        Op::Softmax(softmax) if softmax.log && !softmax.masked => {}
        _ => return None,
    }
    let dtype = types[0].dtype;
    let graph = decompose(types, |b, ins| {
        let x = b.map(ScalarFn::Cast(dtype.accumulator()), &[ins[0]])?;
        let y = formula(b, x, dtype.accumulator())?;
        Ok([b.map(ScalarFn::Cast(dtype), &[y])?].into_iter().collect())
    });
    Some(graph.expect("the formula is valid"))
}

/// How far from where they are meant to be elements may be weighted as lying: positions are numbers up to
/// the largest size. 0 for ops that compute no positions.
fn positions(op: &Op, ins: &[&Inexact], outs: &[Tensor]) -> f64 {
    match op {
        Op::Resize(_) | Op::GridSample(_) | Op::RoiAlign(_) | Op::DeformConv(_) => {
            let shapes = ins.iter().map(|(tensor, _)| tensor.shape()).chain(outs.iter().map(Tensor::shape));
            shapes.flatten().copied().max().unwrap_or(0) as f64
        }
        _ => 0.0,
    }
}

/// How the results move with each element of the operands.
struct Sums {
    /// `sum_j |J_ij x_j|`.
    conditioned: Vec<f64>,
    /// `sum_j |J_ij| error(x_j)`.
    inherited: Vec<f64>,
    /// How many elements matter.
    count: Vec<f64>,
    /// Whether the result is an operand's element up to its sign.
    moved: Vec<bool>,
}

/// The errors of the results of an op that stands for itself.
fn differences(op: &Op, ins: &[&Inexact], outs: &[Tensor]) -> Vec<Vec<f64>> {
    let wide_op = widen_op(op);
    let wide: Vec<Tensor> = ins.iter().map(|(tensor, _)| widen(tensor)).collect();
    let eval = |ins: &[Tensor]| -> Vec<Vec<f64>> {
        let outs = eval_op(&wide_op, ins);
        let outs = outs.unwrap_or_else(|error| panic!("{} at 64 bits: {error}", op.name()));
        outs.iter().map(Tensor::to_f64s).collect()
    };
    let center = eval(&wide);
    let mut sums: Vec<Sums> = center
        .iter()
        .map(|y| Sums {
            conditioned: vec![0.0; y.len()],
            inherited: vec![0.0; y.len()],
            count: vec![0.0; y.len()],
            moved: vec![false; y.len()],
        })
        .collect();
    for (at, (tensor, errors)) in ins.iter().enumerate() {
        if !tensor.dtype().is_float() {
            continue;
        }
        let x = wide[at].to_f64s();
        let step: Vec<f64> = x.iter().zip(errors).map(|(x, &error)| step(*x, error)).collect();
        // Where each result depends on one element of an operand, all may move at once.
        let at_once = matches!(op, Op::Elementwise(_));
        let groups: Vec<Vec<usize>> = match at_once {
            true => vec![(0..x.len()).collect()],
            false => (0..x.len()).filter(|&j| step[j] > 0.0).map(|j| vec![j]).collect(),
        };
        let broadcast = |values: &[f64]| -> Vec<f64> {
            let tensor = Tensor::from_f64s(DType::F64, tensor.shape(), values);
            broadcast_to(&tensor, outs[0].shape())
        };
        for group in groups {
            let moved_by = |by: &[f64]| {
                [1.0, -1.0].map(|sign| {
                    let mut side = x.clone();
                    group.iter().for_each(|&j| side[j] += sign * by[j]);
                    let mut ins = wide.clone();
                    ins[at] = Tensor::from_f64s(DType::F64, tensor.shape(), &side);
                    eval(&ins)
                })
            };
            let [up, down] = moved_by(&step);
            // Where zero lies inside the error, a jump there is as large however small the error is.
            let at_zero = group.iter().any(|&j| x[j].abs() <= errors[j] && errors[j] < step[j]);
            let jumps = at_zero.then(|| moved_by(errors));
            let all = at_once.then(|| [broadcast(&x), broadcast(&step), broadcast(errors)]);
            for (out, sums) in sums.iter_mut().enumerate() {
                for (i, &y) in center[out].iter().enumerate() {
                    let moved = (up[out][i] - y).abs().max((down[out][i] - y).abs());
                    let (x, step, error) = match &all {
                        Some([x, step, error]) => (x[i], step[i], error[i]),
                        None => (x[group[0]], step[group[0]], errors[group[0]]),
                    };
                    // What is infinite stays so, as do weights of 0 beside it.
                    if !(moved.is_finite() && moved > 0.0 && step > 0.0) {
                        continue;
                    }
                    let slope = moved / step;
                    let jump =
                        jumps.iter().flatten().map(|side| (side[out][i] - y).abs()).fold(0.0, f64::max);
                    sums.conditioned[i] += slope * x.abs();
                    sums.inherited[i] += (slope * error).max(jump);
                    sums.count[i] += 1.0;
                    let keeps = unit_roundoff(outs[out].dtype()) <= unit_roundoff(tensor.dtype());
                    sums.moved[i] = keeps && y.abs() == x.abs() && (slope - 1.0).abs() < 1e-6;
                }
            }
        }
    }
    let operands = ins.iter().map(|(tensor, _)| unit_roundoff(tensor.dtype())).fold(0.0, f64::max);
    let floats = ins.iter().filter(|(tensor, _)| tensor.dtype().is_float());
    let finite = floats.flat_map(|(tensor, _)| tensor.to_f64s()).filter(|x| x.is_finite());
    let largest = finite.fold(0.0, |most: f64, x| most.max(x.abs()));
    let placed = 8.0 * positions(op, ins, outs) * largest;
    let bound = |(out, sums): (usize, &Sums)| -> Vec<f64> {
        let dtype = outs[out].dtype();
        let unit = unit_roundoff(dtype).max(operands);
        let y = &center[out];
        (0..y.len())
            .map(|i| match sums.moved[i] && sums.count[i] == 1.0 && placed == 0.0 {
                _ if !y[i].is_finite() => 0.0,
                true => sums.inherited[i],
                false => {
                    let relative = unit * (8.0 * y[i].abs() + sums.count[i] * sums.conditioned[i] + placed);
                    relative + (sums.count[i] + 1.0) * smallest(dtype) + sums.inherited[i]
                }
            })
            .collect()
    };
    sums.iter().enumerate().map(bound).collect()
}

/// Over how much an element is moved: its error, but enough to be seen at 64 bits. Infinities are not.
fn step(x: f64, error: f64) -> f64 {
    match error > 0.0 {
        _ if !x.is_finite() => 0.0,
        true => error.max(x.abs() * 2f64.powi(-20)).max(2f64.powi(-30)),
        false => x.abs() * 2f64.powi(-20),
    }
}

/// Half the distance from 1 to the next number; 0 for integers.
pub fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 => 2f64.powi(-24),
        DType::F64 => 2f64.powi(-53),
        _ => 0.0,
    }
}

/// The smallest positive number.
fn smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-24),
        DType::BF16 => 2f64.powi(-133),
        DType::F32 => 2f64.powi(-149),
        _ => 0.0,
    }
}

/// The elements of a tensor repeated to a larger shape.
fn broadcast_to(tensor: &Tensor, shape: &[usize]) -> Vec<f64> {
    let zeros = Tensor::zeros(DType::F64, shape);
    let add = Op::from_name("add").expect("add is an op");
    eval_op(&add, &[tensor.clone(), zeros]).expect("operands broadcast").remove(0).to_f64s()
}

fn widen(tensor: &Tensor) -> Tensor {
    match tensor.dtype().is_float() {
        true => Tensor::from_f64s(DType::F64, tensor.shape(), &tensor.to_f64s()),
        false => tensor.clone(),
    }
}

fn wide_dtype(dtype: DType) -> DType {
    if dtype.is_float() { DType::F64 } else { dtype }
}

/// The op with 64-bit floats for all others.
fn widen_op(op: &Op) -> Op {
    let mut op = op.clone();
    let mut visit = |_: &'static str, slot: Slot<'_>| {
        match slot {
            Slot::DType(dtype) => *dtype = wide_dtype(*dtype),
            Slot::Tensor(tensor) => *tensor = widen(tensor),
            Slot::Graph(graph) => *graph = Arc::new(widen_graph(graph)),
            _ => {}
        }
        Ok(())
    };
    op.attrs(&mut visit).expect("the visitor does not fail");
    op
}

fn widen_graph(graph: &Graph) -> Graph {
    let mut b = Builder::new(&graph.name);
    let mut values: BTreeMap<Value, Value> = BTreeMap::new();
    for (name, value) in graph.inputs() {
        let ty = graph.ty(*value).clone();
        values.insert(*value, b.input(name, TensorType { dtype: wide_dtype(ty.dtype), ..ty }));
    }
    for (_, data) in graph.nodes() {
        let ins: Vec<Value> = data.ins.iter().map(|v| values[v]).collect();
        let op = match &*data.op {
            Op::Constant(constant) => Op::Constant(Constant { value: widen(&constant.value) }),
            op => widen_op(op),
        };
        let outs = b.push(op, &ins, data.name.clone()).expect("ops take 64-bit floats");
        values.extend(data.outs.iter().copied().zip(outs));
    }
    for (name, value) in graph.outputs() {
        b.output(name, values[value]);
    }
    b.finish().expect("the graph at 64 bits is valid")
}

/// The op with its late attributes known, and which operands held them.
fn settle(op: &Op, ins: &[Tensor]) -> (Op, Vec<bool>) {
    let mut op = op.clone();
    let mut held = vec![false; ins.len()];
    let mut visit = |_: &'static str, slot: Slot<'_>| {
        if let Slot::Late(late) = slot
            && let Late::Operand(index) = *late
        {
            held[index as usize] = true;
            *late = Late::Known(ins[index as usize].to_ints());
        }
        Ok(())
    };
    op.attrs(&mut visit).expect("the visitor does not fail");
    (op, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(name: &str, ins: &[(Tensor, Vec<f64>)]) -> Vec<f64> {
        let op = Op::from_name(name).expect("the op exists");
        let tensors: Vec<Tensor> = ins.iter().map(|(t, _)| t.clone()).collect();
        let outs = eval_op(&op, &tensors).expect("the op evaluates");
        op_errors(&op, &ins.iter().collect::<Vec<_>>(), &outs).remove(0)
    }

    fn exact(values: &[f32], shape: &[usize]) -> Inexact {
        (Tensor::new::<f32>(shape, values), vec![0.0; values.len()])
    }

    #[test]
    fn a_jump_at_zero_counts_where_zero_is_inside_the_error() {
        use windlass_ir::ops::LpNorm;
        let op = Op::from(LpNorm { axis: 0, p: 2 });
        let x = (Tensor::new(&[1], &[0.0f64]), vec![1e-17]);
        let y = eval_op(&op, std::slice::from_ref(&x.0)).unwrap();
        let found = op_errors(&op, &[&x], &y);
        assert!(found[0][0] >= 1.0, "{found:?}");
    }

    #[test]
    fn sums_of_products_have_the_bound_of_the_rule() {
        let u = 2f64.powi(-24);
        let found = errors("matmul", &[exact(&[1.0, 2.0, 3.0], &[1, 3]), exact(&[4.0, -5.0, 2.0], &[3, 1])]);
        // 2 n u sum|a b| for each side, and 4 units in the last place of a result of 0.
        let expected = 2.0 * 2.0 * 3.0 * u * (4.0 + 10.0 + 6.0);
        assert!((found[0] / expected - 1.0).abs() < 1e-5, "{found:?}, expected {expected}");
    }

    #[test]
    fn moved_elements_keep_their_errors() {
        let x = (Tensor::new::<f32>(&[2], &[1.0, -2.0]), vec![1e-6, 3e-6]);
        let found = errors("neg", std::slice::from_ref(&x));
        assert!((found[0] - 1e-6).abs() < 1e-12 && (found[1] - 3e-6).abs() < 1e-12, "{found:?}");
        // A corner inside the error.
        let x = (Tensor::new::<f32>(&[2], &[-1e-9, -2.0]), vec![1e-6, 1e-6]);
        let found = errors("relu", &[x]);
        assert!(found[0] > 0.9e-6 && found[0] < 2e-6 && found[1] < 1e-40, "{found:?}");
    }

    #[test]
    fn errors_grow_with_the_slope() {
        let x = (Tensor::new::<f32>(&[1], &[4.0]), vec![1e-4]);
        let found = errors("exp", &[x])[0];
        let expected = 4f64.exp() * 1e-4;
        assert!(found > expected && found < 1.2 * expected, "{found}, expected {expected}");
    }
}
