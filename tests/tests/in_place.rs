//! States that a model replaces in their memory: the same bits as in memory of their own.

use windlass::{Builder, DType, Engine, Graph, Options, ScalarFn, Session, Tensor, TensorType};
use windlass_frontend::nn::layers::{Activation, Conv, Dense, Flatten, Layer};
use windlass_frontend::nn::{Convention, Decay, Loss, Net, Optimizer, Rule, Step, Training, WeightedMean};
use windlass_ir::Value;
use windlass_ir::ops::{MatMul, Transpose};

/// The step of a small network on images; sizes leave rests of every kind.
fn step(units: usize, optimizer: Optimizer) -> Step {
    let mut net = Net::new("step", DType::F32, true);
    let x = net.input("x", TensorType::fixed(DType::F32, &[3, 6, 7, 2]));
    let y = net.input("y", TensorType::fixed(DType::I32, &[3]));
    let conv = Conv::new(5, &[3, 3]).activation(Activation::Relu);
    let mut z = conv.apply(&mut net, x).expect("valid");
    z = Flatten.apply(&mut net, z).expect("valid");
    z = Dense::new(units).activation(Activation::Tanh).apply(&mut net, z).expect("valid");
    z = Dense::new(4).apply(&mut net, z).expect("valid");
    let loss = Loss::SparseCategoricalCrossentropy { from_logits: true };
    let training = Training { loss, optimizer, weighted: WeightedMean::Count, privacy: None };
    training.step(net.build(), z, y, None).expect("valid")
}

fn batch() -> [Tensor; 2] {
    let x: Vec<f32> = (0..3 * 6 * 7 * 2).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    [Tensor::new(&[3, 6, 7, 2], &x), Tensor::new(&[3], &[0i32, 3, 1])]
}

fn optimizers() -> Vec<Optimizer> {
    let momentum = Rule::Sgd { momentum: 0.9, nesterov: true };
    let lamb = Rule::Lamb { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-6 };
    let of = |rule| Optimizer { rule, ..Optimizer::adam(1e-2) };
    vec![
        Optimizer::adam(1e-2),
        Optimizer { convention: Convention::Torch, decay: Decay::Coupled(0.01), ..of(momentum) },
        Optimizer { decay: Decay::Decoupled(0.1), ..of(lamb) },
    ]
}

