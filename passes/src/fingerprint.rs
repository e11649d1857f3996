//! A structural hash of a graph: equal graphs have equal fingerprints, in every run and on every machine
//! of one byte order.
//!
//! Names of nodes do not count, names of inputs and outputs do. Constants of more than
//! [`WHOLE_BYTES`] are sampled: hashing every weight after every pass would take longer than the
//! passes. So different fingerprints mean different graphs, and equal ones almost surely equal graphs.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;
use windlass_ir::attrs::Slot;
use windlass_ir::{Graph, Op, Tensor};

/// Constants of up to this many bytes are hashed whole.
pub const WHOLE_BYTES: usize = 4096;

/// How many places of a larger constant are hashed. Few: each brings a piece of the model's file into memory.
const SAMPLES: usize = 4;

/// The fingerprint of a graph.
pub fn fingerprint(graph: &Graph) -> u64 {
    let mut hasher = FxHasher::default();
    hash_graph(graph, &mut hasher);
    hasher.finish()
}

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
    if bytes.len() <= WHOLE_BYTES {
        bytes.hash(hasher);
        return;
    }
    let chunk = WHOLE_BYTES / SAMPLES;
    for i in 0..SAMPLES {
        let start = i * (bytes.len() - chunk) / (SAMPLES - 1);
        bytes[start..start + chunk].hash(hasher);
    }
}
