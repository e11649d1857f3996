//! Every op's `lower` agrees with its `eval`, on operands that the generator finds.

use std::collections::BTreeMap;

use windlass_ir::text::print_graph;
use windlass_ir::{Op, Tensor, Value, interpret_observed};
use windlass_tests::generate::{Options, generate, op_names};
use windlass_tests::lowering::check_lowering;

/// Checks every node of the graph of a seed.
fn check(seed: u64, options: &Options) -> Vec<String> {
    let generated = generate(seed, options);
    let mut values: BTreeMap<Value, Tensor> = BTreeMap::new();
    let ran = interpret_observed(&generated.graph, &generated.inputs, |value, tensor| {
        values.insert(value, tensor.clone());
    });
    ran.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let mut failures = Vec::new();
    for (_, data) in generated.graph.nodes().filter(|(_, data)| !matches!(*data.op, Op::Constant(_))) {
        let ins: Vec<Tensor> = data.ins.iter().map(|v| values[v].clone()).collect();
        if let Err(message) = check_lowering(&data.op, &ins) {
            let text = print_graph(&generated.graph);
            failures.push(format!("seed {seed}: {:?}\n  on {ins:?}\n  {message}\n{text}", data.op));
        }
    }
    failures
}

#[test]
fn lowered_ops_agree_with_their_definition() {
    let mut failures = Vec::new();
    for name in op_names() {
        let options = Options { nodes: 1, late: false, named: false, with: Some(name.to_string()) };
        for seed in 0..60 {
            failures.extend(check(seed, &options));
        }
    }
    failures.truncate(20);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