#[test]
fn training_steps_replace_their_state() {
    for optimizer in optimizers() {
        for units in [1, 9, 24] {
            for guarded in [false, true] {
                let step = step(units, optimizer.clone());
                let step = if guarded { step.guarded().expect("valid") } else { step };
                let apart = Session::new(step.graph.clone(), Options::default()).expect("compiles");
                for (engine, threads) in [(Engine::Jit, 1), (Engine::Jit, 2), (Engine::Loops, 1)] {
                    let options =
                        Options { engine, threads, in_place: step.in_place(), ..Options::default() };
                    let session = Session::new(step.graph.clone(), options).expect("compiles");
                    let mut state = step.state.initial(3);
                    for _ in 0..3 {
                        let expected = apart
                            .run(state.iter().cloned().chain(batch()).collect::<Vec<_>>())
                            .expect("runs")
                            .into_tensors();
                        // As a caller that holds the only copies.
                        for tensor in &mut state {
                            let _ = tensor.bytes_mut();
                        }
                        let results = session.run_in_place(&mut state, &batch()).expect("runs");
                        for (found, expected) in results.iter().chain(&state).zip(&expected) {
                            assert_eq!(found, expected, "{units} units, {engine:?}, {threads} threads");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn memory_that_nobody_else_holds_stays() {
    let step = step(9, Optimizer::adam(1e-2));
    let options = Options { in_place: step.in_place(), ..Options::default() };
    let session = Session::new(step.graph.clone(), options).expect("compiles");
    let mut state = step.state.initial(3);
    let before: Vec<usize> = state.iter().map(|tensor| tensor.bytes().as_ptr().addr()).collect();
    let held = state[0].clone();
    session.run_in_place(&mut state, &batch()).expect("runs");
    let after: Vec<usize> = state.iter().map(|tensor| tensor.bytes().as_ptr().addr()).collect();
    assert_eq!(before[1..], after[1..]);
    // What somebody else holds is theirs.
    assert_ne!(before[0], after[0]);
    assert_eq!(held, step.state.initial(3)[0]);
}

/// A graph of states `a` and `b`, `[5, 5]`, and what each becomes.
fn exchange(next: impl Fn(&mut Builder, Value, Value) -> [Value; 2]) -> Graph {
    let mut b = Builder::new("exchange");
    let ty = TensorType::fixed(DType::F32, &[5, 5]);
    let (x, y) = (b.input("a", ty.clone()), b.input("b", ty));
    let [a, z] = next(&mut b, x, y);
    b.output("next.a", a);
    b.output("next.b", z);
    b.finish().expect("valid")
}

#[test]
fn states_that_depend_on_each_other_are_read_before_they_are_replaced() {
    let graphs = [
        exchange(|_, x, y| [y, x]),
        exchange(|_, x, _| [x, x]),
        exchange(|_, x, y| [x, y]),
        exchange(|b, x, y| {
            let sum = b.map(ScalarFn::Add, &[x, y]).expect("valid");
            let difference = b.map(ScalarFn::Sub, &[x, y]).expect("valid");
            [sum, difference]
        }),
        exchange(|b, x, y| {
            let turned = b.push1(Transpose::by(&[1, 0]), &[x]).expect("valid");
            let product = b.push1(MatMul::default(), &[x, y]).expect("valid");
            [turned, product]
        }),
        exchange(|b, x, y| {
            let product = b.push1(MatMul::default(), &[y, y]).expect("valid");
            let next = b.map(ScalarFn::Sub, &[x, product]).expect("valid");
            let square = b.map(ScalarFn::Mul, &[y, y]).expect("valid");
            [next, square]
        }),
    ];
    let values = |seed: i32| (0..25).map(|i| ((i * seed) % 13) as f32 - 6.0).collect::<Vec<f32>>();
    let state = [Tensor::new(&[5, 5], &values(7)), Tensor::new(&[5, 5], &values(5))];
    let in_place = vec![("a".into(), "next.a".into()), ("b".into(), "next.b".into())];
    for (number, graph) in graphs.into_iter().enumerate() {
        let expected = windlass_ir::interpret(&graph, &state).expect("runs");
        for engine in [Engine::Jit, Engine::Loops, Engine::Interpreter] {
            for opt_level in [0, 2] {
                let options = Options { engine, opt_level, in_place: in_place.clone(), ..Options::default() };
                let session = Session::new(graph.clone(), options).expect("compiles");
                let mut found = state.to_vec();
                session.run_in_place(&mut found, &[]).expect("runs");
                assert_eq!(found, expected, "graph {number}, {engine:?}, level {opt_level}");
            }
        }
    }
}

#[test]
fn pairs_must_fit() {
    let graph = exchange(|_, x, y| [y, x]);
    for (pairs, message) in [
        (
            vec![("c", "next.a")],
            "output `next.a` cannot stand in the memory of input `c`: there is no such input, or a pair before has it",
        ),
        (
            vec![("a", "next.a"), ("a", "next.b")],
            "output `next.b` cannot stand in the memory of input `a`: there is no such input, or a pair before has it",
        ),
    ] {
        let in_place = pairs.iter().map(|(i, o)| (i.to_string(), o.to_string())).collect();
        let result = Session::new(graph.clone(), Options { in_place, ..Options::default() });
        assert_eq!(result.err().expect("refused").to_string(), message);
    }
}

/// A run that is checked looks for the first value that is not a number in a graph of other outputs.
#[test]
fn what_is_not_a_number_is_found_beside_a_state() {
    let graph = exchange(|b, x, y| {
        let root = b.map(ScalarFn::Sqrt, &[x]).expect("valid");
        [root, y]
    });
    let in_place = vec![("a".to_string(), "next.a".to_string())];
    let session = Session::new(graph, Options { in_place, ..Options::default() }).expect("compiles");
    let states = [Tensor::new(&[5, 5], &[-1f32; 25]), Tensor::new(&[5, 5], &[0f32; 25])];
    let error = session.run_checked(states.to_vec(), windlass::NanPolicy::Stop).expect_err("refused");
    assert!(error.to_string().contains("sqrt"), "{error}");
}
