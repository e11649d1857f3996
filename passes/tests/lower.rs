//! Graphs lowered to programs mean what they meant: the loop interpreter against the graph interpreter.

mod common;

use common::{build, check, f32s, ramp};
use windlass_ir::loops::{Step, print_kernel};
use windlass_ir::ops::{
    Broadcast, Concat, Conv, Cumulative, CumulativeKind, LayerNorm, MatMul, Pool, PoolKind, Reduce,
    ReduceKind, Reshape, Softmax, Transpose,
};
use windlass_ir::{Builder, DType, ScalarFn, Value};
use windlass_passes::lower::{LowerOptions, lower};

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

/// What is dear and the same in every row is computed once for a stretch of lanes, if there are enough rows to read it.
#[test]
fn what_rows_have_in_common_is_made_once() {
    for rows in [2, 7, 1000] {
        let graph = build("broadcast", |b| {
            let (x, row) = (b.input("x", f32s(&[rows, 70])), b.input("row", f32s(&[70])));
            let row = b.map(ScalarFn::Exp, &[row]).unwrap();
            let wide = b.push1(Broadcast::to(&[rows, 70]), &[row]).unwrap();
            vec![b.map(ScalarFn::Add, &[x, wide]).unwrap()]
        });
        let program = lower(&graph, &LowerOptions::default()).unwrap();
        let [kernel] = program.kernels.as_slice() else { panic!("{program}") };
        let text = print_kernel(kernel);
        assert_eq!(text.contains(" stack\n"), rows > 2, "{text}");
        assert_eq!(text.matches("= exp ").count(), 1, "{text}");
    }
}

/// What several passes over a row compute dearly is computed by the first, unless the row is too long to keep.
#[test]
fn exponentials_of_a_row_are_made_once() {
    for (length, times) in [(37, 1), (128, 1), (5000, 2)] {
        let graph = build("softmax", |b| {
            let x = b.input("x", f32s(&[3, length]));
            let y = b.push1(Softmax { log: false, axis: -1, masked: false }, &[x]).unwrap();
            vec![b.map(ScalarFn::Add, &[y, x]).unwrap()]
        });
        let program = lower(&graph, &LowerOptions::default()).unwrap();
        let text: String = program.kernels.iter().map(print_kernel).collect();
        // Rows end within the lanes of a step, which is written out a second time.
        let ends = if length % 32 == 0 { 0 } else { 1 };
        assert_eq!(text.matches("= exp ").count(), times + ends, "{text}");
    }
    build("two reductions of what a third made", |b| {
        let x = b.input("x", f32s(&[5, 70]));
        let y = b.map(ScalarFn::Tanh, &[x]).unwrap();
        let (scale, bias) = (b.constant(ramp(&[70], 1)), b.constant(ramp(&[70], 2)));
        vec![b.push1(LayerNorm { axis: 1, epsilon: 1e-3, rms: false }, &[y, scale, bias]).unwrap()]
    });
}

#[test]
fn pieces_that_lanes_are_apart_in_are_put_together_first() {
    // Lanes are the rows of two elements that are summed, or the last dimension.
    for (axis, kernels) in [(-1, 2), (0, 1)] {
        let graph = build("pieces", |b| {
            let pieces: Vec<Value> =
                [5, 3, 9].iter().map(|&n| b.input(&format!("x{n}"), f32s(&[6, n, 2]))).collect();
            let together = b.push1(Concat { axis: 1 }, &pieces).unwrap();
            vec![b.push1(Reduce::over(ReduceKind::Sum, &[axis], false), &[together]).unwrap()]
        });
        let program = lower(&graph, &LowerOptions::default()).unwrap();
        assert_eq!(program.kernels.len(), kernels, "along {axis}");
    }
}
