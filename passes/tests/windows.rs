//! Padded results written in place, and windows of images that never leave the stack.

mod common;

use common::{build, check, f32s, ramp};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::{Program, Role, print_kernel, verify_kernel};
use windlass_ir::ops::{Conv, MatMul, Pad, PadMode, Pool, PoolKind};
use windlass_ir::{Builder, DType, Graph, ScalarFn, Value};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};

/// A convolution of images with channels last, and what limits its result.
fn conv(b: &mut Builder, x: Value, kernel: &[usize], conv: Conv) -> Value {
    let w = b.constant(ramp(kernel, 7));
    let bias = b.constant(ramp(&kernel[kernel.len() - 1..], 8));
    let y = b.push1(Conv { channels_last: true, ..conv }, &[x, w, bias]).unwrap();
    b.map(ScalarFn::Relu, &[y]).unwrap()
}

/// A convolution of each channel by itself.
fn depthwise(b: &mut Builder, x: Value, window: &[usize], channels: usize, each: Conv) -> Value {
    let kernel: Vec<usize> = window.iter().copied().chain([1, channels]).collect();
    conv(b, x, &kernel, Conv { group: channels as i64, ..each })
}

fn graph(body: impl FnOnce(&mut Builder) -> Value) -> Graph {
    let mut b = Builder::new("windows");
    let y = body(&mut b);
    b.output("y", y);
    b.finish().unwrap()
}

