//! For the tests of passes: run a pass, and run the graph before and after it.

use windlass_ir::graph::Values;
use windlass_ir::{Builder, DType, Error, Graph, Tensor, TensorType, Value, interpret};

use crate::cx::Options;
use crate::manager::run;
use crate::pipelines::{Stage, pass};
use crate::reason::{Outcome, Reason, Record};

/// A graph of f32 inputs of these shapes.
pub fn graph(
    shapes: &[&[usize]],
    body: impl FnOnce(&mut Builder, &[Value]) -> Result<Values, Error>,
) -> Graph {
    let mut b = Builder::new("test");
    let inputs: Vec<Value> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| b.input(&format!("in{i}"), TensorType::fixed(DType::F32, shape)))
        .collect();
    let outs = body(&mut b, &inputs).expect("the test's graph is valid");
    for (i, out) in outs.into_iter().enumerate() {
        b.output(&format!("out{i}"), out);
    }
    b.finish().expect("the test's graph has outputs")
}

/// Numbers from -2 to 2, the same for the same seed.
pub fn seeded(ty: &TensorType, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 22) as f64 - 2.0
    };
    let values: Vec<f64> = (0..ty.as_len().expect("fixed")).map(|_| next()).collect();
    Tensor::from_f64s(ty.dtype, &ty.shape(), &values)
}

/// A constant tensor of seeded numbers.
pub fn weights(b: &mut Builder, shape: &[usize], seed: u64) -> Value {
    b.constant(seeded(&TensorType::fixed(DType::F32, shape), seed))
}

/// Runs passes by name; the graph must still compute the same.
pub fn after(graph: &Graph, passes: &[&str]) -> (Graph, Vec<Record>) {
    let stages: Vec<Stage> =
        passes.iter().map(|name| Stage::Pass(pass(name).expect("the pass exists"))).collect();
    let options = Options { explain: true, ..Options::default() };
    let (changed, report) = run(graph, &stages, &options).expect("the passes run");
    same_results(graph, &changed);
    (changed, report.records)
}

/// Fails unless both graphs give nearly equal results on seeded inputs.
pub fn same_results(before: &Graph, after: &Graph) {
    let inputs: Vec<Tensor> =
        before.inputs().iter().enumerate().map(|(i, (_, v))| seeded(before.ty(*v), i as u64 + 1)).collect();
    let expected = interpret(before, &inputs).expect("the graph runs before");
    let found = interpret(after, &inputs).expect("the graph runs after");
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected.ty(), found.ty());
        let (expected, found) = (expected.to_f64s(), found.to_f64s());
        let largest = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (e, f) in expected.iter().zip(&found) {
            let close = (e - f).abs() <= 1e-5 * largest || e == f || e.is_nan() && f.is_nan();
            assert!(close, "{e} became {f}");
        }
    }
}

/// The number of nodes of each op, constants left out, as text.
pub fn ops(graph: &Graph) -> String {
    let counts = crate::stats::stats(graph).by_op;
    counts.iter().map(|(op, s)| format!("{op} {}", s.nodes)).collect::<Vec<_>>().join(", ")
}

/// Why a rule was blocked, if it was.
pub fn blocked<'r>(records: &'r [Record], rule: &str) -> Option<&'r Reason> {
    records.iter().filter(|r| r.rule == rule).find_map(|r| match &r.outcome {
        Outcome::Blocked(reason) => Some(reason),
        Outcome::Fired => None,
    })
}
