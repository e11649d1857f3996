//! A run that begins before all code is made and all constants are prepared: the same results, and errors that end it.

use std::sync::Arc;

use windlass_codegen::{Options, jit_and_run};
use windlass_ir::loops::{Kernel, KernelBuilder, LoopKind, Place, Program, Role, Step, Work};
use windlass_ir::{DType, ScalarFn, Tensor, TensorType};
use windlass_runtime::{Executor, Helper, Pool};

const LEN: usize = 100;

/// Adds two buffers, so many times.
fn add(times: usize) -> Kernel {
    let mut b = KernelBuilder::new(&format!("add{times}"));
    let x = b.buffer("x", DType::F32, LEN, Role::In);
    let y = b.buffer("y", DType::F32, LEN, Role::In);
    let z = b.buffer("z", DType::F32, LEN, Role::Out);
    b.repeat(LoopKind::Vector, LEN, |b, i| {
        let (mut sum, other) = (b.load(x, i.clone()), b.load(y, i.clone()));
        for _ in 0..times {
            sum = b.apply(ScalarFn::Add, &[sum, other]);
        }
        b.store(z, i, sum);
    });
    b.finish()
}

fn step(kernel: usize, args: [Place; 3]) -> Step {
    Step {
        work: Work::Kernel(kernel as u32),
        args: args.to_vec(),
        origin: vec![format!("s{kernel}").into()],
        flops: 1,
    }
}

fn ty() -> TensorType {
    TensorType::fixed(DType::F32, &[LEN])
}

/// Step `i` of `count` adds the `i`th constant so many times that no two kernels are the same; constants are prepared.
fn program(count: usize) -> Program {
    let prepare = Program {
        kernels: vec![add(1), add(2)],
        steps: (0..count)
            .map(|i| step(i % 2, [Place::Constant(0), Place::Constant(0), Place::Output(i as u32)]))
            .collect(),
        constants: vec![Tensor::new(&[LEN], &[1.0f32; LEN])],
        outputs: (0..count).map(|i| (format!("prepared{i}"), ty())).collect(),
        ..Program::default()
    };
    let arena = |i: usize| Place::Arena((i % 2 * 512) as u64);
    Program {
        kernels: (0..count).map(|i| add(i + 1)).collect(),
        steps: (0..count)
            .map(|i| {
                let from = if i == 0 { Place::Input(0) } else { arena(i - 1) };
                let to = if i == count - 1 { Place::Output(0) } else { arena(i) };
                step(i, [from, Place::Constant(i as u32), to])
            })
            .collect(),
        arena_bytes: 1024,
        inputs: vec![("x".to_string(), ty())],
        outputs: vec![("y".to_string(), ty())],
        prepare: Some(Box::new(prepare)),
        ..Program::default()
    }
}

#[test]
fn results_do_not_depend_on_when_code_is_made() {
    for threads in [1, 2, 5] {
        for count in [1, 2, 20] {
            let program = program(count);
            let options = Options { threads, ..Options::default() };
            let expected: f32 = (0..count).map(|i| ((i + 1) * (2 + i % 2)) as f32).sum::<f32>() + 3.0;
            let (pool, x) = (Pool::new(threads), Tensor::new(&[LEN], &[3.0f32; LEN]));
            let run = |write: &mut dyn FnMut(&mut [&mut [u8]])| {
                let mut y = Tensor::zeros(DType::F32, &[LEN]);
                write(&mut [y.bytes_mut()]);
                assert_eq!(y.to_f64s(), [f64::from(expected); LEN], "{count} steps, {threads} threads");
            };
            let mut made = None;
            run(&mut |outs| {
                made = Some(jit_and_run(&program, &options, &pool, &[x.bytes()], outs).unwrap().0);
            });
            run(&mut |outs| made.as_ref().unwrap().run(&pool, &[x.bytes()], outs).unwrap());
        }
    }
}

#[test]
fn what_fails_ends_the_run() {
    let run = |program: &Program, options: &Options, x: &[u8]| {
        let mut y = Tensor::zeros(DType::F32, &[LEN]);
        jit_and_run(program, options, &Pool::new(2), &[x], &mut [y.bytes_mut()]).unwrap_err().to_string()
    };
    let x = Tensor::new(&[LEN], &[3.0f32; LEN]);
    for threads in [1, 2] {
        let options = Options { threads, ..Options::default() };
        let limited = Options { code_limit: 1000, ..options.clone() };
        let error = run(&program(20), &limited, x.bytes());
        assert!(error.contains("exceed the limit of 1000"), "{error}");
        let error = run(&program(20), &options, &x.bytes()[1..]);
        assert_eq!(error, "input `x` takes 400 bytes, found 399");
    }
}

struct NoThreads;

impl Executor for NoThreads {
    fn threads(&self) -> usize {
        2
    }

    fn launch(&self, _: usize, _: &Helper) {
        panic!("no threads today");
    }
}

#[test]
fn a_panic_of_the_run_ends_those_who_make_code() {
    let mut program = program(20);
    let mut b = KernelBuilder::new("rows");
    let x = b.buffer("x", DType::F32, LEN, Role::In);
    let y = b.buffer("y", DType::F32, LEN, Role::In);
    let z = b.buffer("z", DType::F32, LEN, Role::Out);
    b.repeat(LoopKind::Parallel, LEN, |b, i| {
        let (x, y) = (b.load(x, i.clone()), b.load(y, i.clone()));
        let sum = b.apply(ScalarFn::Add, &[x, y]);
        b.store(z, i, sum);
    });
    program.kernels[0] = b.finish();
    program.steps[0].flops = 1 << 30;
    let x = Tensor::new(&[LEN], &[3.0f32; LEN]);
    let run = || {
        let mut y = Tensor::zeros(DType::F32, &[LEN]);
        let pool = Pool::with_executor(Arc::new(NoThreads));
        let _ = jit_and_run(&program, &Options::default(), &pool, &[x.bytes()], &mut [y.bytes_mut()]);
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}
