//! What a graph holds and what running it takes.
//!
//! Conventions: a multiply-add counts as two operations, any other scalar function as one, moving
//! data as none. A contraction counts its multiply-adds alone; a reduction one operation an element
//! read. Sizes that are not known count as 1.

use std::collections::BTreeMap;

use windlass_ir::{Dim, Graph, Node, Op, TensorType, Value};

/// Counts over a graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Nodes that compute something: constants are not counted.
    pub nodes: usize,
    /// Nodes by op.
    pub by_op: BTreeMap<&'static str, OpStats>,
    /// Constants.
    pub constants: usize,
    /// Elements of floating-point constants of more than one element: the parameters.
    pub parameters: u64,
    /// Bytes of all constants.
    pub constant_bytes: u64,
    /// Scalar operations of one run.
    pub work: u64,
    /// Bytes of all results, were each stored.
    pub result_bytes: u64,
}

/// Counts over the nodes of one op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// How many.
    pub nodes: usize,
    /// Scalar operations of one run.
    pub work: u64,
}

/// Counts over a graph.
pub fn stats(graph: &Graph) -> Stats {
    let mut stats = Stats::default();
    for (node, data) in graph.nodes() {
        if let Op::Constant(constant) = &*data.op {
            let value = &constant.value;
            stats.constants += 1;
            stats.constant_bytes += value.raw_bytes().len() as u64;
            if value.dtype().is_float() && value.len() > 1 {
                stats.parameters += value.len() as u64;
            }
            continue;
        }
        let work = node_work(graph, node);
        stats.nodes += 1;
        stats.work = stats.work.saturating_add(work);
        stats.result_bytes =
            stats.result_bytes.saturating_add(data.outs.iter().map(|&v| bytes(graph, v)).sum());
        let entry = stats.by_op.entry(data.op.name()).or_default();
        entry.nodes += 1;
        entry.work = entry.work.saturating_add(work);
    }
    stats
}

/// The number of elements, unknown sizes counting as 1.
pub fn elements(ty: &TensorType) -> u64 {
    ty.dims.iter().fold(1, |n, dim| n.saturating_mul(dim.as_fixed().unwrap_or(1) as u64))
}

/// The bytes of a value, unknown sizes counting as 1.
pub fn bytes(graph: &Graph, value: Value) -> u64 {
    let ty = graph.ty(value);
    elements(ty).saturating_mul(ty.dtype.size() as u64)
}

/// The scalar operations of a node.
pub fn node_work(graph: &Graph, node: Node) -> u64 {
    let data = graph.node(node);
    let made: u64 = data.outs.iter().map(|&v| elements(graph.ty(v))).sum();
    let size = |dim: &Dim| dim.as_fixed().unwrap_or(1) as u64;
    match &*data.op {
        Op::Constant(_)
        | Op::ShapeOf(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Concat(_)
        | Op::Flatten(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
        | Op::GatherNd(_)
        | Op::Pad(_)
        | Op::Slice(_)
        | Op::Squeeze(_)
        | Op::Tile(_)
        | Op::Unsqueeze(_) => 0,
        Op::Reduce(_) | Op::ArgReduce(_) => elements(graph.ty(data.ins[0])),
        // Each result element takes a multiply-add a weight of its output channel.
        Op::Conv(op) => {
            let w = graph.ty(data.ins[1]);
            let out = w.dims.get(if op.channels_last { w.rank() - 1 } else { 0 });
            let taps = elements(w) / out.map_or(1, size).max(1);
            made.saturating_mul(taps).saturating_mul(2)
        }
        Op::Pool(op) => made.saturating_mul(op.kernel.iter().product::<i64>().max(1) as u64),
        Op::BatchNorm(_) => made.saturating_mul(2),
        // A maximum, a difference, an exponential, a sum and a quotient.
        Op::Softmax(_) => made.saturating_mul(5),
        // Two passes for the statistics, then a difference, a product, scale and bias.
        Op::LayerNorm(_) | Op::GroupNorm(_) => made.saturating_mul(8),
        Op::Gelu(_) => made.saturating_mul(5),
        Op::Silu(_) => made.saturating_mul(3),
        Op::Lrn(op) => made.saturating_mul(op.size.max(1) as u64 * 2 + 3),
        Op::MatMul(op) => {
            let a = graph.ty(data.ins[0]);
            let k = &a.dims[a.rank() - if op.trans_a { 2 } else { 1 }];
            made.saturating_mul(size(k)).saturating_mul(2)
        }
        // What is left computes each element of its results by about one function.
        _ => made,
    }
}
