//! Weights of 4 bits: initializers, and what multiplies by them.

mod common;

use common::{any, float_tensor, floats, graph, import, int, model, node, operator_set, run};
use windlass_frontend::onnx::proto::tensor_proto::DataType;
use windlass_frontend::onnx::proto::{GraphProto, NodeProto, TensorProto};
use windlass_ir::Tensor;

fn f(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values)
}

/// Two to a byte, the first in the low bits.
fn packed(values: &[i64]) -> Vec<u8> {
    let half = |value: Option<&i64>| value.map_or(0, |&value| (value & 15) as u8);
    values.chunks(2).map(|pair| half(pair.first()) | half(pair.get(1)) << 4).collect()
}

fn bytes_tensor(name: &str, ty: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_string()),
        dims: dims.to_vec(),
        data_type: Some(ty as i32),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

#[test]
fn initializers_of_4_bits_are_dequantized() {
    for (ty, low) in [(DataType::Int4, -8), (DataType::Uint4, 0)] {
        for shape in [[3, 5], [2, 4]] {
            let count: i64 = shape.iter().product();
            let values: Vec<i64> = (0..count).map(|i| low + i * 7 % 16).collect();
            let q = bytes_tensor("q", ty, &shape, packed(&values));
            let zeros: Vec<i64> = (0..shape[1]).map(|i| low + i + 3).collect();
            let zero = bytes_tensor("z", ty, &shape[1..], packed(&zeros));
            let scale = float_tensor("s", &shape[1..], &vec![0.5; zeros.len()]);
            let nodes = vec![node("DequantizeLinear", "q s z", "y", vec![int("axis", 1)])];
            let graph =
                GraphProto { initializer: vec![q, zero, scale], ..graph(nodes, vec![], vec![any("y")]) };
            let expected: Vec<f32> =
                values.iter().enumerate().map(|(i, q)| (q - zeros[i % zeros.len()]) as f32 * 0.5).collect();
            let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            assert_eq!(run(&model(21, graph), &[])[0], f(&shape, &expected));
        }
    }
}

/// There is no type of 4 bits that another operator could be told of.
#[test]
fn initializers_of_4_bits_are_for_dequantize_linear() {
    let q = bytes_tensor("z", DataType::Uint4, &[1], vec![3]);
    let scale = float_tensor("s", &[1], &[0.5]);
    let nodes = vec![node("QuantizeLinear", "x s z", "y", vec![])];
    let graph =
        GraphProto { initializer: vec![q, scale], ..graph(nodes, vec![floats("x", &[4])], vec![any("y")]) };
    let error = import(&model(21, graph)).unwrap_err().to_string();
    assert!(error.contains("elements of 4 bits"), "{error}");
}

#[test]
fn matmul_n_bits_multiplies_by_rows_in_blocks() {
    let (rows, columns, block) = (2usize, 3usize, 16usize);
    let scaled = |i: usize| 0.25 * (1 + i % 3) as f32;
    for (bits, steps) in [(4usize, 48usize), (4, 40), (8, 40)] {
        let blocks = steps.div_ceil(block);
        let q = |column: usize, step: usize| ((column * 29 + step * 7) % (1 << bits)) as i64;
        let zero = |column: usize, at: usize| ((column * 5 + at * 3) % (1 << bits)) as i64;
        let to_bytes = |values: &[i64]| match bits {
            4 => packed(values),
            _ => values.iter().map(|&value| value as u8).collect(),
        };
        let (mut weights, mut zeros, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for column in 0..columns {
            let row: Vec<i64> = (0..blocks * block).map(|step| q(column, step)).collect();
            weights.extend(to_bytes(&row));
            let row: Vec<i64> = (0..blocks).map(|at| zero(column, at)).collect();
            zeros.extend(to_bytes(&row));
            scales.extend((0..blocks).map(|at| scaled(column * blocks + at)));
        }
        let float_zeros: Vec<f32> =
            (0..columns * blocks).map(|i| zero(i / blocks, i % blocks) as f32 + 0.5).collect();
        let x: Vec<f32> = (0..rows * steps).map(|i| (i % 11) as f32 - 5.0).collect();
        for form in 0..3 {
            let operands = ["x b s", "x b s z", "x b s f _ c"][form];
            let b = [columns, blocks, block * bits / 8].map(|n| n as i64);
            let initializer = vec![
                bytes_tensor("b", DataType::Uint8, &b, weights.clone()),
                float_tensor("s", &[(columns * blocks) as i64], &scales),
                bytes_tensor("z", DataType::Uint8, &[zeros.len() as i64], zeros.clone()),
                float_tensor("f", &[columns as i64, blocks as i64], &float_zeros),
                float_tensor("c", &[columns as i64], &[1.0, 2.0, 3.0]),
            ];
            let size = |name: &str, size: usize| int(name, size as i64);
            let attributes =
                vec![size("K", steps), size("N", columns), size("bits", bits), size("block_size", block)];
            let product = NodeProto {
                domain: Some("com.microsoft".to_string()),
                ..node("MatMulNBits", operands, "y", attributes)
            };
            let ins = vec![floats("x", &[1, rows as i64, steps as i64])];
            let graph = GraphProto { initializer, ..graph(vec![product], ins, vec![any("y")]) };
            let mut model = model(21, graph);
            model.opset_import.push(operator_set("com.microsoft", 1));
            let y = run(&model, &[f(&[1, rows, steps], &x)]);
            let expected = |row: usize, column: usize| -> f32 {
                let weight = |step: usize| {
                    let (at, zero) = (step / block, zero(column, step / block) as f32);
                    let zero = [(1 << (bits - 1)) as f32, zero, zero + 0.5][form];
                    (q(column, step) as f32 - zero) * scaled(column * blocks + at)
                };
                let bias = if form == 2 { 1.0 + column as f32 } else { 0.0 };
                bias + (0..steps).map(|step| x[row * steps + step] * weight(step)).sum::<f32>()
            };
            let expected: Vec<f32> =
                (0..rows * columns).map(|i| expected(i / columns, i % columns)).collect();
            // Every number here is a few bits long, so sums are exact.
            assert_eq!(y[0], f(&[1, rows, columns], &expected), "{bits} bits, {steps} steps, form {form}");
        }
    }
}
