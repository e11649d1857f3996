//! Random graphs as code, at every pipeline: the loop interpreter gives what the graph means, machine code
//! in memory gives the loops' bits for any number of threads and every width of vectors, and code from an object
//! file gives those of the code in memory. Code of loops laid out for wider vectors gives the bits of those laid out for narrower ones.

use windlass_codegen::{Options as CodeOptions, Target, jit, jit_and_run};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{Native, Program, expand_kernel};
use windlass_ir::text::print_graph;
use windlass_ir::{Graph, Tensor, TensorType};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_passes::{Options as PassOptions, PIPELINES, run};
use windlass_runtime::Pool;
use windlass_tests::aot::{Batch, Driver};
use windlass_tests::bounds::bounds;
use windlass_tests::generate::{Generated, Options, generate, repeat, seeds};
use windlass_tests::lowering::compare_elements;

/// Programs linked at a time.
const BATCH: usize = 48;

/// A program and the pipeline it comes from.
struct Variant {
    pipeline: usize,
    program: Program,
}

/// The programs of a graph that differ, each with the first pipeline and the least width that give it.
fn programs(graph: &Graph, widths: &[usize]) -> Result<Vec<Variant>, String> {
    let mut programs: Vec<Variant> = Vec::new();
    for (at, pipeline) in PIPELINES.iter().enumerate() {
        let fail = |error: String| format!("{}: {error}", pipeline.name);
        let (graph, _) =
            run(graph, pipeline.stages, &PassOptions::default()).map_err(|e| fail(e.to_string()))?;
        let mut machines: Vec<Machine> = widths.iter().map(|&bits| Machine::with_vectors(bits)).collect();
        machines.push(Machine { byte_products: true, ..Machine::with_vectors(512) });
        for machine in machines {
            let options = LowerOptions { fuse: at > 0, machine, ..LowerOptions::default() };
            let program = lower(&graph, &options).map_err(|e| fail(e.to_string()))?;
            if programs.iter().all(|known| known.program != program) {
                programs.push(Variant { pipeline: at, program });
            }
        }
    }
    Ok(programs)
}

/// Holds the loops to the graph. Their outputs.
fn check_loops(generated: &Generated, bounds: &[Vec<f64>], program: &Program) -> Result<Vec<Tensor>, String> {
    let mut expanded = program.clone();
    expanded.kernels.iter_mut().for_each(|kernel| *kernel = expand_kernel(kernel, Native::default()));
    let found = run_program(&expanded, &generated.inputs).map_err(|e| e.to_string())?;
    for (i, (found, expected)) in found.iter().zip(&generated.outputs).enumerate() {
        compare_elements(found, expected, &bounds[i])
            .map_err(|e| format!("loops: output {i} of {}: {e}", origin(&generated.graph, i)))?;
    }
    Ok(found)
}

/// The op that gives an output.
fn origin(graph: &Graph, output: usize) -> &'static str {
    graph.def_node(graph.outputs()[output].1).map_or("an input", |data| data.op.name())
}

/// What stands before and behind an output while code runs, and for how many bytes.
const FENCE: u8 = 0xa5;
const FENCE_BYTES: usize = 256;

/// Holds machine code in memory to the loops, and to its outputs.
fn check_jit(
    program: &Program,
    bits: usize,
    inputs: &[Tensor],
    expected: &[Tensor],
    pools: &[Pool],
) -> Result<(), String> {
    let options = CodeOptions { vector_bits: Some(bits), ..CodeOptions::default() };
    // Enough work to be worth both threads.
    let mut program = program.clone();
    program.steps.iter_mut().for_each(|step| step.flops = 1 << 40);
    let (executable, _) = jit(&program, &options).map_err(|e| e.to_string())?;
    let inputs: Vec<&[u8]> = inputs.iter().map(Tensor::bytes).collect();
    let runs = (1..).zip(pools).flat_map(|(threads, pool)| [(threads, pool, false), (threads, pool, true)]);
    for (threads, pool, meanwhile) in runs {
        let when = if meanwhile { ", while code is made" } else { "" };
        let fail =
            |message: String| format!("code in memory, {bits} bits, {threads} threads{when}: {message}");
        let mut fenced: Vec<Vec<u8>> =
            expected.iter().map(|tensor| vec![FENCE; tensor.bytes().len() + 2 * FENCE_BYTES]).collect();
        let mut outputs: Vec<&mut [u8]> = fenced
            .iter_mut()
            .zip(expected)
            .map(|(bytes, tensor)| &mut bytes[FENCE_BYTES..][..tensor.bytes().len()])
            .collect();
        match meanwhile {
            true => jit_and_run(&program, &options, pool, &inputs, &mut outputs)
                .map(drop)
                .map_err(|e| fail(e.to_string()))?,
            false => executable.run(pool, &inputs, &mut outputs).map_err(|e| fail(e.to_string()))?,
        }
        let mut found = Vec::new();
        for (i, (bytes, tensor)) in fenced.iter().zip(expected).enumerate() {
            let (before, rest) = bytes.split_at(FENCE_BYTES);
            let (inside, behind) = rest.split_at(tensor.bytes().len());
            if before.iter().chain(behind).any(|&byte| byte != FENCE) {
                return Err(fail(format!("writes outside output {i}")));
            }
            found.extend(Tensor::from_bytes(tensor.dtype(), tensor.shape(), inside));
        }
        same_bits(&found, expected).map_err(fail)?;
    }
    Ok(())
}

