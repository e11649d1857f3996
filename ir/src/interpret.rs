//! The graph interpreter: runs each node by its op's `eval`. It is the definition of what a graph means.

use cranelift_entity::SecondaryMap;
use smallvec::SmallVec;

use crate::error::Error;
use crate::graph::{Graph, Value, resolve_late};
use crate::limits::Limits;
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Evaluates a graph on inputs in order. Dimensions that are not fixed take the inputs' sizes.
pub fn interpret(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    interpret_observed(graph, inputs, |_, _| {})
}

/// Like [`interpret`], showing each value as it is computed.
pub fn interpret_observed(
    graph: &Graph,
    inputs: &[Tensor],
    mut observe: impl FnMut(Value, &Tensor),
) -> Result<Vec<Tensor>, Error> {
    check_inputs(graph, inputs)?;
    let mut values: SecondaryMap<Value, Option<Tensor>> = SecondaryMap::with_capacity(graph.value_count());
    let mut remaining = graph.use_counts();
    for ((_, value), tensor) in graph.inputs().iter().zip(inputs) {
        observe(*value, tensor);
        values[*value] = Some(tensor.clone());
    }
    for (node, data) in graph.nodes() {
        let ins: Vec<Tensor> = data
            .ins
            .iter()
            .map(|&v| values[v].clone().expect("operands are computed before users"))
            .collect();
        let outs = evaluate(&data.op, &ins, || graph.describe(node))?;
        for (&value, tensor) in data.outs.iter().zip(outs) {
            observe(value, &tensor);
            values[value] = Some(tensor);
        }
        for &value in &data.ins {
            remaining[value] -= 1;
            if remaining[value] == 0 {
                values[value] = None;
            }
        }
    }
    Ok(graph.outputs().iter().map(|(_, v)| values[*v].clone().expect("outputs are computed")).collect())
}

/// Fails unless the inputs fit the graph's input types, equal names being equal sizes.
pub fn check_inputs(graph: &Graph, inputs: &[Tensor]) -> Result<(), Error> {
    if inputs.len() != graph.inputs().len() {
        return Err(Error::InputCount { expected: graph.inputs().len(), found: inputs.len() });
    }
    let mut bound: Vec<(&str, usize)> = Vec::new();
    for ((name, value), tensor) in graph.inputs().iter().zip(inputs) {
        let expected = graph.ty(*value);
        let mut fits = expected.dtype == tensor.dtype() && expected.rank() == tensor.rank();
        for (dim, &size) in expected.dims.iter().zip(tensor.shape()) {
            fits &= match dim {
                crate::Dim::Fixed(n) => *n == size,
                crate::Dim::Unknown => true,
                crate::Dim::Named(name) => match bound.iter().find(|(b, _)| *b == &**name) {
                    Some((_, n)) => *n == size,
                    None => {
                        bound.push((name, size));
                        true
                    }
                },
            };
        }
        if !fits {
            let (expected, found) = (expected.clone(), tensor.ty());
            return Err(Error::InputType { name: name.clone(), expected, found });
        }
    }
    Ok(())
}

/// Evaluates one op. Late attributes take their operands' values, and `infer` must accept the operands.
pub fn eval_op(op: &Op, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
    evaluate(op, ins, || "its result".to_string()).map_err(|error| match error {
        Error::Eval { message, .. } => message,
        other => other.to_string(),
    })
}

fn evaluate(op: &Op, ins: &[Tensor], node: impl Fn() -> String) -> Result<Vec<Tensor>, Error> {
    let failed = |message: String| Error::Eval { node: node(), message };
    let mut op = op.clone();
    let mut ins: SmallVec<[Tensor; 4]> = ins.into();
    resolve_late(&mut op, &mut ins, |t| Some(t.to_ints()));
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    let outs =
        op.infer(&types.iter().collect::<Vec<_>>()).map_err(|violation| failed(violation.to_string()))?;
    // Late attributes are data: what they ask for is not limited by the graph's types.
    for ty in &outs {
        Limits::default().check_type(ty, &node)?;
    }
    op.eval(&ins).map_err(failed)
}
