//! Graphs lowered to programs mean what they meant: the loop interpreter against the graph interpreter.

use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{Step, print_kernel, verify_kernel};
use windlass_ir::ops::{
    Concat, Conv, Cumulative, CumulativeKind, LayerNorm, MatMul, Pool, PoolKind, QuantizeLinear, Reduce,
    ReduceKind, Reshape, Softmax, Transpose,
};
use windlass_ir::{Builder, DType, Graph, ScalarFn, Tensor, TensorType, Value, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};

/// A tensor of small values that repeat with no simple period.
fn ramp(shape: &[usize], salt: usize) -> Tensor {
    Tensor::from_fn::<f32>(shape, |i| (((i * 37 + salt * 11) % 101) as f32 - 50.0) / 40.0)
}

fn f32s(shape: &[usize]) -> TensorType {
    TensorType::fixed(DType::F32, shape)
}

fn check(name: &str, graph: &Graph) {
    let inputs: Vec<Tensor> =
        graph.inputs().iter().enumerate().map(|(i, (_, v))| ramp(&graph.ty(*v).shape(), i)).collect();
    let expected = interpret(graph, &inputs).expect("the graph runs");
    for fuse in [false, true] {
        let program =
            lower(graph, &LowerOptions { fuse, ..LowerOptions::default() }).expect("the graph lowers");
        for kernel in &program.kernels {
            verify_kernel(kernel)
                .unwrap_or_else(|e| panic!("{name} (fuse {fuse}): {e}\n{}", print_kernel(kernel)));
        }
        let dump = || program.kernels.iter().map(print_kernel).collect::<String>();
        let found = run_program(&program, &inputs)
            .unwrap_or_else(|e| panic!("{name} (fuse {fuse}): {e}\n{}", dump()));
        for (e, f) in expected.iter().zip(&found) {
            assert_eq!(e.ty(), f.ty(), "{name}");
            let (e, f) = (e.to_f64s(), f.to_f64s());
            let scale = e.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
            for (i, (a, b)) in e.iter().zip(&f).enumerate() {
                let close = (a - b).abs() <= 1e-5 * scale || (a.is_nan() && b.is_nan());
                assert!(close, "{name} (fuse {fuse}): element {i} is {b}, expected {a}\n{}", dump());
            }
        }
    }
}

fn build(name: &str, body: impl FnOnce(&mut Builder) -> Vec<Value>) {
    let mut b = Builder::new(name);
    let outs = body(&mut b);
    for (i, out) in outs.into_iter().enumerate() {
        b.output(&format!("y{i}"), out);
    }
    check(name, &b.finish().expect("the graph is valid"));
}

#[test]
fn elementwise_chains_and_broadcasts() {
    build("chain", |b| {
        let x = b.input("x", f32s(&[3, 1, 7]));
        let y = b.input("y", f32s(&[5, 1]));
        let s = b.map(ScalarFn::Add, &[x, y]).unwrap();
        let e = b.map(ScalarFn::Exp, &[s]).unwrap();
        let r = b.map(ScalarFn::Mul, &[e, x]).unwrap();
        vec![r, s]
    });
    build("large", |b| {
        let x = b.input("x", f32s(&[40_003]));
        let e = b.map(ScalarFn::Tanh, &[x]).unwrap();
        vec![b.map(ScalarFn::Mul, &[e, x]).unwrap()]
    });
    build("scalar", |b| {
        let x = b.input("x", f32s(&[]));
        vec![b.map(ScalarFn::Neg, &[x]).unwrap(), x]
    });
    build("empty", |b| {
        let x = b.input("x", f32s(&[2, 0, 3]));
        let sum = b.push1(Reduce::over(ReduceKind::Sum, &[1], false), &[x]).unwrap();
        vec![b.map(ScalarFn::Neg, &[x]).unwrap(), sum]
    });
}

