//! A program as text: its buffers and steps, then its kernels.

use std::fmt::Write;

use windlass_ir::loops::{Place, Program, Work, print_kernel};

/// What runs in which order on which buffers, then each kernel's loops.
pub fn program(program: &Program) -> String {
    let mut text = String::new();
    let ports = [("input", &program.inputs), ("output", &program.outputs)];
    for (what, list) in ports {
        for (index, (name, ty)) in list.iter().enumerate() {
            line(&mut text, format_args!("// {what} {index} `{name}`: {ty}"));
        }
    }
    for (index, tensor) in program.constants.iter().enumerate() {
        line(&mut text, format_args!("// constant {index}: {}", tensor.ty()));
    }
    line(&mut text, format_args!("// arena: {} bytes", program.arena_bytes));
    for (index, step) in program.steps.iter().enumerate() {
        let args: Vec<String> = step.args.iter().map(place).collect();
        let what = match &step.work {
            Work::Kernel(kernel) => program.kernels[*kernel as usize].name.clone(),
            Work::Interpret { op, .. } => format!("interpret {}", op.name()),
        };
        let origin = step.origin.join(" + ");
        line(&mut text, format_args!("// step {index}: {what}({}) for {origin}", args.join(", ")));
    }
    for kernel in &program.kernels {
        line(&mut text, format_args!("\n{}", print_kernel(kernel).trim_end()));
    }
    text
}

fn place(place: &Place) -> String {
    match place {
        Place::Input(index) => format!("input {index}"),
        Place::Output(index) => format!("output {index}"),
        Place::Constant(index) => format!("constant {index}"),
        Place::Arena(offset) => format!("arena {offset}"),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a string cannot fail");
}
