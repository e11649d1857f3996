//! `early_outputs`: what makes nothing but outputs runs as soon as its operands are there.
//!
//! The updates of a training step stand behind all gradients. Fused with its update, the product that makes a gradient
//! would run there too, and everything it reads would be kept until then. The nodes stay the same; functions of single
//! elements, and other views of them, whose results nothing but such functions and outputs read, get another place: not
//! before what else reads the inputs that they read, for an output may be made in the memory of an input.

use cranelift_entity::{EntityRef, SecondaryMap};
use windlass_ir::graph::Def;
use windlass_ir::{Builder, Graph, Node, Op, Value};

use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;

/// The pass.
pub const PASS: Pass = Pass {
    name: "early_outputs",
    help: "run what makes nothing but outputs as soon as its operands are there",
    run,
};

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let order = order(graph);
    // Where constants stand does not matter.
    let runs = |node: &Node| !matches!(*graph.node(*node).op, Op::Constant(_));
    let before: Vec<Node> = graph.nodes().map(|(node, _)| node).filter(runs).collect();
    let moved =
        order.iter().filter(|node| runs(node)).zip(&before).filter(|(now, before)| now != before).count();
    if moved == 0 || !cx.fire("order", || format!("{moved} of {} nodes", before.len())) {
        return Ok(None);
    }
    let mut b = Builder::new(&graph.name);
    let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::new();
    for (name, value) in graph.inputs() {
        map[*value] = Some(b.input(name, graph.ty(*value).clone()));
    }
    for node in order {
        let data = graph.node(node);
        let ins: Vec<Value> = data.ins.iter().map(|&v| map[v].expect("operands come before users")).collect();
        let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
        data.outs.iter().zip(outs).for_each(|(&old, new)| map[old] = Some(new));
    }
    for (name, value) in graph.outputs() {
        b.output(name, map[*value].expect("every output is computed"));
    }
    Ok(Some(b.finish()?))
}

/// The nodes in their new order.
fn order(graph: &Graph) -> Vec<Node> {
    let users = graph.users();
    let count = graph.node_count();
    // Those that move, and constants, which stand before what reads them first.
    let mut moves = vec![false; count];
    for (node, data) in graph.nodes().rev() {
        let is_element =
            matches!(*data.op, Op::Elementwise(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_));
        let all = |out: &Value| users[*out].iter().all(|user| moves[user.index()]);
        moves[node.index()] =
            matches!(*data.op, Op::Constant(_)) || (is_element && data.outs.iter().all(all));
    }
    let last_reader = |value: Value| {
        let readers = users[value].iter().map(|user| user.index());
        readers.filter(|&user| !moves[user]).max()
    };
    // The node that each comes right behind: itself, or the last that one of its operands needs.
    let mut behind: Vec<Option<usize>> = vec![None; count];
    for (node, data) in graph.nodes() {
        let needs = data.ins.iter().filter_map(|&value| match graph.def(value) {
            Def::Input(_) => last_reader(value),
            Def::Output { node, .. } => behind[node.index()],
        });
        let at = if moves[node.index()] { needs.max() } else { Some(node.index()) };
        behind[node.index()] = at;
    }
    // What is made of inputs and constants alone, right before it is read first.
    for (node, data) in graph.nodes().rev().filter(|(node, _)| moves[node.index()]) {
        let at = node.index();
        if behind[at].is_none() {
            let readers = data.outs.iter().flat_map(|&out| users[out].iter());
            behind[at] = Some(readers.filter_map(|user| behind[user.index()]).min().unwrap_or(at));
        }
    }
    let mut order: Vec<Node> = graph.nodes().map(|(node, _)| node).collect();
    // A constant stands before the node itself, what moves after it.
    let place = |node: &Node| {
        let (at, moves) = (node.index(), moves[node.index()]);
        let after = moves && !matches!(*graph.node(*node).op, Op::Constant(_));
        (behind[at], after, !moves, at)
    };
    order.sort_by_key(place);
    order
}

#[cfg(test)]
mod tests {
    use windlass_ir::ops::MatMul;
    use windlass_ir::{DType, ScalarFn, TensorType};

    use super::*;
    use crate::testing::{after, same_results};

    /// Two products, then what is subtracted of them from inputs.
    #[test]
    fn updates_follow_their_gradients() {
        let mut b = Builder::new("updates");
        let ty = TensorType::fixed(DType::F32, &[4, 4]);
        let inputs: Vec<Value> = (0..3).map(|i| b.input(&format!("w{i}"), ty.clone())).collect();
        let first = b.push1(MatMul::default(), &[inputs[0], inputs[2]]).unwrap();
        let second = b.push1(MatMul::default(), &[first, inputs[1]]).unwrap();
        let rate = b.scalar(DType::F32, 0.1);
        for (i, gradient) in [first, second].into_iter().enumerate() {
            let step = b.map(ScalarFn::Mul, &[gradient, rate]).unwrap();
            let next = b.map(ScalarFn::Sub, &[inputs[i], step]).unwrap();
            b.output(&format!("next{i}"), next);
        }
        let graph = b.finish().unwrap();
        let (early, _) = after(&graph, &["early_outputs"]);
        let names: Vec<&str> = early.nodes().map(|(_, data)| data.op.name()).collect();
        assert_eq!(names, ["constant", "matmul", "mul", "sub", "matmul", "mul", "sub"]);
        same_results(&graph, &early);
        assert_eq!(after(&early, &["early_outputs"]).0, early);
    }

    /// What an update replaces is read by a later product.
    #[test]
    fn updates_wait_for_readers_of_what_they_replace() {
        let mut b = Builder::new("updates");
        let ty = TensorType::fixed(DType::F32, &[4, 4]);
        let inputs: Vec<Value> = (0..2).map(|i| b.input(&format!("w{i}"), ty.clone())).collect();
        let first = b.push1(MatMul::default(), &[inputs[0], inputs[1]]).unwrap();
        let second = b.push1(MatMul::default(), &[first, inputs[0]]).unwrap();
        let third = b.push1(MatMul::default(), &[second, second]).unwrap();
        let next = b.map(ScalarFn::Sub, &[inputs[0], first]).unwrap();
        b.output("next", next);
        b.output("third", third);
        let (early, _) = after(&b.finish().unwrap(), &["early_outputs"]);
        let names: Vec<&str> = early.nodes().map(|(_, data)| data.op.name()).collect();
        assert_eq!(names, ["matmul", "matmul", "sub", "matmul"]);
    }
}