#[test]
fn matrix_products_with_prologue_and_epilogue() {
    for (m, k, n) in [(1, 5, 3), (7, 16, 8), (13, 9, 21), (1, 40, 70), (64, 64, 64), (5, 1, 9), (6, 300, 1)] {
        build(&format!("dense {m} {k} {n}"), |b| {
            let x = b.input("x", f32s(&[m, k]));
            let w = b.constant(ramp(&[k, n], 3));
            let bias = b.constant(ramp(&[n], 4));
            let y = b.push1(MatMul::default(), &[x, w]).unwrap();
            let y = b.map(ScalarFn::Add, &[y, bias]).unwrap();
            vec![b.map(ScalarFn::Relu, &[y]).unwrap()]
        });
        build(&format!("transposed {m} {k} {n}"), |b| {
            let x = b.input("x", f32s(&[2, m, k]));
            let w = b.input("w", f32s(&[2, n, k]));
            vec![b.push1(MatMul { trans_b: true, ..MatMul::default() }, &[x, w]).unwrap()]
        });
    }
}

/// Long reductions are cut into blocks, on whichever variable of the reduction the cut falls.
#[test]
fn reductions_cut_into_blocks() {
    for (m, k, n) in [(23, 601, 19), (40, 512, 8), (31, 1024, 3)] {
        build(&format!("product {m} {k} {n}"), |b| {
            let x = b.input("x", f32s(&[m, k]));
            let w = b.constant(ramp(&[k, n], 3));
            let y = b.push1(MatMul::default(), &[x, w]).unwrap();
            vec![b.map(ScalarFn::Relu, &[y]).unwrap()]
        });
    }
    for (channels, kernel) in [(100, 3), (300, 2), (3, 15)] {
        build(&format!("convolution {channels} {kernel}"), |b| {
            let x = b.input("x", f32s(&[1, 20, 17, channels]));
            let w = b.constant(ramp(&[kernel, kernel, channels, 9], 7));
            let conv = Conv { channels_last: true, ..Conv::plain() };
            vec![b.push1(conv, &[x, w]).unwrap()]
        });
    }
}

/// Weights that a single row reads in order are copied as they are, and what packs for a sum of constants stays apart.
#[test]
fn constants_are_laid_out_for_what_reads_them() {
    let kernels = |b: Builder| {
        let graph = b.finish().unwrap();
        check("constants", &graph);
        let program =
            lower(&graph, &LowerOptions { fuse: true, machine: Machine::with_vectors(256) }).unwrap();
        program.prepare.iter().flat_map(|p| &p.kernels).map(print_kernel).collect::<Vec<_>>()
    };
    let mut b = Builder::new("row");
    let x = b.input("x", f32s(&[1, 96]));
    let w = b.constant(ramp(&[40, 96], 3));
    let y = b.push1(MatMul { trans_a: false, trans_b: true }, &[x, w]).unwrap();
    b.output("y", y);
    let copied = kernels(b);
    assert_eq!(copied.len(), 1);
    assert!(copied[0].contains("x0: f32[3840] in, y0: f32[3840] out"), "{}", copied[0]);

    let mut b = Builder::new("transform");
    let x = b.input("x", f32s(&[1, 96]));
    let left = b.constant(ramp(&[36, 9], 3));
    let right = b.constant(ramp(&[96, 9], 5));
    let product = b.push1(MatMul { trans_a: false, trans_b: true }, &[left, right]).unwrap();
    let y = b.push1(MatMul { trans_a: false, trans_b: true }, &[x, product]).unwrap();
    b.output("y", y);
    let prepared = kernels(b);
    assert!(prepared.iter().any(|k| k.contains("register") && k.contains("fma")), "{prepared:?}");
    assert!(
        prepared.iter().all(|k| !k.contains("acc") || k.contains("unroll")),
        "tiles, not rows: {prepared:?}"
    );
}

/// Weights beyond the second cache are asked for before they are read, once each, by tiles enough to hide it.
#[test]
fn large_weights_are_prefetched() {
    for (m, k, n, bits, expected) in [
        (48, 700, 130, 256, true),
        (48, 300, 260, 256, true),
        (100, 250, 290, 512, true),
        // A single row, weights that stay in the cache, no such instruction.
        (1, 700, 130, 256, false),
        (48, 70, 130, 256, false),
        (48, 700, 130, 128, false),
    ] {
        let mut b = Builder::new("ahead");
        let x = b.input("x", f32s(&[m, k]));
        let w = b.constant(ramp(&[k, n], 3));
        let y = b.push1(MatMul::default(), &[x, w]).unwrap();
        b.output("y", y);
        let graph = b.finish().unwrap();
        let lowered = |machine| lower(&graph, &LowerOptions { fuse: true, machine }).unwrap();
        let program = lowered(Machine::with_vectors(bits));
        let text: String = program.kernels.iter().map(print_kernel).collect();
        assert_eq!(text.contains("prefetch x1["), expected, "{text}");
        let inputs = [ramp(&[m, k], 0)];
        let plain = run_program(&lowered(Machine::default()), &inputs).unwrap();
        assert_eq!(run_program(&program, &inputs).unwrap(), plain);
    }
}

