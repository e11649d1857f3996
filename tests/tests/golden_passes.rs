//! Each pass on graphs where it fires, where nothing matches and where something blocks it. Every graph
//! is also run by the interpreter, before and after.

use std::fmt::Write as _;

use windlass_ir::text::{parse_graph, print_graph};
use windlass_ir::{Graph, Tensor, TensorType, interpret};
use windlass_passes::{Options, Outcome, Stage, pass, pipeline, run};
use windlass_tests::golden::{self, Command};

/// `opt --pass NAME.. | --level NAME [--fuel N] [--batch N] [--shared NAME] [--memory-limit N]`: the graph after, then which rules fired where, and why
/// others did not.
fn opt(command: &Command, input: &str) -> Result<String, String> {
    let graph = parse_graph(input).map_err(|error| error.to_string())?;
    let mut stages: Vec<Stage> = Vec::new();
    for level in command.options("--level") {
        stages.extend(pipeline(level).ok_or_else(|| format!("there is no level `{level}`"))?.stages);
    }
    for name in command.options("--pass") {
        stages.push(Stage::Pass(pass(name).map_err(|error| error.to_string())?));
    }
    let fuel = command.options("--fuel").first().and_then(|fuel| fuel.parse().ok());
    let number = |name: &str| command.options(name).first().and_then(|text| text.parse().ok());
    let options = Options {
        explain: true,
        fuel,
        batch: number("--batch").unwrap_or(2),
        shared: command.options("--shared").into_iter().map(str::to_string).collect(),
        memory_limit: number("--memory-limit").map(|n| n as u64),
        ..Options::default()
    };
    let (after, report) = run(&graph, &stages, &options).map_err(|error| error.to_string())?;
    // What a batch of examples gives is another test's.
    if !command.options("--pass").contains(&"vmap") {
        same_results(&graph, &after)?;
    }
    let mut text = print_graph(&after);
    for record in &report.records {
        let _ = writeln!(text, "// {record}");
    }
    let fired = report.records.iter().filter(|r| r.outcome == Outcome::Fired).count() as u64;
    match fired == report.rewrites() {
        true => Ok(text),
        false => Err(format!("{fired} records of {} rewrites", report.rewrites())),
    }
}

/// Runs both graphs on the same inputs; named dimensions are 3.
fn same_results(before: &Graph, after: &Graph) -> Result<(), String> {
    let inputs: Vec<Tensor> =
        before.inputs().iter().enumerate().map(|(i, (_, v))| seeded(before.ty(*v), i as u64 + 1)).collect();
    let message = |error: windlass_ir::Error| error.to_string();
    let expected = interpret(before, &inputs).map_err(message)?;
    let found = interpret(after, &inputs).map_err(message)?;
    for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
        if expected.ty() != found.ty() {
            return Err(format!("output {i} changed from {} to {}", expected.ty(), found.ty()));
        }
        let (expected, found) = (expected.to_f64s(), found.to_f64s());
        let largest = expected.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
        for (e, f) in expected.iter().zip(&found) {
            if !((e - f).abs() <= 1e-5 * largest || e == f || e.is_nan() && f.is_nan()) {
                return Err(format!("an element of output {i} changed from {e} to {f}"));
            }
        }
    }
    Ok(())
}

fn seeded(ty: &TensorType, seed: u64) -> Tensor {
    let shape: Vec<usize> = ty.dims.iter().map(|dim| dim.as_fixed().unwrap_or(3)).collect();
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 22) as f64 - 2.0
    };
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_f64s(ty.dtype, &shape, &values)
}

#[test]
fn golden_passes() {
    golden::check("passes", opt);
}

#[test]
fn every_pass_has_golden_files() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/passes");
    let missing: Vec<&str> = windlass_passes::PASSES
        .iter()
        .filter(|pass| !root.join(pass.name).join("fires.wir").exists())
        .map(|pass| pass.name)
        .collect();
    assert!(missing.is_empty(), "no fires.wir for {}", missing.join(", "));
}
