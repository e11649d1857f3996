//! Operators whose ONNX form differs from the op they become, form by form.

mod common;

use common::*;
use windlass_frontend::onnx::proto::tensor_proto::DataType;
use windlass_ir::Tensor;

fn f(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values)
}

fn i(values: &[i64]) -> Tensor {
    Tensor::from_ints(values)
}

#[test]
fn add_before_operator_set_7_places_the_second_operand_at_an_axis() {
    let x = f(&[2, 3, 1], &[0., 1., 2., 3., 4., 5.]);
    let y = run_node("Add", 6, 1, vec![int("broadcast", 1), int("axis", 0)], &[x, f(&[2], &[10., 20.])]);
    assert_eq!(y[0], f(&[2, 3, 1], &[10., 11., 12., 23., 24., 25.]));
}

#[test]
fn softmax_before_operator_set_13_is_over_all_dimensions_from_the_axis_on() {
    let x = f(&[1, 2, 2], &[0.; 4]);
    assert_eq!(run_node("Softmax", 12, 1, vec![], &[x.clone()])[0], f(&[1, 2, 2], &[0.25; 4]));
    assert_eq!(run_node("Softmax", 12, 1, vec![int("axis", -1)], &[x.clone()])[0], f(&[1, 2, 2], &[0.5; 4]));
    assert_eq!(run_node("Softmax", 13, 1, vec![], &[x])[0], f(&[1, 2, 2], &[0.5; 4]));
}

#[test]
fn clip_has_attributes_then_operands() {
    let x = f(&[3], &[-5., 0.5, 5.]);
    let old = run_node("Clip", 6, 1, vec![float("min", -1.), float("max", 1.)], &[x.clone()]);
    let new = run_node("Clip", 13, 1, vec![], &[x.clone(), f(&[], &[-1.]), f(&[], &[1.])]);
    assert_eq!(old, new);
    assert_eq!(old[0], f(&[3], &[-1., 0.5, 1.]));
    assert_eq!(run_node("Clip", 13, 1, vec![], &[x.clone()])[0], x);
}

#[test]
fn slice_has_attributes_then_operands() {
    let x = i(&[0, 1, 2, 3, 4, 5]);
    let old = run_node("Slice", 9, 1, vec![int_list("starts", &[1]), int_list("ends", &[-1])], &[x.clone()]);
    assert_eq!(old[0], i(&[1, 2, 3, 4]));
    let new = run_node("Slice", 13, 1, vec![], &[x, i(&[5]), i(&[i64::MIN]), i(&[0]), i(&[-2])]);
    assert_eq!(new[0], i(&[5, 3, 1]));
}

#[test]
fn split_takes_sizes_or_shares_equally() {
    let x = i(&[0, 1, 2, 3, 4]);
    let parts = run_node("Split", 18, 2, vec![int("num_outputs", 2)], &[x.clone()]);
    assert_eq!(parts, [i(&[0, 1, 2]), i(&[3, 4])]);
    let parts = run_node("Split", 11, 2, vec![int_list("split", &[1, 4])], &[x.clone()]);
    assert_eq!(parts, [i(&[0]), i(&[1, 2, 3, 4])]);
    // The sizes are a graph input: they are known only when the model runs.
    let parts = run_node("Split", 13, 2, vec![], &[x, i(&[2, 3])]);
    assert_eq!(parts, [i(&[0, 1]), i(&[2, 3, 4])]);
}

#[test]
fn squeeze_and_unsqueeze_have_attributes_then_operands() {
    let x = f(&[1, 2, 1], &[1., 2.]);
    for y in [
        run_node("Squeeze", 11, 1, vec![int_list("axes", &[0, -1])], &[x.clone()]),
        run_node("Squeeze", 13, 1, vec![], &[x.clone()]),
        run_node("Squeeze", 13, 1, vec![], &[x.clone(), i(&[0, 2])]),
    ] {
        assert_eq!(y[0], f(&[2], &[1., 2.]));
    }
    for y in [
        run_node("Unsqueeze", 11, 1, vec![int_list("axes", &[0, 4])], &[x.clone()]),
        run_node("Unsqueeze", 13, 1, vec![], &[x.clone(), i(&[0, 4])]),
    ] {
        assert_eq!(y[0], f(&[1, 1, 2, 1, 1], &[1., 2.]));
    }
}

