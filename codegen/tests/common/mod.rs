//! Runs a kernel natively and in the loop interpreter, and compares bits.

#![allow(dead_code, reason = "each test binary uses a part")]

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{Kernel, Place, Program, Role, Step, Work};
use windlass_ir::{DType, Tensor, TensorType};
use windlass_runtime::Pool;

/// A small generator of repeatable numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Mostly small values, some of them special.
    pub fn tensor(&mut self, dtype: DType, len: usize) -> Tensor {
        let special = [0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30, 300.0, -1e-40];
        let values: Vec<f64> = (0..len)
            .map(|_| match self.next() % 16 {
                0 => special[(self.next() % special.len() as u64) as usize],
                _ => (self.next() % 20_001) as f64 / 1000.0 - 10.0,
            })
            .collect();
        match dtype.is_float() {
            true => Tensor::from_f64s(dtype, &[len], &values),
            false => {
                let values: Vec<i128> = (0..len)
                    .map(|_| match self.next() % 4 {
                        0 => i128::from(self.next() as i64),
                        _ => i128::from(self.next() % 21) - 10,
                    })
                    .collect();
                Tensor::from_i128s(dtype, &[len], &values)
            }
        }
    }
}

/// A program of one step.
pub fn program(kernel: Kernel) -> Program {
    let mut program = Program::default();
    let mut args = Vec::new();
    for (_, buffer) in kernel.params() {
        let port = (buffer.name.clone(), TensorType::fixed(buffer.dtype, &[buffer.len]));
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
    program.steps.push(Step {
        work: Work::Kernel(0),
        args,
        origin: vec![kernel.name.as_str().into()],
        flops: 1 << 30,
    });
    program.kernels.push(kernel);
    program
}

/// What stands before and behind an output while code runs, and for how many bytes.
const FENCE: u8 = 0xa5;
const FENCE_BYTES: usize = 256;

/// Runs a program natively, with vectors of at most so many bits. Panics if it writes outside its outputs.
pub fn run_native(program: &Program, inputs: &[Tensor], threads: usize, bits: Option<usize>) -> Vec<Tensor> {
    let options = Options { verify: true, vector_bits: bits, ..Options::default() };
    let (executable, _) = jit(program, &options).unwrap_or_else(|e| panic!("{e}"));
    let pool = Pool::new(threads);
    let sizes = program.outputs.iter().map(|(_, ty)| ty.shape().iter().product::<usize>() * ty.dtype.size());
    let sizes: Vec<usize> = sizes.collect();
    let mut fenced: Vec<Vec<u8>> = sizes.iter().map(|size| vec![FENCE; size + 2 * FENCE_BYTES]).collect();
    let ins: Vec<&[u8]> = inputs.iter().map(|t| t.bytes()).collect();
    let mut outs: Vec<&mut [u8]> = fenced
        .iter_mut()
        .zip(&sizes)
        .map(|(bytes, &size)| {
            bytes[FENCE_BYTES..][..size].fill(0);
            &mut bytes[FENCE_BYTES..][..size]
        })
        .collect();
    executable.run(&pool, &ins, &mut outs).unwrap_or_else(|e| panic!("{e}"));
    fenced
        .iter()
        .zip(&program.outputs)
        .map(|(bytes, (name, ty))| {
            let (before, rest) = bytes.split_at(FENCE_BYTES);
            let (inside, behind) = rest.split_at(rest.len() - FENCE_BYTES);
            let untouched = before.iter().chain(behind).all(|&byte| byte == FENCE);
            assert!(untouched, "code with {bits:?} bits writes outside `{name}`");
            Tensor::from_bytes(ty.dtype, &ty.shape(), inside).expect("the size is the type's")
        })
        .collect()
}

/// Whether two tensors hold the same bits, any NaN being equal to any other.
pub fn same(a: &Tensor, b: &Tensor) -> bool {
    if !a.dtype().is_float() {
        return a == b;
    }
    let size = a.dtype().size();
    let nan = |t: &Tensor| t.to_f64s().into_iter().map(f64::is_nan).collect::<Vec<_>>();
    let chunks = a.bytes().chunks(size).zip(b.bytes().chunks(size));
    chunks.zip(nan(a).into_iter().zip(nan(b))).all(|((x, y), (p, q))| x == y || (p && q))
}

/// Compares native code with the loop interpreter on random inputs, with one and two threads, at every width
/// of vectors.
pub fn check(kernel: Kernel) {
    check_with(kernel, |_, tensor| tensor);
}

/// As [`check`], with the inputs adjusted by name.
pub fn check_with(kernel: Kernel, adjust: impl Fn(&str, Tensor) -> Tensor) {
    let name = kernel.name.clone();
    let program = program(kernel);
    let mut random = Random(name.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b))));
    let inputs: Vec<Tensor> = program
        .inputs
        .iter()
        .map(|(name, ty)| adjust(name, random.tensor(ty.dtype, ty.shape()[0])))
        .collect();
    let expected = run_program(&program, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    for bits in Target::host().vector_widths().unwrap_or_else(|e| panic!("{e}")) {
        for threads in [1, 2] {
            let found = run_native(&program, &inputs, threads, Some(bits));
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    same(found, expected),
                    "{name}, {bits} bits, {threads} threads:\n{found:?}\n{expected:?}"
                );
            }
        }
    }
}
