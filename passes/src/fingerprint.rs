//! A hash of an op with its attributes: equal ops have equal ones, in every run and on every machine of one byte order.
//!
//! Only the beginning of a constant counts. Each place of it that is read brings a piece of the model's file into memory,
//! and what has equal fingerprints is compared before anyone relies on it.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;
use windlass_ir::attrs::Slot;
use windlass_ir::{Graph, Op, Tensor};

/// How many bytes of a constant are hashed.
const BEGINNING: usize = 256;

/// The fingerprint of an op with its attributes.
pub fn op_fingerprint(op: &Op) -> u64 {
    let mut hasher = FxHasher::default();
    hash_op(op, &mut hasher);
    hasher.finish()
}

fn hash_graph(graph: &Graph, hasher: &mut FxHasher) {
    graph.name.hash(hasher);
    for (name, value) in graph.inputs() {
        (name, graph.ty(*value)).hash(hasher);
    }
    for (_, data) in graph.nodes() {
        hash_op(&data.op, hasher);
        data.ins.hash(hasher);
        for &out in &data.outs {
            graph.ty(out).hash(hasher);
        }
    }
    graph.outputs().hash(hasher);
}

fn hash_op(op: &Op, hasher: &mut FxHasher) {
    op.name().hash(hasher);
    // Constants are read in place; `attrs` takes a mutable op only because it also serves parsers.
    if let Op::Constant(constant) = op {
        hash_tensor(&constant.value, hasher);
        return;
    }
    let mut visit = |name: &'static str, slot: Slot<'_>| {
        name.hash(hasher);
        match slot {
            Slot::Int(x) => x.hash(hasher),
            Slot::Ints(x) => x.hash(hasher),
            Slot::Float(x) => x.to_bits().hash(hasher),
            Slot::Floats(x) => x.iter().for_each(|x| x.to_bits().hash(hasher)),
            Slot::Text(x) => x.hash(hasher),
            Slot::Bool(x) => x.hash(hasher),
            Slot::Keyword(x) => x.word().hash(hasher),
            Slot::DType(x) => x.hash(hasher),
            Slot::Tensor(x) => hash_tensor(x, hasher),
            Slot::Graph(x) => hash_graph(x, hasher),
            Slot::Late(x) => x.hash(hasher),
        }
        Ok(())
    };
    op.clone().attrs(&mut visit).expect("reading attributes cannot fail");
}

fn hash_tensor(tensor: &Tensor, hasher: &mut FxHasher) {
    tensor.dtype().hash(hasher);
    tensor.shape().hash(hasher);
    let bytes = tensor.raw_bytes();
    bytes[..bytes.len().min(BEGINNING)].hash(hasher);
}
