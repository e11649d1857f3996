//! Random kernels: native code against the loop interpreter, bit for bit, with one thread and two, at every
//! width of vectors.
//!
//! `WINDLASS_KERNELS=5000 WINDLASS_SEED=7` runs more of them, from another seed.

use windlass_codegen::{Options, Target, asm_text, jit};
use windlass_ir::Tensor;
use windlass_ir::loops::interpret::Order;
use windlass_ir::loops::{Place, Program, Role, Step, Work};
use windlass_runtime::Pool;
use windlass_tests::kernels::{Generated, Options as Kernels, compare_bits, generate};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A program of one step, whose inputs are what the kernel only reads.
fn program(generated: &Generated) -> Program {
    let mut program = Program::default();
    let mut args = Vec::new();
    for ((_, buffer), tensor) in generated.kernel.params().zip(&generated.params) {
        let port = (buffer.name.clone(), tensor.ty());
        match buffer.role {
            Role::In => {
                args.push(Place::Input(program.inputs.len() as u32));
                program.inputs.push(port);
            }
            _ => {
                args.push(Place::Output(program.outputs.len() as u32));
                program.outputs.push(port);
            }
        }
    }
    // Enough work to be worth both threads.
    program.steps.push(Step { work: Work::Kernel(0), args, origin: Vec::new(), flops: 1 << 40 });
    program.kernels.push(generated.kernel.clone());
    program
}

/// The parameters after the kernel has run natively.
fn run(generated: &Generated, pool: &Pool, bits: usize) -> Result<Vec<Tensor>, String> {
    let program = program(generated);
    let options = Options { verify: true, threads: 1, vector_bits: Some(bits), ..Options::default() };
    let (executable, _) = jit(&program, &options).map_err(|e| e.to_string())?;
    let mut params = generated.params.clone();
    let mut inputs: Vec<&[u8]> = Vec::new();
    let mut outputs: Vec<&mut [u8]> = Vec::new();
    for ((_, buffer), tensor) in generated.kernel.params().zip(&mut params) {
        match buffer.role {
            Role::In => inputs.push(tensor.bytes()),
            _ => outputs.push(tensor.bytes_mut()),
        }
    }
    executable.run(pool, &inputs, &mut outputs).map_err(|e| e.to_string())?;
    Ok(params)
}

#[test]
fn native_code_gives_the_bits_of_the_interpreter() {
    let (seed, count) = (number("WINDLASS_SEED", 1), number("WINDLASS_KERNELS", 300));
    println!("seeds {seed}..{}", seed + count);
    let widths = Target::host().vector_widths().expect("code is made for this machine");
    let pools = [Pool::new(1), Pool::new(2)];
    let widest = Target { cpu: Some("x86-64-v4".to_string()), ..Target::host() };
    let mut wrong = Vec::new();
    for seed in seed..seed + count {
        let generated = generate(seed, &Kernels::default());
        // Whether or not this machine can run it.
        if cfg!(all(target_arch = "x86_64", unix))
            && let Err(message) = asm_text(&generated.kernel, &widest, Some(512))
        {
            wrong.push(format!("seed {seed}: {message}"));
        }
        let expected = generated.interpret(Order::Forward).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for (pool, bits) in pools.iter().flat_map(|pool| widths.iter().map(move |&bits| (pool, bits))) {
            let outcome = run(&generated, pool, bits).and_then(|found| {
                found.iter().zip(&expected).try_for_each(|(found, expected)| compare_bits(found, expected))
            });
            if let Err(message) = outcome {
                wrong.push(format!("seed {seed}, {} threads, {bits} bits: {message}", pool.threads()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
