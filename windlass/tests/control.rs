//! Graphs inside graphs: branches and bodies of loops are compiled, once for each set of sizes that they meet.

use std::sync::Arc;

use windlass::{Builder, DType, Dim, Engine, Graph, Options, ScalarFn, Session, Tensor, TensorType, ops};

const ENGINES: [Engine; 3] = [Engine::Jit, Engine::Loops, Engine::Interpreter];

fn session(graph: &Graph, engine: Engine) -> Session {
    Session::new(graph.clone(), Options { engine, ..Options::default() }).unwrap()
}

fn scalar(dtype: DType) -> TensorType {
    TensorType::fixed(dtype, &[])
}

fn open(dims: usize) -> TensorType {
    TensorType::new(DType::F32, vec![Dim::Unknown; dims])
}

fn flag(value: bool) -> Tensor {
    Tensor::from_i128s(DType::Bool, &[], &[value.into()])
}

/// Small whole numbers, whose products are exact.
fn numbers(shape: &[usize]) -> Tensor {
    Tensor::from_fn::<f32>(shape, |i| (i * 7 % 5) as f32 - 2.0)
}

/// A branch `f(x w)`.
fn branch(f: ScalarFn) -> Arc<Graph> {
    let mut b = Builder::new("branch");
    let (x, w) = (b.input("x", open(2)), b.input("w", open(2)));
    let product = b.push1(ops::MatMul::default(), &[x, w]).unwrap();
    let y = b.map(f, &[product]).unwrap();
    b.output("y", y);
    Arc::new(b.finish().unwrap())
}

/// `c ? relu(x w) : -(x w)`, plus the sum of what is before the branches.
fn choosing() -> Graph {
    let mut b = Builder::new("choosing");
    let c = b.input("c", scalar(DType::Bool));
    let x = b.input("x", TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(4)]));
    let w = b.constant(numbers(&[4, 3]));
    let twice = b.map(ScalarFn::Add, &[x, x]).unwrap();
    let op = ops::If { then_branch: branch(ScalarFn::Relu), else_branch: branch(ScalarFn::Neg) };
    let y = b.push(op, &[c, twice, w], None).unwrap()[0];
    let y = b.map(ScalarFn::Add, &[y, y]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

#[test]
fn branches_are_compiled() {
    let sessions = ENGINES.map(|engine| session(&choosing(), engine));
    for (n, c) in [(2, true), (2, false), (5, false), (0, true), (2, true)] {
        let inputs = [flag(c), numbers(&[n, 4])];
        let [jit, loops, expected] =
            [0, 1, 2].map(|at: usize| sessions[at].run_counted(inputs.clone()).unwrap());
        assert_eq!(jit.0["y"], expected.0["y"], "{n} rows, {c}");
        assert_eq!(loops.0["y"], expected.0["y"], "{n} rows, {c}");
        assert_eq!(jit.1.interpreted, 0);
    }
}

#[test]
fn profiles_show_what_is_in_branches() {
    let options = Options { profile: true, ..Options::default() };
    let session = Session::new(choosing(), options).unwrap();
    session.run([flag(true), numbers(&[2, 4])]).unwrap();
    let profile = session.profile();
    assert!(profile.iter().any(|kernel| kernel.name.contains("matmul")), "{profile:?}");
}

/// A loop over `(sum, list, same)` and a capture `x`: the sum grows by `same x`, the list by the sum, and each sum is
/// stacked; it goes on while the trip count allows and the condition that it gives is `more`.
fn growing(more: Option<f64>) -> Graph {
    let mut body = Builder::new("body");
    body.input("i", scalar(DType::I64));
    let again = body.input("again", scalar(DType::Bool));
    let sum = body.input("sum", TensorType::fixed(DType::F32, &[2]));
    let list = body.input("list", open(1));
    let same = body.input("same", TensorType::fixed(DType::F32, &[2]));
    let x = body.input("x", TensorType::fixed(DType::F32, &[2]));
    let step = body.map(ScalarFn::Mul, &[same, x]).unwrap();
    let next = body.map(ScalarFn::Add, &[sum, step]).unwrap();
    let longer = body.push1(ops::Concat { axis: 0 }, &[list, next]).unwrap();
    let again = match more {
        None => again,
        Some(most) => {
            let zero = body.constant(Tensor::scalar(0i64));
            let first = body.push1(ops::Gather { axis: 0 }, &[next, zero]).unwrap();
            let most = body.scalar(DType::F32, most);
            body.map(ScalarFn::Lt, &[first, most]).unwrap()
        }
    };
    for (name, value) in [("again", again), ("sum", next), ("list", longer), ("same", same), ("each", next)] {
        body.output(name, value);
    }
    let op = ops::Loop { body: Arc::new(body.finish().unwrap()), num_states: 3 };
    let mut b = Builder::new("main");
    let (trips, again) = (b.input("trips", scalar(DType::I64)), b.input("again", scalar(DType::Bool)));
    let x = b.input("x", TensorType::fixed(DType::F32, &[2]));
    let sum = b.constant(Tensor::new(&[2], &[0f32, 10.0]));
    let list = b.constant(Tensor::new(&[0], &[0f32; 0]));
    let same = b.constant(Tensor::new(&[2], &[1f32, 2.0]));
    let outs = b.push(op, &[trips, again, sum, list, same, x], None).unwrap();
    outs.iter().enumerate().for_each(|(i, &out)| b.output(&format!("y{i}"), out));
    b.finish().unwrap()
}

#[test]
fn bodies_of_loops_are_compiled() {
    for more in [None, Some(7.0)] {
        let sessions = ENGINES.map(|engine| session(&growing(more), engine));
        for (trips, again) in [(3, true), (0, true), (5, false), (12, true), (-1, true)] {
            let inputs = [Tensor::scalar(trips as i64), flag(again), Tensor::new(&[2], &[3f32, -1.0])];
            let [jit, loops, expected] =
                [0, 1, 2].map(|at: usize| sessions[at].run_counted(inputs.clone()).unwrap());
            assert_eq!(jit.0, expected.0, "{trips} trips, {again}");
            assert_eq!(loops.0, expected.0, "{trips} trips, {again}");
            let rounds = expected.0["y3"].shape()[0];
            assert_eq!(
                rounds,
                if more.is_some() { trips.min(3) } else { trips }.max(0) as usize * usize::from(again)
            );
            assert_eq!(jit.1.interpreted, 0);
        }
    }
}

#[test]
fn a_loop_without_end_is_stopped() {
    let mut options = Options::default();
    options.limits.elements = 1000;
    let session = Session::new(growing(None), options).unwrap();
    let error =
        session.run([Tensor::scalar(i64::MAX), flag(true), Tensor::new(&[2], &[0f32, 0.0])]).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("loop") && message.contains("elements"), "{message}");
}