#[test]
fn auto_pad_puts_what_is_odd_above_or_below() {
    let x = f(&[1, 1, 4], &[1., 2., 3., 4.]);
    let pool = |auto_pad| {
        let attributes = vec![int_list("kernel_shape", &[2]), text("auto_pad", auto_pad)];
        run_node("MaxPool", 12, 1, attributes, &[x.clone()]).remove(0)
    };
    assert_eq!(pool("SAME_UPPER"), f(&[1, 1, 4], &[2., 3., 4., 4.]));
    assert_eq!(pool("SAME_LOWER"), f(&[1, 1, 4], &[1., 2., 3., 4.]));
    assert_eq!(pool("VALID"), f(&[1, 1, 3], &[2., 3., 4.]));
}

#[test]
fn gemm_scales_transposes_and_broadcasts() {
    let (a, b) = (f(&[2, 1], &[1., 2.]), f(&[2, 2], &[1., 2., 3., 4.]));
    let attributes = vec![float("alpha", 2.), float("beta", 10.), int("transA", 1), int("transB", 1)];
    let y = run_node("Gemm", 13, 1, attributes, &[a, b, f(&[2], &[1., 2.])]);
    assert_eq!(y[0], f(&[1, 2], &[2. * 5. + 10., 2. * 11. + 20.]));
}

#[test]
fn matmul_of_vectors_drops_their_dimension() {
    let (v, m) = (f(&[2], &[1., 2.]), f(&[2, 3], &[1., 2., 3., 4., 5., 6.]));
    assert_eq!(run_node("MatMul", 13, 1, vec![], &[v.clone(), m])[0], f(&[3], &[9., 12., 15.]));
    assert_eq!(run_node("MatMul", 13, 1, vec![], &[v.clone(), v])[0], f(&[], &[5.]));
}

#[test]
fn matmul_integer_takes_zero_points_off() {
    let a = Tensor::new::<u8>(&[2, 1], &[3, 5]);
    let b = Tensor::new::<i8>(&[1, 2], &[2, -2]);
    let zeros = [Tensor::new::<u8>(&[2], &[1, 2]), Tensor::new::<i8>(&[], &[1])];
    let y = run_node("MatMulInteger", 10, 1, vec![], &[a, b, zeros[0].clone(), zeros[1].clone()]);
    assert_eq!(y[0], Tensor::new::<i32>(&[2, 2], &[2, -6, 3, -9]));
}

#[test]
fn log_sum_exp_neither_overflows_nor_loses_infinities() {
    let inf = f32::INFINITY;
    let x = f(&[3, 2], &[1000., 1000., -inf, -inf, inf, 0.]);
    let y = run_node("ReduceLogSumExp", 13, 1, vec![int_list("axes", &[1]), int("keepdims", 0)], &[x]);
    assert_eq!(y[0], f(&[3], &[1000.0 + std::f32::consts::LN_2, -inf, inf]));
}

#[test]
fn pow_has_the_type_of_its_base() {
    let y = run_node("Pow", 13, 1, vec![], &[i(&[2, 3]), f(&[2], &[3., 2.])]);
    assert_eq!(y[0], i(&[8, 9]));
}