fn lowered(graph: &Graph, machine: Machine) -> Program {
    let program = lower(graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
    for kernel in &program.kernels {
        verify_kernel(kernel).unwrap_or_else(|e| panic!("{e}\n{}", print_kernel(kernel)));
    }
    program
}

/// How many kernels keep an image on the stack.
fn images(program: &Program) -> usize {
    let has = |name: &str, role: Role| name == "image" && role == Role::Stack;
    program.kernels.iter().filter(|k| k.buffers.values().any(|b| has(&b.name, b.role))).count()
}

/// Lowers for caches of a few bytes and for large ones, with vectors of every width, and compares the bits.
fn compare(name: &str, graph: &Graph, block_bytes: usize, joined: usize) {
    let inputs: Vec<_> = graph.inputs().iter().map(|(_, v)| ramp(&graph.ty(*v).shape(), 3)).collect();
    for bits in [128, 256, 512] {
        let machine = Machine::with_vectors(bits);
        let apart = lowered(graph, Machine { block_bytes: 1 << 40, ..machine });
        assert_eq!(images(&apart), 0, "{name}, {bits} bits");
        let together = lowered(graph, Machine { block_bytes, ..machine });
        assert_eq!(images(&together), joined, "{name}, {bits} bits");
        let (expected, found) = (run_program(&apart, &inputs).unwrap(), run_program(&together, &inputs));
        assert_eq!(found.unwrap(), expected, "{name}, {bits} bits");
    }
}

#[test]
fn padded_results_are_written_in_place() {
    for (name, pads) in
        [("even", vec![1, 1, 1, 1]), ("uneven", vec![0, 2, 1, 0]), ("below", vec![0, 0, 2, 0])]
    {
        build(name, |b| {
            let x = b.input("x", f32s(&[2, 9, 7, 5]));
            let y = conv(b, x, &[1, 1, 5, 12], Conv::plain());
            let y = conv(b, y, &[3, 3, 12, 6], Conv { pads: pads.clone(), ..Conv::plain() });
            vec![y]
        });
    }
    let padded = graph(|b| {
        let x = b.input("x", f32s(&[33, 20]));
        let w = b.constant(ramp(&[20, 30], 1));
        let y = b.push1(MatMul::default(), &[x, w]).unwrap();
        let pad = Pad {
            pads: [3, 0, 1, 5].as_slice().into(),
            axes: [0, 1].as_slice().into(),
            mode: PadMode::Constant,
        };
        let fill = b.scalar(DType::F32, -2.5);
        b.push1(pad, &[y, fill]).unwrap()
    });
    let program = lowered(&padded, Machine::default());
    assert_eq!(program.steps.len(), 1, "a product and its margins are one kernel");
    check("product", &padded);
}

#[test]
fn depthwise_convolutions_run_with_what_makes_their_image() {
    let padded = Conv { pads: vec![1; 4], ..Conv::plain() };
    let strided = Conv { strides: vec![2, 2], ..padded.clone() };
    let dilated = Conv { dilations: vec![2, 2], pads: vec![2, 1, 2, 3], ..Conv::plain() };
    for (name, batch, each) in
        [("padded", 1, &padded), ("strided", 1, &strided), ("images", 3, &strided), ("dilated", 2, &dilated)]
    {
        let graph = graph(|b| {
            let x = b.input("x", f32s(&[batch, 40, 11, 4]));
            let y = conv(b, x, &[1, 1, 4, 32], Conv::plain());
            depthwise(b, y, &[3, 3], 32, each.clone())
        });
        // All rows at a time, and blocks of them.
        compare(name, &graph, 8 << 10, 1);
        compare(name, &graph, 4500, 1);
    }
}

#[test]
fn lines_volumes_and_pools_are_windows_too() {
    let line = graph(|b| {
        let x = b.input("x", f32s(&[2, 90, 5]));
        let y = conv(b, x, &[3, 5, 16], Conv { pads: vec![1, 1], ..Conv::plain() });
        depthwise(b, y, &[5], 16, Conv { pads: vec![2, 2], ..Conv::plain() })
    });
    compare("line", &line, 4 << 10, 1);
    let volume = graph(|b| {
        let x = b.input("x", f32s(&[1, 6, 8, 7, 3]));
        let y = conv(b, x, &[1, 1, 1, 3, 16], Conv::plain());
        depthwise(b, y, &[3, 3, 3], 16, Conv { pads: vec![1; 6], ..Conv::plain() })
    });
    compare("volume", &volume, 6 << 10, 1);
    let pool = graph(|b| {
        let x = b.input("x", f32s(&[2, 24, 12, 3]));
        let y = conv(b, x, &[3, 3, 3, 16], Conv { pads: vec![1; 4], ..Conv::plain() });
        let pool = Pool { strides: vec![2, 2], channels_last: true, ..Pool::plain(PoolKind::Max, &[2, 2]) };
        b.push1(pool, &[y]).unwrap()
    });
    compare("pool", &pool, 5 << 10, 1);
}

/// What a joined kernel writes may be padded itself.
#[test]
fn windows_of_windows() {
    let graph = graph(|b| {
        let x = b.input("x", f32s(&[1, 30, 9, 4]));
        let padded = Conv { pads: vec![1; 4], ..Conv::plain() };
        let y = conv(b, x, &[1, 1, 4, 32], Conv::plain());
        let y = depthwise(b, y, &[3, 3], 32, padded.clone());
        let y = depthwise(b, y, &[3, 3], 32, padded.clone());
        depthwise(b, y, &[3, 3], 32, padded)
    });
    compare("windows", &graph, 4 << 10, 2);
}

/// Channels that no block divides, and images that are read twice or stay in cache, are left alone.
#[test]
fn other_images_are_written() {
    let padded = Conv { pads: vec![1; 4], ..Conv::plain() };
    for (name, channels, twice) in [("channels", 67, false), ("twice", 32, true)] {
        let graph = graph(|b| {
            let x = b.input("x", f32s(&[1, 20, 9, 4]));
            let y = conv(b, x, &[1, 1, 4, channels], Conv::plain());
            let z = depthwise(b, y, &[3, 3], channels, padded.clone());
            if twice { b.map(ScalarFn::Add, &[y, z]).unwrap() } else { z }
        });
        compare(name, &graph, 4 << 10, 0);
    }
}
