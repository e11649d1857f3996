//! Random graphs mean the same after every pipeline.

use windlass_ir::interpret;
use windlass_ir::text::print_graph;
use windlass_passes::{Options as PassOptions, PIPELINES, run};
use windlass_tests::bounds::bounds;
use windlass_tests::generate::{Options, generate, repeat, seeds};
use windlass_tests::lowering::compare_elements;

#[test]
fn pipelines_keep_the_meaning() {
    let mut failures = Vec::new();
    for seed in seeds(400) {
        let generated = generate(seed, &Options::default());
        let bounds = bounds(&generated);
        for pipeline in PIPELINES {
            let changed = run(&generated.graph, pipeline.stages, &PassOptions::default());
            let outputs = match &changed {
                Err(error) => Err(error.to_string()),
                Ok((graph, _)) => interpret(graph, &generated.inputs).map_err(|error| error.to_string()),
            };
            let checked = outputs.and_then(|outputs| {
                let pairs = outputs.iter().zip(&generated.outputs).enumerate();
                pairs.into_iter().try_for_each(|(i, (found, expected))| {
                    compare_elements(found, expected, &bounds[i]).map_err(|e| format!("output {i}: {e}"))
                })
            });
            if let Err(wrong) = checked {
                let after = changed.map_or_else(|_| String::new(), |(graph, _)| print_graph(&graph));
                let before = print_graph(&generated.graph);
                let (level, again) = (pipeline.name, repeat(seed, "generated_passes"));
                failures.push(format!("== {again}\n{level}: {wrong}\n{before}after\n{after}"));
            }
        }
    }
    let count = failures.len();
    failures.truncate(8);
    assert!(count == 0, "{count} failures, the first of which:\n{}", failures.join("\n"));
}