#[test]
fn depth_to_space_and_back() {
    let x = Tensor::from_f64s(
        windlass_ir::DType::F32,
        &[1, 8, 1, 2],
        &(0..16).map(f64::from).collect::<Vec<_>>(),
    );
    for mode in ["DCR", "CRD"] {
        let y = run_node("DepthToSpace", 13, 1, vec![int("blocksize", 2), text("mode", mode)], &[x.clone()]);
        assert_eq!(y[0].shape(), [1, 2, 2, 4]);
        if mode == "DCR" {
            let back = run_node("SpaceToDepth", 13, 1, vec![int("blocksize", 2)], &[y[0].clone()]);
            assert_eq!(back[0], x);
        }
    }
}

#[test]
fn shape_takes_a_part() {
    let x = f(&[2, 0, 5], &[]);
    assert_eq!(run_node("Shape", 15, 1, vec![], &[x.clone()])[0], i(&[2, 0, 5]));
    assert_eq!(run_node("Shape", 15, 1, vec![int("start", -2), int("end", 9)], &[x.clone()])[0], i(&[0, 5]));
    assert_eq!(run_node("Shape", 15, 1, vec![int("start", 2), int("end", 1)], &[x.clone()])[0], i(&[]));
    assert_eq!(run_node("Size", 13, 1, vec![], &[x])[0], Tensor::scalar(0i64));
}

#[test]
fn constants_in_every_form() {
    let forms = vec![
        (tensor_attribute("value", int_tensor("", &[2], &[1, 2])), i(&[1, 2])),
        (int("value_int", 3), Tensor::scalar(3i64)),
        (int_list("value_ints", &[4, 5]), i(&[4, 5])),
        (float("value_float", 0.5), Tensor::scalar(0.5f32)),
    ];
    for (attribute, expected) in forms {
        let nodes = vec![node("Constant", "", "y", vec![attribute])];
        assert_eq!(run(&model(18, graph(nodes, vec![], vec![any("y")])), &[])[0], expected);
    }
}

#[test]
fn constant_of_shape_and_eye_like_of_shapes_known_later() {
    let sizes = ints("s", &[2]);
    let eye = node("EyeLike", "c", "y", vec![int("k", 1), int("dtype", DataType::Int64 as i64)]);
    let nodes = vec![node("ConstantOfShape", "s", "c", vec![]), eye];
    let y = run(&model(18, graph(nodes, vec![sizes], vec![any("y")])), &[i(&[2, 3])]);
    assert_eq!(y[0], Tensor::new::<i64>(&[2, 3], &[0, 1, 0, 0, 0, 1]));
}

#[test]
fn resize_by_scales_known_now_or_later() {
    let x = f(&[1, 1, 4], &[1., 2., 3., 4.]);
    let scales = f(&[3], &[1., 1., 0.6]);
    let attributes = || vec![text("mode", "linear")];
    let later = {
        let nodes = vec![node("Resize", "x _ s", "y", attributes())];
        let g = graph(nodes, vec![floats("x", &[1, 1, 4]), floats("s", &[3])], vec![any("y")]);
        run(&model(19, g), &[x.clone(), scales])
    };
    let now = {
        let nodes = vec![node("Resize", "x _ s", "y", attributes())];
        let mut g = graph(nodes, vec![floats("x", &[1, 1, 4])], vec![any("y")]);
        g.initializer.push(float_tensor("s", &[3], &[1., 1., 0.6]));
        run(&model(19, g), &[x])
    };
    assert_eq!(later, now);
    assert_eq!(now[0].shape(), [1, 1, 2]);
}

#[test]
fn windows_are_periodic_or_symmetric() {
    let size = Tensor::scalar(4i64);
    let periodic = run_node("HannWindow", 17, 1, vec![], &[size.clone()]);
    let symmetric = run_node("HannWindow", 17, 1, vec![int("periodic", 0)], &[size]);
    for (found, expected) in [(periodic, [0., 0.5, 1., 0.5]), (symmetric, [0., 0.75, 0.75, 0.])] {
        let close = found[0].to_f64s().iter().zip(expected).all(|(a, b): (&f64, f64)| (a - b).abs() < 1e-6);
        assert!(close, "{found:?}");
    }
}
