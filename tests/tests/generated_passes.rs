//! Random graphs mean the same after every pipeline, and as programs of loops.

use windlass_ir::loops::expand_kernel;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::text::print_graph;
use windlass_ir::{DType, Graph, Tensor, interpret, interpret_observed};
use windlass_passes::lower::{LowerOptions, lower};
use windlass_passes::{Options as PassOptions, PIPELINES, run};
use windlass_tests::generate::{Generated, Options, generate, seeds};
use windlass_tests::lowering::compare_within;

/// What results may differ by: some units of the coarsest float type in the graph at the size of its
/// largest value, for what cancels on the way cannot be seen at the end.
fn tolerance(graph: &Graph, inputs: &[Tensor]) -> f64 {
    let (mut largest, mut unit) = (1.0f64, 0.0f64);
    let observed = interpret_observed(graph, inputs, |_, tensor| {
        if tensor.dtype().is_float() {
            unit = unit.max(match tensor.dtype() {
                DType::F16 => 2f64.powi(-11),
                DType::BF16 => 2f64.powi(-8),
                DType::F32 => 2f64.powi(-24),
                _ => 2f64.powi(-53),
            });
            let finite = tensor.to_f64s().into_iter().filter(|x| x.is_finite());
            largest = finite.fold(largest, |m, x| m.max(x.abs()));
        }
    });
    observed.expect("generated graphs evaluate");
    64.0 * unit * largest
}

fn differences(generated: &Generated, outputs: &[Tensor]) -> Option<String> {
    let tolerance = tolerance(&generated.graph, &generated.inputs);
    let pairs = outputs.iter().zip(&generated.outputs).enumerate();
    pairs.into_iter().find_map(|(i, (found, expected))| {
        let wrong = compare_within(found, expected, tolerance).err()?;
        Some(format!("output {i}: {wrong}"))
    })
}

fn report(failures: Vec<String>) {
    let count = failures.len();
    let shown: Vec<String> = failures.into_iter().take(8).collect();
    assert!(count == 0, "{count} failures, the first of which:\n{}", shown.join("\n"));
}

#[test]
fn pipelines_keep_the_meaning() {
    let mut failures = Vec::new();
    for seed in seeds(400) {
        let generated = generate(seed, &Options::default());
        for pipeline in PIPELINES {
            let changed = run(&generated.graph, pipeline.stages, &PassOptions::default());
            let wrong = match &changed {
                Err(error) => Some(error.to_string()),
                Ok((graph, _)) => match interpret(graph, &generated.inputs) {
                    Err(error) => Some(error.to_string()),
                    Ok(outputs) => differences(&generated, &outputs),
                },
            };
            if let Some(wrong) = wrong {
                let after = changed.map_or_else(|_| String::new(), |(graph, _)| print_graph(&graph));
                let before = print_graph(&generated.graph);
                failures.push(format!("== seed {seed}, {}: {wrong}\n{before}after\n{after}", pipeline.name));
            }
        }
    }
    report(failures);
}

#[test]
fn programs_of_loops_agree_with_the_graph() {
    let options = Options { late: false, named: false, ..Options::default() };
    let mut failures = Vec::new();
    let mut ran = 0;
    for seed in seeds(300) {
        let generated = generate(seed, &options);
        let result = lower(&generated.graph, &LowerOptions::default())
            .map_err(|error| error.to_string())
            .and_then(|mut program| {
                for kernel in &mut program.kernels {
                    *kernel = expand_kernel(kernel);
                }
                run_program(&program, &generated.inputs).map_err(|error| error.to_string())
            });
        let wrong = match result {
            Ok(outputs) => {
                ran += 1;
                differences(&generated, &outputs)
            }
            Err(message) => Some(message),
        };
        if let Some(wrong) = wrong {
            failures.push(format!("== seed {seed}: {wrong}\n{}", print_graph(&generated.graph)));
        }
    }
    report(failures);
    assert!(ran > 0, "no program ran");
}