/// What is done to weights is done once, in one pass over each.
#[test]
fn weights_are_prepared_by_one_kernel() {
    for outputs in [false, true] {
        let mut b = Builder::new("prepared");
        let x = b.input("x", f32s(&[40, 64]));
        let w = b.constant(ramp(&[96, 64], 1));
        let scale = b.constant(ramp(&[96, 1], 2));
        let scaled = b.map(ScalarFn::Mul, &[w, scale]).unwrap();
        let y = b.push1(MatMul { trans_b: true, ..MatMul::default() }, &[x, scaled]).unwrap();
        b.output("y", y);
        if outputs {
            // A constant expression that is an output too, and one by way of a large intermediate result.
            let row = b.constant(ramp(&[1, 500], 3));
            let column = b.constant(ramp(&[500, 1], 4));
            let outer = b.map(ScalarFn::Mul, &[row, column]).unwrap();
            let sum = b.push1(Reduce::over(ReduceKind::Sum, &[0], false), &[outer]).unwrap();
            b.output("scaled", scaled);
            b.output("sum", sum);
        }
        let graph = b.finish().unwrap();
        check("prepared", &graph);
        let program = lower(&graph, &LowerOptions::default()).unwrap();
        let prepare = program.prepare.as_ref().expect("weights are prepared");
        let steps = if outputs { 3 } else { 1 };
        assert_eq!((prepare.steps.len(), program.steps.len()), (steps, steps), "{program}");
    }
}

/// Packing sees its operand as one dimension, whatever made it.
#[test]
fn weights_that_are_sums_are_prepared() {
    build("sums as weights", |b| {
        let x = b.input("x", f32s(&[40, 64]));
        let terms = b.constant(ramp(&[64, 3, 48], 1));
        let w = b.push1(Reduce::over(ReduceKind::Sum, &[1], false), &[terms]).unwrap();
        vec![b.push1(MatMul::default(), &[x, w]).unwrap()]
    });
    // The same constant as a factor, and in what makes the other factor.
    build("a weight seen twice", |b| {
        let w = b.constant(ramp(&[64, 48], 1));
        let scale = b.constant(ramp(&[48, 1], 2));
        let scaled = b.map(ScalarFn::Mul, &[w, w]).unwrap();
        let product = b.push1(MatMul { trans_a: true, ..MatMul::default() }, &[scaled, w]).unwrap();
        let weights = b.map(ScalarFn::Add, &[product, scale]).unwrap();
        let x = b.input("x", f32s(&[40, 48]));
        vec![b.push1(MatMul::default(), &[x, weights]).unwrap()]
    });
}

#[test]
fn attention_without_copies() {
    build("attention", |b| vec![attention(b, 2, 6)]);
}

/// Self-attention with three heads of eight.
fn attention(b: &mut Builder, batch: usize, length: usize) -> Value {
    let x = b.input("x", f32s(&[batch, length, 24]));
    let mask = b.input("mask", f32s(&[batch, 1, 1, length]));
    let heads = |b: &mut Builder, salt| {
        let w = b.constant(ramp(&[24, 24], salt));
        let y = b.push1(MatMul::default(), &[x, w]).unwrap();
        let y = b.push1(Reshape::to(&[batch, length, 3, 8]), &[y]).unwrap();
        b.push1(Transpose::by(&[0, 2, 1, 3]), &[y]).unwrap()
    };
    let (q, k, v) = (heads(b, 1), heads(b, 2), heads(b, 3));
    let scores = b.push1(MatMul { trans_b: true, ..MatMul::default() }, &[q, k]).unwrap();
    let scale = b.scalar(DType::F32, 0.3);
    let scores = b.map(ScalarFn::Mul, &[scores, scale]).unwrap();
    let scores = b.map(ScalarFn::Add, &[scores, mask]).unwrap();
    let weights = b.push1(Softmax { log: false, axis: -1, masked: false }, &[scores]).unwrap();
    let y = b.push1(MatMul::default(), &[weights, v]).unwrap();
    let y = b.push1(Transpose::by(&[0, 2, 1, 3]), &[y]).unwrap();
    b.push1(Reshape::to(&[batch, length, 24]), &[y]).unwrap()
}

