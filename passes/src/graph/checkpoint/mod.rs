//! `checkpoint`: computes values again in place of keeping them, so that less memory is in use at a time.
//!
//! A training step keeps most of what its forward part computes until the backward part, in the opposite order, needs
//! it. Where that is more than [`Options::memory_limit`](crate::Options::memory_limit), only the values between
//! segments of the forward part are kept, and a segment is computed again right before what needs it. Which values are
//! kept is decided in `plan.rs`; the results have the same bits.
//!
//! What is computed again reads a kept value through `recompute`, which waits for the node before: so the copies are
//! equal to nothing else for `cse`, and stand where they are needed.
//!
//! Source: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost" (2016).

mod liveness;
mod plan;

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::Values;
use windlass_ir::ops::Recompute;
use windlass_ir::{Builder, Graph, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
pub use liveness::peak;
use liveness::{Turn, Version};

/// The pass.
pub const PASS: Pass = Pass {
    name: "checkpoint",
    help: "compute values of a training step again in place of keeping them",
    run,
};

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let Some(turns) = plan::plan(graph, cx.options.memory_limit) else { return Ok(None) };
    let copies = turns.iter().filter(|turn| turn.version == Version::Copy).count();
    if copies == 0 || !cx.fire("recompute", || format!("{copies} of {} nodes", graph.node_count())) {
        return Ok(None);
    }
    rewritten(graph, &turns).map(Some)
}

/// The graph whose nodes are in this order, some of them twice.
fn rewritten(graph: &Graph, turns: &[Turn]) -> Result<Graph, Error> {
    let mut b = Builder::new(&graph.name);
    // What stands for each value, and for its copy.
    let mut map: [SecondaryMap<Value, Option<Value>>; 2] = [SecondaryMap::new(), SecondaryMap::new()];
    for (name, value) in graph.inputs() {
        map[0][*value] = Some(b.input(name, graph.ty(*value).clone()));
    }
    // The last result before the copies that one node needs.
    let mut before: Option<Value> = None;
    let mut last: Option<Value> = None;
    for turn in turns {
        let data = graph.node(turn.node);
        let mut ins: Values = (turn.ins.iter())
            .map(|&(value, version)| map[version as usize][value].expect("operands come before users"))
            .collect();
        match turn.version {
            Version::First => before = None,
            Version::Copy => {
                before = before.or(last);
                let apart = turn.ins.iter().any(|(_, version)| *version == Version::Copy);
                let kept = (0..ins.len()).find(|&i| graph.def_node(turn.ins[i].0).is_some());
                if let (false, Some(after), Some(slot)) = (apart, before, ins.get_mut(kept.unwrap_or(0))) {
                    *slot = b.push(Recompute, &[*slot, after], data.name.clone())?[0];
                }
            }
        }
        let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
        last = outs.first().copied().or(last);
        for (&old, new) in data.outs.iter().zip(outs) {
            map[turn.version as usize][old] = Some(new);
        }
    }
    for (name, value) in graph.outputs() {
        b.output(name, map[0][*value].expect("every output is computed"));
    }
    Ok(b.finish()?)
}

#[cfg(test)]
mod tests {
    use windlass_ir::ops::{MatMul, Reduce, ReduceKind};
    use windlass_ir::{DType, ScalarFn, Tensor, TensorType, gradients, interpret};

    use super::*;
    use crate::cx::Options;
    use crate::manager::run;
    use crate::pipelines::{Stage, pipeline};

    /// The gradients of a chain of layers, of its weights.
    fn chain(layers: usize) -> Graph {
        let mut b = Builder::new("chain");
        let mut x = b.input("x", TensorType::fixed(DType::F32, &[64, 16]));
        let mut weights = Vec::new();
        for i in 0..layers {
            let w = b.input(&format!("w{i}"), TensorType::fixed(DType::F32, &[16, 16]));
            weights.push(w);
            let y = b.push1(MatMul::default(), &[x, w]).unwrap();
            x = b.map(ScalarFn::Tanh, &[y]).unwrap();
        }
        let loss = b.push1(Reduce::over(ReduceKind::Sum, &[0, 1], false), &[x]).unwrap();
        let one = b.scalar(DType::F32, 1.0);
        let flows = gradients(&mut b, &[(loss, one)], &weights).unwrap();
        b.output("loss", loss);
        for (i, flow) in flows.into_iter().enumerate() {
            b.output(&format!("d{i}"), flow.unwrap());
        }
        b.finish().unwrap()
    }

    #[test]
    fn a_chain_takes_less_memory_and_gives_the_same_bits() {
        let (graph, _) = run(&chain(32), pipeline("O2").unwrap().stages, &Options::default()).unwrap();
        let whole = peak(&graph);
        let inputs: Vec<Tensor> = (graph.inputs().iter())
            .map(|(_, v)| {
                Tensor::from_fn::<f32>(&graph.ty(*v).shape(), |i| ((i * 7) % 11) as f32 / 11.0 - 0.5)
            })
            .collect();
        let expected = interpret(&graph, &inputs).unwrap();
        for limit in [whole * 3 / 4, whole / 2, whole * 2 / 5] {
            let options = Options { memory_limit: Some(limit), ..Options::default() };
            let (less, _) = run(&graph, &[Stage::Pass(&PASS)], &options).unwrap();
            assert!(peak(&less) <= limit, "{} of {whole}", peak(&less));
            assert_eq!(interpret(&less, &inputs).unwrap(), expected);
            // Nothing that is computed again is replaced by what it equals.
            let (cleaned, _) = run(&less, pipeline("O2").unwrap().stages, &Options::default()).unwrap();
            assert_eq!(peak(&cleaned), peak(&less));
        }
        // What fits stays as it is.
        let options = Options { memory_limit: Some(whole), ..Options::default() };
        let (same, _) = run(&graph, &[Stage::Pass(&PASS)], &options).unwrap();
        assert_eq!(same, graph);
    }
}