/// A branch within a branch, whose condition is a question about sizes: it is answered when these are known.
#[test]
fn conditions_about_sizes_are_answered_before_anything_runs() {
    let mut inner = Builder::new("inner");
    let (x, w) = (inner.input("x", open(2)), inner.input("w", open(2)));
    let shape = inner.push1(ops::ShapeOf, &[x]).unwrap();
    let zero = inner.constant(Tensor::scalar(0i64));
    let rows = inner.push1(ops::Gather { axis: 0 }, &[shape, zero]).unwrap();
    let two = inner.constant(Tensor::scalar(2i64));
    let is_two = inner.map(ScalarFn::Eq, &[rows, two]).unwrap();
    let op = ops::If { then_branch: branch(ScalarFn::Abs), else_branch: branch(ScalarFn::Neg) };
    let y = inner.push(op, &[is_two, x, w], None).unwrap()[0];
    inner.output("y", y);
    let mut b = Builder::new("main");
    let c = b.input("c", scalar(DType::Bool));
    let x = b.input("x", TensorType::new(DType::F32, [Dim::named("n"), Dim::Fixed(4)]));
    let w = b.constant(numbers(&[4, 3]));
    let op = ops::If { then_branch: Arc::new(inner.finish().unwrap()), else_branch: branch(ScalarFn::Relu) };
    let y = b.push(op, &[c, x, w], None).unwrap()[0];
    b.output("y", y);
    let graph = b.finish().unwrap();
    let types = [scalar(DType::Bool), TensorType::fixed(DType::F32, &[2, 4])];
    assert!(windlass::compile::bind(&graph, &types).is_ok());
    let sessions = ENGINES.map(|engine| session(&graph, engine));
    for (n, c) in [(2, true), (3, true), (2, false)] {
        let run = |session: &Session| session.run([flag(c), numbers(&[n, 4])]).unwrap();
        let [jit, loops, expected] = [0, 1, 2].map(|at: usize| run(&sessions[at]));
        assert_eq!(jit, expected, "{n} rows, {c}");
        assert_eq!(loops, expected, "{n} rows, {c}");
    }
}

/// A branch that cannot be computed is an error where it is taken, and says why.
#[test]
fn a_branch_that_fails_does_so_when_it_is_taken() {
    let mut failing = Builder::new("failing");
    failing.input("x", open(2));
    failing.input("w", open(2));
    let op = ops::Fail { message: "there is no such rate".to_string(), shape: vec![2, 3], dtype: DType::F32 };
    let never = failing.push1(op, &[]).unwrap();
    let y = failing.map(ScalarFn::Neg, &[never]).unwrap();
    failing.output("y", y);
    let mut b = Builder::new("main");
    let c = b.input("c", scalar(DType::Bool));
    let x = b.input("x", TensorType::fixed(DType::F32, &[2, 4]));
    let w = b.constant(numbers(&[4, 3]));
    let op =
        ops::If { then_branch: branch(ScalarFn::Relu), else_branch: Arc::new(failing.finish().unwrap()) };
    let y = b.push(op, &[c, x, w], None).unwrap()[0];
    b.output("y", y);
    let graph = b.finish().unwrap();
    for engine in ENGINES {
        let session = session(&graph, engine);
        assert!(session.run([flag(true), numbers(&[2, 4])]).is_ok());
        let error = session.run([flag(false), numbers(&[2, 4])]).unwrap_err().to_string();
        assert!(error.contains("there is no such rate"), "{error}");
    }
}

/// As deep as a model may nest graphs; whoever looks at each of them twice at each level never comes to an end.
#[test]
fn deep_nests_are_opened_in_no_time() {
    let mut graph = branch(ScalarFn::Abs);
    for _ in 0..60 {
        let mut b = Builder::new("nest");
        let (x, w) = (b.input("x", open(2)), b.input("w", open(2)));
        let shape = b.push1(ops::ShapeOf, &[x]).unwrap();
        let zero = b.constant(Tensor::scalar(0i64));
        let rows = b.push1(ops::Gather { axis: 0 }, &[shape, zero]).unwrap();
        let two = b.constant(Tensor::scalar(2i64));
        let is_two = b.map(ScalarFn::Eq, &[rows, two]).unwrap();
        let op = ops::If { then_branch: graph, else_branch: branch(ScalarFn::Neg) };
        let y = b.push(op, &[is_two, x, w], None).unwrap()[0];
        b.output("y", y);
        graph = Arc::new(b.finish().unwrap());
    }
    let session = session(&graph, Engine::Jit);
    let outputs = session.run([numbers(&[2, 4]), numbers(&[4, 3])]).unwrap();
    assert!(outputs["y"].to_f64s().iter().all(|&y| y >= 0.0));
}