/// A result takes the place of an operand that nothing reads afterwards.
#[test]
fn elementwise_results_replace_their_operands() {
    let mut b = Builder::new("in place");
    let x = b.input("x", f32s(&[4, 6, 1]));
    let mut y = b.map(ScalarFn::Exp, &[x]).unwrap();
    for axis in [0, 1, 2, 0] {
        // Neither a running sum nor what it is added to can be merged.
        let sums = b.push1(running_sum(axis), &[y]).unwrap();
        y = b.map(ScalarFn::Tanh, &[sums]).unwrap();
    }
    let sums = b.push1(running_sum(0), &[y]).unwrap();
    b.output("y", sums);
    let graph = b.finish().unwrap();
    check("in place", &graph);
    let program = lower(&graph, &LowerOptions::default()).unwrap();
    let replaces = |step: &Step| step.args.first() == step.args.last();
    assert_eq!(program.steps.iter().filter(|s| replaces(s)).count(), 4, "{program}");
}

/// Also one whose elements are worked off in chunks, the last of them smaller.
#[test]
fn chunks_replace_their_operands() {
    build("chunks in place", |b| {
        let x = b.input("x", f32s(&[3, 20_001]));
        let sums = b.push1(running_sum(0), &[x]).unwrap();
        let y = b.map(ScalarFn::Tanh, &[sums]).unwrap();
        vec![b.push1(running_sum(0), &[y]).unwrap()]
    });
}

/// Not so one that is read twice, the second time perhaps elsewhere.
#[test]
fn operands_passed_twice_are_kept() {
    build("twice", |b| {
        let x = b.input("x", f32s(&[4, 6]));
        let sums = b.push1(running_sum(0), &[x]).unwrap();
        let square = b.map(ScalarFn::Mul, &[sums, sums]).unwrap();
        vec![b.push1(running_sum(1), &[square]).unwrap()]
    });
}

fn running_sum(axis: i64) -> Cumulative {
    let kind = CumulativeKind::Sum;
    Cumulative { kind, axis: vec![axis].into(), exclusive: false, reverse: false }
}

/// Scores, softmax and weighted values are one kernel that holds a few rows of scores at a time.
#[test]
fn scores_never_leave_the_stack() {
    for (batch, length) in [(1, 83), (2, 47)] {
        let mut b = Builder::new("chain");
        let y = attention(&mut b, batch, length);
        b.output("y", y);
        let graph = b.finish().unwrap();
        check("chain", &graph);
        let program = lower(&graph, &LowerOptions::default()).unwrap();
        let scores = 3 * batch * length * length;
        let stored = |k: &windlass_ir::loops::Kernel| k.params().any(|(_, p)| p.len >= scores);
        assert!(!program.kernels.iter().any(stored), "{program}");
    }
}

#[test]
fn rows_and_norms() {
    for n in [1, 5, 33, 100] {
        build(&format!("norm {n}"), |b| {
            let x = b.input("x", f32s(&[4, n]));
            let scale = b.constant(ramp(&[n], 5));
            let shift = b.constant(ramp(&[n], 6));
            let norm = LayerNorm { rms: false, axis: -1, epsilon: 1e-5 };
            let y = b.push(norm, &[x, scale, shift], None).unwrap()[0];
            let z = b.push1(Softmax { log: true, axis: -1, masked: false }, &[y]).unwrap();
            let column = b.push1(Softmax { log: false, axis: 0, masked: false }, &[x]).unwrap();
            vec![y, z, column]
        });
    }
    build("reductions", |b| {
        let x = b.input("x", f32s(&[3, 4, 35]));
        let mut outs = Vec::new();
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min] {
            for axes in [&[0][..], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]] {
                outs.push(b.push1(Reduce::over(kind, axes, false), &[x]).unwrap());
            }
        }
        outs
    });
}

