//! Bodies: the graphs inside `if`, `loop` and `scan`. They are closed: what they use of the graph around
//! them is passed to them.

use std::sync::Arc;

use crate::dtype::DType;
use crate::error::Violation;
use crate::graph::{Builder, Graph};
use crate::interpret::{check_inputs, interpret};
use crate::ops::movement::around;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType};

/// A body that returns its operand, until the parser or the importer sets the real one.
pub(crate) fn placeholder() -> Arc<Graph> {
    let mut b = Builder::new("body");
    let x = b.input("x", TensorType::fixed(DType::F32, &[]));
    b.output("y", x);
    Arc::new(b.finish().expect("there is an output"))
}

/// The types of a body's results for operands of these types.
pub(crate) fn infer_body(
    body: &Graph,
    ins: &[TensorType],
    constraint: &'static str,
) -> Result<Vec<TensorType>, Violation> {
    let declared: Vec<&TensorType> = body.inputs().iter().map(|(_, v)| body.ty(*v)).collect();
    let fits = declared.len() == ins.len()
        && declared.iter().zip(ins).all(|(a, b)| a.dtype == b.dtype && a.rank() == b.rank());
    if !fits {
        let list = |types: &mut dyn Iterator<Item = String>| types.collect::<Vec<_>>().join(", ");
        let message = format!(
            "the body `{}` takes ({}), found ({})",
            body.name,
            list(&mut declared.iter().map(|t| t.to_string())),
            list(&mut ins.iter().map(|t| t.to_string()))
        );
        return Err(Violation::new(constraint, message));
    }
    let outputs = |g: &Graph| g.outputs().iter().map(|(_, v)| g.ty(*v).clone()).collect();
    match declared.iter().copied().eq(ins) {
        true => Ok(outputs(body)),
        false => body
            .with_input_types(ins)
            .map(|g| outputs(&g))
            .map_err(|error| Violation::new(constraint, format!("in `{}`: {error}", body.name))),
    }
}

/// A body's results. Operands may be of other sizes than it declares.
pub(crate) fn run_body(body: &Graph, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
    if check_inputs(body, ins).is_ok() {
        return interpret(body, ins).map_err(|e| e.to_string());
    }
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    let body = body.with_input_types(&types).map_err(|e| e.to_string())?;
    interpret(&body, ins).map_err(|e| e.to_string())
}

/// Whether every node of a body is pure.
pub(crate) fn is_pure(body: &Graph) -> bool {
    body.nodes().all(|(_, data)| data.op.is_pure())
}

/// A type that both are cases of, if they agree in element type and rank.
pub(crate) fn join(a: &TensorType, b: &TensorType) -> Option<TensorType> {
    let dim = |(x, y): (&Dim, &Dim)| if x == y { x.clone() } else { Dim::Unknown };
    (a.dtype == b.dtype && a.rank() == b.rank())
        .then(|| TensorType::new(a.dtype, a.dims.iter().zip(&b.dims).map(dim)))
}

/// The slice of a tensor at one position of an axis, without that axis.
pub(crate) fn slice_at(x: &Tensor, axis: usize, at: usize) -> Tensor {
    let (before, size, after) = around(x.shape(), axis);
    let bytes = after * x.dtype().size();
    let mut shape: Shape = x.shape().into();
    shape.remove(axis);
    let mut out = Tensor::zeros(x.dtype(), &shape);
    for (i, chunk) in out.bytes_mut().chunks_exact_mut(bytes.max(1)).enumerate().take(before) {
        let start = (i * size + at) * bytes;
        chunk.copy_from_slice(&x.bytes()[start..start + bytes]);
    }
    out
}

/// Tensors of one type side by side along a new axis. `like` gives the type if there are none.
pub(crate) fn stack(parts: &[Tensor], axis: usize, like: &TensorType) -> Result<Tensor, String> {
    let shape: Shape = match parts.first() {
        Some(part) => part.shape().into(),
        None => like.dims.iter().map(|d| d.as_fixed().unwrap_or(0)).collect(),
    };
    if parts.iter().any(|p| p.shape() != shape.as_slice() || p.dtype() != like.dtype) {
        return Err("the iterations give results of different types to stack".to_string());
    }
    let mut stacked = shape.clone();
    stacked.insert(axis, parts.len());
    let mut out = Tensor::zeros(like.dtype, &stacked);
    let bytes = shape[axis..].iter().product::<usize>() * like.dtype.size();
    for (i, chunk) in out.bytes_mut().chunks_exact_mut(bytes.max(1)).enumerate() {
        let (row, part) = (i / parts.len(), i % parts.len());
        chunk.copy_from_slice(&parts[part].bytes()[row * bytes..][..bytes]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stack_to_what_they_were_cut_from() {
        let x = Tensor::from_fn::<i32>(&[2, 3, 4], |i| i as i32);
        for axis in 0..3 {
            let parts: Vec<Tensor> = (0..x.shape()[axis]).map(|i| slice_at(&x, axis, i)).collect();
            assert_eq!(stack(&parts, axis, &parts[0].ty()), Ok(x.clone()));
        }
        let none = stack(&[], 1, &TensorType::fixed(DType::F32, &[2, 3])).unwrap();
        assert_eq!(none.shape(), [2, 0, 3]);
    }
}
