//! Convolutions that read much of the zeros around small images, or taps that are far apart: steps that only add zeros are
//! left out, whatever the tile, without a trace in the bits.

use windlass_ir::loops::interpret::run_program;
use windlass_ir::loops::print_program;
use windlass_ir::ops::{Conv, ConvTranspose};
use windlass_ir::{Builder, DType, Graph, Tensor, TensorType};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_passes::{Options, pipeline, run};
use windlass_tests::widths::check_graph;

/// A convolution, channels last, of an image of this shape and a weight of this one, with so much of zeros on all sides.
struct Case {
    image: &'static [usize],
    weight: &'static [usize],
    border: i64,
    dilation: i64,
    stride: i64,
    group: i64,
}

impl Case {
    fn graph(&self, dtype: DType, weights: &[f64]) -> Graph {
        let mut b = Builder::new("g");
        let x = b.input("x", TensorType::fixed(dtype, self.image));
        let count: usize = self.weight.iter().product();
        let values: Vec<f64> = (0..count).map(|i| weights[i % weights.len()]).collect();
        let w = b.constant(Tensor::from_f64s(dtype, self.weight, &values));
        let spatial = self.image.len() - 2;
        let conv = Conv {
            strides: vec![self.stride; spatial],
            pads: vec![self.border; 2 * spatial],
            dilations: vec![self.dilation; spatial],
            group: self.group,
            channels_last: true,
        };
        let y = b.push1(conv, &[x, w]).unwrap();
        b.output("y", y);
        b.finish().unwrap()
    }
}

/// Whether loops test if a step is within the image: such a test goes down as the row goes up.
fn leaves_out(graph: &Graph, machine: Machine) -> bool {
    let program = lower(graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
    print_program(&program).lines().any(|line| line.trim().starts_with("if -") || line.contains("and -"))
}

const CASES: [Case; 7] = [
    Case { image: &[1, 9, 9, 16], weight: &[3, 3, 16, 32], border: 6, dilation: 6, stride: 1, group: 1 },
    Case { image: &[2, 7, 11, 20], weight: &[3, 3, 20, 40], border: 4, dilation: 4, stride: 1, group: 1 },
    Case {
        image: &[1, 2, 5, 5, 16],
        weight: &[3, 3, 3, 16, 24],
        border: 1,
        dilation: 1,
        stride: 1,
        group: 1,
    },
    Case { image: &[1, 3, 3, 32], weight: &[5, 5, 32, 16], border: 2, dilation: 1, stride: 1, group: 1 },
    Case { image: &[3, 1, 1, 40], weight: &[4, 4, 40, 33], border: 3, dilation: 1, stride: 1, group: 1 },
    Case { image: &[1, 6, 13, 32], weight: &[3, 3, 16, 32], border: 3, dilation: 3, stride: 2, group: 2 },
    Case { image: &[1, 12, 20], weight: &[9, 20, 64], border: 8, dilation: 2, stride: 1, group: 1 },
];

#[test]
fn steps_among_zeros_are_left_out() {
    for case in CASES {
        for dtype in [DType::F32, DType::F64] {
            let graph = case.graph(dtype, &[1.0, -0.5, 0.25, 2.0, -1.5, 0.0, 3.0]);
            let name = format!("a convolution of {dtype}{:?} and {:?}", case.image, case.weight);
            check_graph(&graph, &name);
            assert!(leaves_out(&graph, Machine::with_vectors(256)), "{name}");
        }
    }
}

#[test]
fn transposed_convolutions_leave_steps_out() {
    let mut b = Builder::new("g");
    let x = b.input("x", TensorType::fixed(DType::F32, &[1, 32, 4, 4]));
    let values: Vec<f32> = (0..32 * 16 * 16).map(|i| ((i * 7919) % 61) as f32 / 64.0).collect();
    let w = b.constant(Tensor::new(&[32, 16, 4, 4], &values));
    let op = ConvTranspose { strides: vec![2, 2], pads: vec![1; 4], ..ConvTranspose::plain() };
    let y = b.push1(op, &[x, w]).unwrap();
    b.output("y", y);
    let stages = pipeline("O2").unwrap().stages;
    let (graph, _) = run(&b.finish().unwrap(), stages, &Options::default()).unwrap();
    check_graph(&graph, "a transposed convolution");
    assert!(leaves_out(&graph, Machine::with_vectors(256)));
}

#[test]
fn what_is_left_out_does_not_show_in_the_bits() {
    // All products are too small for the type: sums are zeros, -0 where only those are added that are not left out.
    for case in CASES {
        let graph = case.graph(DType::F32, &[1e-30, 1e-32]);
        let ty = graph.ty(graph.inputs()[0].1);
        let tiny = Tensor::from_f64s(ty.dtype, &ty.shape(), &vec![-1e-30; ty.as_len().unwrap()]);
        let bits = |machine: Machine| {
            let program = lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
            run_program(&program, std::slice::from_ref(&tiny)).unwrap()[0].bytes().to_vec()
        };
        let expected = bits(Machine::with_vectors(128));
        for width in [128, 256, 512] {
            for rows in [1, 2, 5, 8] {
                let machine = Machine { tile_rows: rows, ..Machine::with_vectors(width) };
                assert!(bits(machine) == expected, "{width} bits, {rows} rows, {:?}", case.image);
            }
        }
    }
}

#[test]
fn nothing_is_left_out_where_it_could_show_or_not_pay() {
    let machine = Machine::with_vectors(256);
    let [dilated, ..] = CASES;
    for weight in [f64::INFINITY, f64::NAN] {
        assert!(!leaves_out(&dilated.graph(DType::F32, &[1.0, weight]), machine));
    }
    let large = Case {
        image: &[1, 40, 40, 16],
        weight: &[3, 3, 16, 32],
        border: 1,
        dilation: 1,
        stride: 1,
        group: 1,
    };
    assert!(!leaves_out(&large.graph(DType::F32, &[1.0]), machine));
    // A weight that comes with the run may be anything.
    let mut b = Builder::new("g");
    let x = b.input("x", TensorType::fixed(DType::F32, dilated.image));
    let w = b.input("w", TensorType::fixed(DType::F32, dilated.weight));
    let (pads, dilations) = (vec![6; 4], vec![6; 2]);
    let y = b.push1(Conv { pads, dilations, channels_last: true, ..Conv::plain() }, &[x, w]).unwrap();
    b.output("y", y);
    assert!(!leaves_out(&b.finish().unwrap(), machine));
}
