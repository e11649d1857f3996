//! Cells by hand, and every option against plain loops.

use super::*;
use crate::ops::testing::{check, sample};

const KINDS: [CellKind; 3] = [CellKind::Rnn, CellKind::Gru, CellKind::Lstm];

/// Operands for 4 steps of 3 sequences of 2 features.
fn operands(op: &Recurrent, dtype: DType, size: usize) -> Vec<Tensor> {
    let (d, g) = (op.direction.reversed().len(), op.cell.kind.gates() * size);
    let x = if op.batch_first { [3, 4, 2] } else { [4, 3, 2] };
    let mut ins = vec![sample(dtype, &x, 1), sample(dtype, &[d, g, 2], 2), sample(dtype, &[d, g, size], 3)];
    let state = op.state_dims(d, 3, size);
    if op.bias {
        ins.push(sample(dtype, &[d, 2 * g], 4));
    }
    if op.sequence_lens {
        ins.push(Tensor::new(&[3], &[4i32, 0, 2]));
    }
    if op.initial_h {
        ins.push(sample(dtype, &state, 5));
    }
    if op.initial_c && op.is_lstm() {
        ins.push(sample(dtype, &state, 6));
    }
    if op.peepholes && op.is_lstm() {
        ins.push(sample(dtype, &[d, 3 * size], 7));
    }
    ins
}

#[test]
fn one_step_of_each_cell_by_hand() {
    let one = |shape: &[usize]| Tensor::from_f64s(DType::F64, shape, &vec![1.0; shape.iter().product()]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let run = |kind: CellKind| {
        let g = kind.gates();
        check(Recurrent::plain(kind), &[one(&[1, 1, 1]), one(&[1, g, 1]), one(&[1, g, 1])])
    };
    let near = |found: &Tensor, expected: f64| assert!((found.to_f64s()[0] - expected).abs() < 1e-12);
    near(&run(CellKind::Rnn)[0], 1f64.tanh());
    near(&run(CellKind::Gru)[0], (1.0 - sigmoid(1.0)) * 1f64.tanh());
    let c = sigmoid(1.0) * 1f64.tanh();
    let lstm = run(CellKind::Lstm);
    near(&lstm[2], c);
    near(&lstm[1], sigmoid(1.0) * c.tanh());
}

#[test]
fn options_agree_with_the_loops() {
    for kind in KINDS {
        for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
            for (on, batch_first) in [(false, false), (true, false), (true, true)] {
                let mut cell = Cell::plain(kind);
                let directions = direction.reversed().len();
                cell.activations = ["HardSigmoid"].repeat(kind.activations() * directions).join(" ");
                cell.activation_alpha = vec![0.4; kind.activations() * directions];
                (cell.linear_before_reset, cell.clip) = (on, if on { 0.8 } else { 0.0 });
                let op = Recurrent {
                    cell,
                    direction,
                    batch_first,
                    bias: on,
                    sequence_lens: on,
                    initial_h: on,
                    initial_c: on,
                    peepholes: on,
                };
                for dtype in [DType::F32, DType::F64] {
                    check(op.clone(), &operands(&op, dtype, 5));
                }
            }
        }
    }
}

#[test]
fn every_activation_agrees_with_the_loops() {
    for names in ["Relu Affine LeakyRelu", "ThresholdedRelu ScaledTanh HardSigmoid", "Elu Softsign Softplus"]
    {
        let mut cell = Cell::plain(CellKind::Lstm);
        cell.activations = names.to_string();
        let takes = |words: &[&str]| words.iter().filter(|w| names.contains(*w)).count();
        cell.activation_alpha =
            vec![0.3; takes(&["Affine", "LeakyRelu", "Thresh", "Scaled", "Hard", "Elu"]).min(3)];
        cell.activation_beta = vec![0.7; takes(&["Affine", "Scaled", "Hard"])];
        if names.starts_with("Relu") {
            cell.activation_alpha.truncate(2);
        }
        if names.starts_with("Elu") {
            cell.activation_alpha.truncate(1);
        }
        cell.input_forget = true;
        let op = Recurrent { cell, ..Recurrent::plain(CellKind::Lstm) };
        check(op.clone(), &operands(&op, DType::F64, 3));
    }
}

#[test]
fn sequences_end_where_their_length_says() {
    let op =
        Recurrent { sequence_lens: true, direction: Direction::Reverse, ..Recurrent::plain(CellKind::Rnn) };
    let outs = check(op.clone(), &operands(&op, DType::F32, 2));
    let y = outs[0].to_f64s();
    // The second sequence has no steps, the third two.
    assert!((0..4).all(|t| y[(t * 3 + 1) * 2] == 0.0));
    assert!(y[(3 + 2) * 2] != 0.0 && y[(6 + 2) * 2] == 0.0);
    assert_eq!(outs[1].to_f64s()[4..], y[4..6]);
}

#[test]
fn constraints_are_named() {
    let op = Recurrent::plain(CellKind::Gru);
    let types: Vec<TensorType> = operands(&op, DType::F32, 5).iter().map(Tensor::ty).collect();
    let mut ins: Vec<&TensorType> = types.iter().collect();
    assert!(op.infer(&ins).is_ok());
    let lstm = Recurrent::plain(CellKind::Lstm);
    assert_eq!(lstm.infer(&ins).unwrap_err().constraint, "C2");
    let mut named = op.clone();
    named.cell.activations = "Sigmoid Swoosh".to_string();
    assert_eq!(named.infer(&ins).unwrap_err().constraint, "C3");
    named.cell.activations = "Tanh".to_string();
    assert_eq!(named.infer(&ins).unwrap_err().constraint, "C3");
    let half = types[0].with_dtype(DType::F16);
    ins[0] = &half;
    assert_eq!(op.infer(&ins).unwrap_err().constraint, "C1");
}