#[test]
fn convolutions_and_pools_in_both_layouts() {
    for channels_last in [false, true] {
        for (group, channels, filters) in [(1, 3, 8), (2, 4, 6), (6, 6, 6)] {
            let name = format!("conv last {channels_last} group {group}");
            build(&name, |b| {
                let (x, w) = match channels_last {
                    false => (f32s(&[2, channels, 9, 7]), vec![filters, channels / group, 3, 3]),
                    true => (f32s(&[2, 9, 7, channels]), vec![3, 3, channels / group, filters]),
                };
                let x = b.input("x", x);
                let w = b.constant(ramp(&w, 7));
                let bias = b.constant(ramp(&[filters], 8));
                let conv = Conv {
                    strides: vec![1, 2],
                    pads: vec![1, 1, 1, 1],
                    group: group as i64,
                    channels_last,
                    ..Conv::plain()
                };
                let y = b.push1(conv, &[x, w, bias]).unwrap();
                let y = b.map(ScalarFn::Relu, &[y]).unwrap();
                let mut outs = vec![y];
                for kind in [PoolKind::Max, PoolKind::Average] {
                    let pool = Pool {
                        strides: vec![2, 2],
                        pads: vec![1, 0, 1, 0],
                        channels_last,
                        ..Pool::plain(kind, &[3, 2])
                    };
                    outs.push(b.push1(pool, &[y]).unwrap());
                }
                outs
            });
        }
    }
}

#[test]
fn concatenation_in_every_position() {
    for axis in 0..3 {
        build(&format!("concat {axis}"), |b| {
            let mut shapes = [[2, 3, 10]; 3];
            shapes[1][axis] = 1;
            shapes[2][axis] = 4;
            let ins: Vec<Value> =
                shapes.iter().enumerate().map(|(i, s)| b.input(&format!("x{i}"), f32s(s))).collect();
            let y = b.push1(Concat { axis: axis as i64 }, &ins).unwrap();
            vec![b.map(ScalarFn::Neg, &[y]).unwrap()]
        });
        build(&format!("concat of many along {axis}"), |b| {
            let mut shape = [7, 5, 64];
            shape[axis] = 3;
            let ins: Vec<Value> = (0..40).map(|i| b.input(&format!("x{i}"), f32s(&shape))).collect();
            vec![b.push1(Concat { axis: axis as i64 }, &ins).unwrap()]
        });
    }
}

/// A choice between parts is only as good as the guards that made it: what follows from it stays inside.
#[test]
fn what_a_guard_decides_stays_inside_it() {
    build("padded pointwise convolution", |b| {
        let x = b.input("x", f32s(&[1, 1, 3, 3]));
        let w = b.input("w", f32s(&[1, 1, 1, 1]));
        let conv = Conv { strides: vec![3, 1], pads: vec![1, 2, 0, 0], ..Conv::plain() };
        vec![b.push1(conv, &[x, w]).unwrap()]
    });
}

/// An operand is packed by reading it in panels, of which one without elements has none.
#[test]
fn operands_without_elements_are_not_packed() {
    for (batch, m, k, n) in [(2, 3, 0, 40), (2, 3, 4, 0), (0, 3, 4, 40), (2, 0, 4, 40), (0, 0, 0, 0)] {
        for constant in [false, true] {
            build(&format!("product {batch} {m} {k} {n}, constant {constant}"), |b| {
                let x = b.input("x", f32s(&[batch, m, k]));
                let w = match constant {
                    true => b.constant(ramp(&[batch, k, n], 1)),
                    false => b.input("w", f32s(&[batch, k, n])),
                };
                let y = b.push1(MatMul::default(), &[x, w]).unwrap();
                let sides = b.push1(Reshape::to(&[batch * m, n]), &[y]).unwrap();
                let transposed = match constant {
                    true => b.constant(ramp(&[batch, n, k], 1)),
                    false => b.input("transposed", f32s(&[batch, n, k])),
                };
                let product = MatMul { trans_b: true, ..MatMul::default() };
                vec![y, sides, b.push1(product, &[x, transposed]).unwrap()]
            });
        }
    }
    for (batch, channels, filters) in [(0, 3, 8), (1, 0, 8), (1, 3, 0)] {
        build(&format!("convolution {batch} {channels} {filters}"), |b| {
            let x = b.input("x", f32s(&[batch, channels, 9, 7]));
            let w = b.constant(ramp(&[filters, channels, 3, 3], 7));
            vec![b.push1(Conv::plain(), &[x, w]).unwrap()]
        });
    }
}

