//! `grad`: appends the gradients of the first result, which is one float, with respect to every float input.
//!
//! They are results called `d_` and the input's name; of an input that nothing depends on, zeros. Sizes are fixed.

use windlass_ir::{Builder, Error as IrError, Graph, Tensor, Value, gradients};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;

/// The pass.
pub const PASS: Pass =
    Pass { name: "grad", help: "append the gradients of the first result by every float input", run };

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let mut b = Builder::new(&graph.name);
    let inputs: Vec<Value> =
        graph.inputs().iter().map(|(name, v)| b.input(name, graph.ty(*v).clone())).collect();
    let outs = b.inline(graph, &inputs)?;
    let Some((&first, (name, _))) = outs.first().zip(graph.outputs().first()) else { return Ok(None) };
    let ty = b.ty(first).clone();
    if !ty.dtype.is_float() || ty.as_len() != Some(1) {
        return Err(IrError::NotFloat { value: format!("result `{name}`"), found: ty }.into());
    }
    if !cx.fire("gradient", || format!("result `{name}`")) {
        return Ok(None);
    }
    let one = b.constant(Tensor::from_f64s(ty.dtype, &ty.shape(), &[1.0]));
    let wanted: Vec<usize> = (0..inputs.len()).filter(|&i| b.ty(inputs[i]).dtype.is_float()).collect();
    let wrt: Vec<Value> = wanted.iter().map(|&i| inputs[i]).collect();
    let flows = gradients(&mut b, &[(first, one)], &wrt)?;
    for ((name, _), out) in graph.outputs().iter().zip(outs) {
        b.output(name, out);
    }
    for (&i, flow) in wanted.iter().zip(flows) {
        let ty = b.ty(inputs[i]).clone();
        let flow = match (flow, ty.as_shape()) {
            (Some(flow), _) => flow,
            (None, Some(shape)) => b.constant(Tensor::zeros(ty.dtype, &shape)),
            (None, None) => {
                return Err(
                    IrError::GradientSizes { node: format!("input `{}`", graph.inputs()[i].0) }.into()
                );
            }
        };
        b.output(&format!("d_{}", graph.inputs()[i].0), flow);
    }
    Ok(Some(b.finish()?))
}
