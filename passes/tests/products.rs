//! Products: blocks, packed and prepared constants, integers. The loop interpreter against the graph interpreter.

mod common;

use common::{build, check, f32s, ramp};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{print_kernel, verify_kernel};
use windlass_ir::ops::{Conv, MatMul, QuantizeLinear, Reduce, ReduceKind, Reshape};
use windlass_ir::{Builder, DType, ScalarFn, Tensor, TensorType, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::schedule::knobs::KNOBS;
use windlass_passes::lower::{LowerOptions, lower, lower_choosing};

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

/// What is packed by blocks of whole vectors is computed where it is packed.
#[test]
fn weights_that_are_products_are_packed_as_they_are_computed() {
    for (n, steps) in [(64, 2), (61, 3)] {
        let mut b = Builder::new("product of constants");
        let x = b.input("x", f32s(&[32, 40]));
        let (left, right) = (b.constant(ramp(&[40, 24], 3)), b.constant(ramp(&[24, n], 5)));
        let weights = b.push1(MatMul::default(), &[left, right]).unwrap();
        let y = b.push1(MatMul::default(), &[x, weights]).unwrap();
        b.output("y", y);
        let graph = b.finish().unwrap();
        let program = lower(&graph, &LowerOptions::default()).unwrap();
        assert_eq!(program.prepare.as_ref().unwrap().steps.len(), steps, "{n} columns");
        check(&format!("product of constants {n}"), &graph);
    }
}

/// Tiles that all have as many rows are compiled once.
#[test]
fn tiles_are_of_one_size_where_a_size_divides_the_rows() {
    for (rows, columns, expected) in [(676, 32, 13), (196, 32, 14), (45, 16, 15), (81, 48, 9), (49, 64, 0)] {
        let mut b = Builder::new("tiles");
        let x = b.input("x", f32s(&[rows, 40]));
        let w = b.constant(ramp(&[40, columns], 3));
        let y = b.push1(MatMul::default(), &[x, w]).unwrap();
        b.output("y", y);
        let machine = Machine::with_vectors(512);
        let program =
            lower(&b.finish().unwrap(), &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
        let text = print_kernel(program.kernels.last().unwrap());
        let sums = format!(": f32[{}] register", expected * columns);
        assert_eq!(text.matches("register").count() == 1 && text.contains(&sums), expected > 0, "{text}");
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
            lower(&graph, &LowerOptions { machine: Machine::with_vectors(256), ..LowerOptions::default() })
                .unwrap();
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
    let told = |bits| Machine { prefetches: true, ..Machine::with_vectors(bits) };
    for (m, k, n, machine, expected) in [
        (48, 700, 130, Machine::with_vectors(256), true),
        (48, 300, 260, told(256), true),
        (100, 250, 290, told(512), true),
        // A single row, weights that stay in the cache, machines that know better or have no such instruction.
        (1, 700, 130, told(256), false),
        (48, 70, 130, told(256), false),
        (100, 250, 290, Machine::with_vectors(512), false),
        (48, 700, 130, Machine::with_vectors(128), false),
    ] {
        let mut b = Builder::new("ahead");
        let x = b.input("x", f32s(&[m, k]));
        let w = b.constant(ramp(&[k, n], 3));
        let y = b.push1(MatMul::default(), &[x, w]).unwrap();
        b.output("y", y);
        let graph = b.finish().unwrap();
        let lowered = |machine| lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
        let program = lowered(machine);
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
            let program = lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
            let text: String = program.kernels.iter().map(print_kernel).collect();
            assert!(text.contains("dot2") && text.contains("i16[120] out"), "{text}");
            // Words are the bytes of their halves, where low halves come first.
            assert_eq!(text.contains(" pack2 "), !little_endian, "{text}");
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
        let program = lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
        let text: String = program.kernels.iter().map(print_kernel).collect();
        assert!(text.contains("dot4") && text.contains("u8[84] out"), "{text}");
        assert_eq!(text.contains(" pack2 "), !little_endian, "{text}");
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

/// What tuning may turn.
#[test]
fn numbers_of_schedules_do_not_show_in_bits() {
    let mut b = Builder::new("tuned");
    let x = b.input("x", f32s(&[50, 700]));
    let w = b.constant(ramp(&[700, 70], 3));
    let y = b.push1(MatMul::default(), &[x, w]).unwrap();
    b.output("y", y);
    let (graph, inputs) = (b.finish().unwrap(), [ramp(&[50, 700], 1)]);
    for bits in [128, 256, 512] {
        let machine = Machine::with_vectors(bits);
        let options = LowerOptions { machine, ..LowerOptions::default() };
        let plain = lower(&graph, &options).unwrap();
        let expected = run_program(&plain, &inputs).unwrap();
        let mut others = 0;
        for tuned in KNOBS.iter().flat_map(|knob| knob(&machine)) {
            let program = lower_choosing(&graph, &options, &mut |_| tuned).unwrap();
            program.kernels.iter().for_each(|kernel| verify_kernel(kernel).unwrap());
            others += usize::from(program.kernels != plain.kernels);
            assert_eq!(run_program(&program, &inputs).unwrap(), expected, "{tuned:?}");
        }
        assert!(others >= 3, "{others} other schedules for {bits} bits");
    }
}

#[test]
fn few_columns_take_narrower_vectors() {
    for (columns, expected) in [(3, None), (4, Some(256)), (8, Some(256)), (9, None), (64, None)] {
        for dtype in [DType::F32, DType::I32] {
            let mut b = Builder::new("few");
            let numbers =
                |shape: &[usize], salt| Tensor::from_f64s(dtype, shape, &ramp(shape, salt).to_f64s());
            let x = b.input("x", TensorType::fixed(dtype, &[30, 40]));
            let w = b.constant(numbers(&[40, columns], 3));
            let y = b.push1(MatMul::default(), &[x, w]).unwrap();
            b.output("y", y);
            let graph = b.finish().unwrap();
            let found = [256, 512].map(|bits| {
                let machine = Machine::with_vectors(bits);
                let program = lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
                program.kernels.last().unwrap().vector_bits
            });
            let expected = expected.filter(|_| dtype == DType::F32);
            assert_eq!(found, [None, expected], "{columns} columns of {dtype}");
        }
    }
}