#[test]
fn products_of_bytes_take_pairs() {
    // A convolution of centered bytes, its padding between, and another reader.
    let graph = |to: DType| {
        let mut b = Builder::new("pairs");
        let x = b.input("x", f32s(&[1, 6, 5, 4]));
        let scale = b.constant(Tensor::scalar(0.01f32));
        let zero = b.constant(Tensor::from_f64s(to, &[], &[3.0]));
        let q = b.push1(QuantizeLinear { axis: 1, block_size: 0, to }, &[x, scale, zero]).unwrap();
        let (q, zero) = (b.cast(q, DType::I32).unwrap(), b.cast(zero, DType::I32).unwrap());
        let x = b.map(ScalarFn::Sub, &[q, zero]).unwrap();
        let w = Tensor::from_fn::<i8>(&[3, 3, 4, 20], |i| (i * 37 % 251) as i8);
        let w = b.constant(w);
        let w = b.cast(w, DType::I32).unwrap();
        let conv = Conv { pads: vec![1; 4], channels_last: true, ..Conv::plain() };
        let y = b.push1(conv, &[x, w]).unwrap();
        let z = b.cast(x, DType::F32).unwrap();
        b.output("y", y);
        b.output("z", z);
        b.finish().unwrap()
    };
    for to in [DType::U8, DType::I8] {
        let graph = graph(to);
        check("pairs", &graph);
        let inputs = [ramp(&[1, 6, 5, 4], 0)];
        let expected = interpret(&graph, &inputs).unwrap();
        for little_endian in [true, false] {
            let machine = Machine { little_endian, ..Machine::with_vectors(256) };
            let program = lower(&graph, &LowerOptions { fuse: true, machine }).unwrap();
            let text: String = program.kernels.iter().map(print_kernel).collect();
            assert!(text.contains("dot2") && text.contains("i16[120] out"), "{text}");
            // Words are the bytes of their halves, where low halves come first.
            assert_eq!(text.contains("pack2"), !little_endian, "{text}");
            assert_eq!(run_program(&program, &inputs).unwrap(), expected);
        }
    }
}

#[test]
fn products_of_bytes_take_fours_where_a_machine_has_them() {
    let mut b = Builder::new("fours");
    let x = b.input("x", f32s(&[7, 12]));
    let scale = b.constant(Tensor::scalar(0.01f32));
    let q = b.push1(QuantizeLinear { axis: 1, block_size: 0, to: DType::U8 }, &[x, scale]).unwrap();
    let x = b.cast(q, DType::I32).unwrap();
    let w = b.constant(Tensor::from_fn::<i8>(&[12, 70], |i| (i * 37 % 251) as i8));
    let w = b.cast(w, DType::I32).unwrap();
    let y = b.push1(MatMul::default(), &[x, w]).unwrap();
    b.output("y", y);
    let graph = b.finish().unwrap();
    let inputs = [ramp(&[7, 12], 0)];
    let expected = interpret(&graph, &inputs).unwrap();
    for little_endian in [true, false] {
        let machine = Machine { byte_products: true, little_endian, ..Machine::with_vectors(512) };
        let program = lower(&graph, &LowerOptions { fuse: true, machine }).unwrap();
        let text: String = program.kernels.iter().map(print_kernel).collect();
        assert!(text.contains("dot4") && text.contains("u8[84] out"), "{text}");
        assert_eq!(text.contains("pack2"), !little_endian, "{text}");
        assert_eq!(run_program(&program, &inputs).unwrap(), expected);
    }
}

#[test]
fn products_beyond_16_bits_stay_as_they_are() {
    build("wide", |b| {
        let x = b.input("x", f32s(&[4, 8]));
        let scale = b.constant(Tensor::scalar(0.001f32));
        let q = QuantizeLinear { axis: 1, block_size: 0, to: DType::I16 };
        let q = b.push1(q, &[x, scale]).unwrap();
        let q = b.cast(q, DType::I32).unwrap();
        let two = b.scalar_like(q, 2.0);
        let q = b.map(ScalarFn::Mul, &[q, two]).unwrap();
        let w = b.constant(Tensor::from_fn::<i32>(&[8, 16], |i| i as i32 * 37 - 900));
        vec![b.push1(MatMul::default(), &[q, w]).unwrap()]
    });
}
