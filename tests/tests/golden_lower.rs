//! Lowering: the program and kernels that a graph becomes.

use std::fmt::Write as _;

use windlass_ir::loops::{print_kernel, print_program, verify_kernel};
use windlass_ir::text::parse_graph;
use windlass_passes::lower::{LowerOptions, lower_observed};
use windlass_tests::golden::{self, Command};

/// `lower [--no-fuse] [--explain]`: the program of a graph as it stands.
fn lower(command: &Command, input: &str) -> Result<String, String> {
    let graph = parse_graph(input).map_err(|error| error.to_string())?;
    let options = LowerOptions { fuse: !command.flag("--no-fuse"), ..LowerOptions::default() };
    let mut text = String::new();
    let program = lower_observed(&graph, &options, &mut |decision| {
        if command.flag("--explain") {
            let (from, to) = (decision.producer.join(", "), decision.consumer.join(", "));
            let outcome = decision.refusal.map_or("merged".to_string(), |refusal| refusal.to_string());
            let _ = writeln!(text, "// {from} into {to}: {outcome}");
        }
    })
    .map_err(|error| error.to_string())?;
    for kernel in &program.kernels {
        verify_kernel(kernel).map_err(|error| format!("{error}\n{}", print_kernel(kernel)))?;
    }
    text.push_str(&print_program(&program));
    Ok(text)
}

#[test]
fn golden_lower() {
    golden::check("lower", lower);
}