fn same_bits(found: &[Tensor], expected: &[Tensor]) -> Result<(), String> {
    let pairs = found.iter().zip(expected).enumerate();
    match pairs.into_iter().find(|(_, (found, expected))| found.bytes() != expected.bytes()) {
        Some((i, (found, expected))) => Err(format!("output {i} is {found:?}, expected {expected:?}")),
        None => Ok(()),
    }
}

fn report(seed: u64, what: &str, graph: &Graph) -> String {
    format!("== {}\n{what}\n{}", repeat(seed, "generated_code"), print_graph(graph))
}

/// A graph with its named dimensions replaced by the inputs' sizes.
fn bound(generated: &Generated) -> Result<Graph, String> {
    let types: Vec<TensorType> = generated.inputs.iter().map(Tensor::ty).collect();
    generated.graph.with_input_types(&types).map_err(|e| e.to_string())
}

#[test]
fn code_gives_what_graphs_mean() {
    let options = Options { late: false, ..Options::default() };
    let pools = [Pool::new(1), Pool::new(2)];
    let driver = Driver::new();
    let mut failures: Vec<String> = Vec::new();
    let (mut compiled, mut linked) = (0, 0);
    let mut batch = Batch::default();
    let mut waiting: Vec<(u64, &str, Vec<Tensor>)> = Vec::new();
    let widths = Target::host().vector_widths().expect("code is made for this machine");
    let all = seeds(300);
    let last = all.end.saturating_sub(1);
    for seed in all {
        let generated = generate(seed, &options);
        let fail = |what: String| report(seed, &what, &generated.graph);
        let bounds = bounds(&generated);
        match bound(&generated).and_then(|graph| programs(&graph, &widths)) {
            Err(message) => failures.push(fail(message)),
            Ok(programs) => {
                // What loops of the narrowest layout give, of which the others have to give the bits.
                let mut narrow: Option<(usize, Vec<Tensor>)> = None;
                for Variant { pipeline, program } in programs {
                    let level = PIPELINES[pipeline].name;
                    let expected = match &narrow {
                        Some((known, outputs)) if *known == pipeline => Ok(outputs.clone()),
                        _ => check_loops(&generated, &bounds, &program),
                    };
                    let checked = expected.and_then(|expected| {
                        narrow = Some((pipeline, expected.clone()));
                        for &bits in &widths {
                            check_jit(&program, bits, &generated.inputs, &expected, &pools)?;
                        }
                        // Each width in turn.
                        let bits = widths[(linked + batch.len()) % widths.len()];
                        if batch.add(&program, bits, &generated.inputs, &expected)? {
                            waiting.push((seed, level, expected));
                        }
                        Ok(())
                    });
                    compiled += 1;
                    failures.extend(checked.err().map(|message| fail(format!("{level}: {message}"))));
                }
            }
        }
        if batch.len() >= BATCH || seed == last {
            linked += batch.len();
            match driver.run(std::mem::take(&mut batch)) {
                Err(message) => failures.push(format!("== a batch that ends at seed {seed}: {message}")),
                Ok(found) => {
                    for (found, (seed, level, expected)) in found.iter().zip(&waiting) {
                        if let Err(message) = same_bits(found, expected) {
                            let what = format!("{level}: object file: {message}");
                            failures.push(report(*seed, &what, &generate(*seed, &options).graph));
                        }
                    }
                }
            }
            waiting.clear();
        }
    }
    println!("{compiled} programs compiled, {linked} of them linked");
    let count = failures.len();
    failures.truncate(8);
    assert!(count == 0, "{count} programs differ, the first of which:\n{}", failures.join("\n"));
    assert!(
        compiled < 100 || linked * 2 > compiled,
        "only {linked} of {compiled} programs were made object files"
    );
}
