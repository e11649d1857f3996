//! Random graphs: valid, the same through text, and evaluated without an error.

use std::collections::BTreeSet;

use windlass_ir::text::{parse_graph, print_graph};
use windlass_ir::{DType, interpret, interpret_observed, verify};
use windlass_tests::generate::{Generated, Options, generate, op_names};

fn check(seed: u64, options: &Options) -> Generated {
    let generated = generate(seed, options);
    let graph = &generated.graph;
    let fail = |what: &str| -> ! { panic!("seed {seed} of {options:?}: {what}\n{}", print_graph(graph)) };
    if let Err(error) = verify(graph) {
        fail(&error.to_string());
    }
    match parse_graph(&print_graph(graph)) {
        Ok(parsed) if parsed == *graph => {}
        Ok(parsed) => fail(&format!("parses as another graph\n{}", print_graph(&parsed))),
        Err(error) => fail(&error.to_string()),
    }
    match interpret(graph, &generated.inputs) {
        Ok(outputs) if outputs == generated.outputs => {}
        Ok(outputs) => fail(&format!("{outputs:?}, expected {:?}", generated.outputs)),
        Err(error) => fail(&error.to_string()),
    }
    generated
}

#[test]
fn graphs_are_valid_and_print_and_run() {
    let mut dtypes = BTreeSet::new();
    let mut names = BTreeSet::new();
    for seed in 0..400 {
        let generated = check(seed, &Options::default());
        for (_, data) in generated.graph.nodes() {
            names.insert(data.op.name());
            dtypes.extend(data.outs.iter().map(|&v| generated.graph.ty(v).dtype));
        }
    }
    assert_eq!(dtypes.len(), DType::ALL.len(), "only {dtypes:?}");
    let missing: Vec<_> = op_names().into_iter().filter(|name| !names.contains(name)).collect();
    assert!(missing.is_empty(), "never generated: {missing:?} (they need a row in generate/propose.rs)");
}

#[test]
fn every_op_can_be_asked_for() {
    for name in op_names() {
        let with =
            |seed| Options { nodes: 1, with: Some(name.to_string()), late: seed % 2 == 0, named: true };
        let found = (0..12).any(|seed| {
            let generated = check(seed, &with(seed));
            generated.graph.nodes().any(|(_, data)| data.op.name() == name)
        });
        assert!(found, "{name} has no graph: it needs a row in generate/propose.rs");
    }
}

/// A sum of products that is zero may have either sign, which bits would tell.
#[test]
fn bits_of_floats_are_taken_where_they_are_not_zero() {
    let options = Options { with: Some("bitcast".to_string()), ..Options::default() };
    for seed in 0..100 {
        let generated = generate(seed, &options);
        let mut zeros = BTreeSet::new();
        let observe = |value, tensor: &windlass_ir::Tensor| {
            if tensor.dtype().is_float() && tensor.to_f64s().contains(&0.0) {
                zeros.insert(value);
            }
        };
        interpret_observed(&generated.graph, &generated.inputs, observe).unwrap();
        for (_, data) in generated.graph.nodes().filter(|(_, data)| data.op.name() == "bitcast") {
            assert!(!zeros.contains(&data.ins[0]), "seed {seed}:\n{}", print_graph(&generated.graph));
        }
    }
}

#[test]
fn a_seed_is_a_graph() {
    let one = generate(7, &Options::default());
    assert_eq!(one.graph, generate(7, &Options::default()).graph);
    assert_ne!(one.graph, generate(8, &Options::default()).graph);
    let plain = Options { late: false, named: false, ..Options::default() };
    for seed in 0..50 {
        let graph = check(seed, &plain).graph;
        let all_fixed =
            (0..graph.value_count()).all(|v| graph.ty(windlass_ir::Value::at(v)).as_shape().is_some());
        assert!(all_fixed, "seed {seed}");
    }
}
