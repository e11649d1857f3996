//! Sessions: inputs by name and order, sizes bound per run, graphs that split where sizes depend on data.

use windlass::{
    Builder, DType, Dim, Engine, Error, Graph, Options, ScalarFn, Session, Tensor, TensorType, ops,
};

fn both_engines(graph: &Graph) -> [Session; 2] {
    [Engine::Jit, Engine::Interpreter]
        .map(|engine| Session::new(graph.clone(), Options { engine, ..Options::default() }).unwrap())
}

fn batch_add() -> Graph {
    let mut b = Builder::new("add");
    let ty = TensorType::new(DType::F32, [Dim::named("batch"), Dim::Fixed(2)]);
    let x = b.input("x", ty.clone());
    let y = b.input("y", ty);
    let z = b.map(ScalarFn::Sub, &[x, y]).unwrap();
    b.output("z", z);
    b.finish().unwrap()
}

fn rows(n: usize, value: f32) -> Tensor {
    Tensor::new(&[n, 2], &vec![value; 2 * n])
}

#[test]
fn inputs_go_by_name_or_order_for_any_batch() {
    for session in both_engines(&batch_add()) {
        for n in [1, 3, 0, 1] {
            let named = session.run([("y", rows(n, 1.0)), ("x", rows(n, 5.0))]).unwrap();
            let ordered = session.run([rows(n, 5.0), rows(n, 1.0)]).unwrap();
            assert_eq!(named["z"], rows(n, 4.0));
            assert_eq!(named, ordered);
        }
    }
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    for session in both_engines(&batch_add()) {
        let message = |outcome: Result<_, Error>| outcome.map(|_| ()).unwrap_err().to_string();
        let x = || rows(1, 0.0);
        assert_eq!(message(session.run([("x", x())])), "input `y` is missing");
        assert_eq!(
            message(session.run([("x", x()), ("w", x())])),
            "the model has no input `w`; its inputs are x, y"
        );
        assert_eq!(message(session.run([("x", x()), ("x", x())])), "input `x` is given twice");
        assert_eq!(
            message(session.run([x(), rows(2, 0.0)])),
            "input `y` takes f32[batch, 2], found f32[2, 2]"
        );
    }
}

/// `y = reshape(2x, s) + reshape(2x, s)`, then its column sums reshaped by a shape computed from `s`.
fn late_shapes() -> Graph {
    let mut b = Builder::new("late");
    let x = b.input("x", TensorType::new(DType::F32, [Dim::named("n")]));
    let s = b.input("s", TensorType::fixed(DType::I64, &[2]));
    let two = b.scalar(DType::F32, 2.0);
    let doubled = b.map(ScalarFn::Mul, &[x, two]).unwrap();
    let reshape = || ops::Reshape { shape: windlass_ir::Late::Operand(1), copy_zero: false };
    let shaped = b.push1(reshape(), &[doubled, s]).unwrap();
    let sum = b.map(ScalarFn::Add, &[shaped, shaped]).unwrap();
    let one = b.scalar(DType::I64, 1.0);
    let swapped = b.map(ScalarFn::Mul, &[s, one]).unwrap();
    let again = b.push1(reshape(), &[sum, swapped]).unwrap();
    b.output("again", again);
    b.output("doubled", doubled);
    b.output("x", x);
    b.finish().unwrap()
}

#[test]
fn shapes_computed_at_run_time_split_the_program() {
    let [jit, interpreter] = both_engines(&late_shapes());
    for (n, shape) in [(6, [2, 3]), (6, [3, 2]), (4, [1, 4]), (6, [2, 3]), (0, [0, 5])] {
        let x = Tensor::from_fn::<f32>(&[n], |i| i as f32);
        let inputs = [("x", x), ("s", Tensor::from_ints(&shape))];
        let outputs = jit.run(inputs.clone()).unwrap();
        assert_eq!(outputs, interpreter.run(inputs).unwrap());
        assert_eq!(outputs["again"].shape(), shape.map(|n| n as usize));
    }
    let inputs = [("x", rows(1, 0.0).reshaped(&[2])), ("s", Tensor::from_ints(&[3, 3]))];
    let error = jit.run(inputs).unwrap_err();
    assert!(error.to_string().contains("reshape"), "{error}");
}

#[test]
fn one_session_serves_many_threads() {
    let [session, _] = both_engines(&batch_add());
    std::thread::scope(|scope| {
        for n in 1..5 {
            let session = &session;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(session.run([rows(n, 2.0), rows(n, 1.0)]).unwrap()["z"], rows(n, 1.0));
                }
            });
        }
    });
}

/// What is rounded is the weight and nothing else.
#[test]
fn weights_in_bf16_are_those_rounded_to_it() {
    let product = |round: bool| {
        let mut b = Builder::new("product");
        let x = b.input("x", TensorType::fixed(DType::F32, &[2, 64]));
        let w = b.constant(Tensor::from_fn::<f32>(&[64, 48], |i| (i as f32).sin()));
        let w = if round { b.cast(w, DType::BF16).unwrap() } else { w };
        let w = b.cast(w, DType::F32).unwrap();
        let y = b.push1(ops::MatMul::default(), &[x, w]).unwrap();
        b.output("y", y);
        b.finish().unwrap()
    };
    let x = Tensor::from_fn::<f32>(&[2, 64], |i| (i as f32).cos());
    let run = |graph: Graph, bf16_weights: bool| {
        let session = Session::new(graph, Options { bf16_weights, ..Options::default() }).unwrap();
        session.run([x.clone()]).unwrap()["y"].clone()
    };
    assert_eq!(run(product(false), true), run(product(true), false));
    assert_ne!(run(product(false), true), run(product(false), false));
}
