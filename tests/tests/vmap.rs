//! Graphs of one example made into graphs of a batch: random graphs on stacked inputs against the graph run example by
//! example, through the interpreter and compiled. What is exact has the same bits; sums stay within their bounds.

use windlass::Session;
use windlass_ir::text::print_graph;
use windlass_ir::{Builder, DType, Error, Graph, ScalarFn, Tensor, TensorType, interpret, ops, vmap};
use windlass_tests::bounds::bounds;
use windlass_tests::generate::{Generated, Options, Rng, generate, op_names, repeat, seeds};
use windlass_tests::lowering::compare_elements;

const BATCH: usize = 3;

/// How many graphs of each op are checked, and how many are tried for that.
const GRAPHS: usize = 3;
const TRIES: u64 = 60;

/// Elements moved on by some places.
fn rolled(tensor: &Tensor, by: usize) -> Tensor {
    let size = tensor.dtype().size() * by.min(tensor.len());
    let mut bytes = tensor.bytes().to_vec();
    bytes.rotate_left(size);
    Tensor::from_bytes(tensor.dtype(), tensor.shape(), &bytes).expect("the bytes are as many")
}

/// Tensors along a new first axis.
fn stacked(parts: &[Tensor]) -> Tensor {
    let shape: Vec<usize> = [parts.len()].into_iter().chain(parts[0].shape().iter().copied()).collect();
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().iter().copied()).collect();
    Tensor::from_bytes(parts[0].dtype(), &shape, &bytes).expect("the parts are alike")
}

fn example(whole: &Tensor, at: usize) -> Tensor {
    let shape = whole.shape()[1..].to_vec();
    let size = shape.iter().product::<usize>() * whole.dtype().size();
    Tensor::from_bytes(whole.dtype(), &shape, &whole.bytes()[at * size..][..size]).expect("it is a part")
}

/// Inputs of a batch of examples, of which those that are mapped differ, as far as the graph takes them.
fn examples(generated: &Generated, mapped: &[bool], rng: &mut Rng) -> Vec<Generated> {
    let mut all = vec![generated.clone()];
    while all.len() < BATCH {
        let pairs = generated.inputs.iter().zip(mapped);
        let inputs: Vec<Tensor> = pairs
            .map(|(tensor, &mapped)| if mapped { rolled(tensor, rng.below(7)) } else { tensor.clone() })
            .collect();
        let outputs = interpret(&generated.graph, &inputs);
        let finite = |outputs: &Vec<Tensor>| {
            outputs.iter().all(|t| !t.dtype().is_float() || t.to_f64s().iter().all(|x| x.is_finite()))
        };
        all.push(match outputs {
            Ok(outputs) if finite(&outputs) => Generated { inputs, outputs, ..generated.clone() },
            _ => generated.clone(),
        });
    }
    all
}

/// Whether a graph has sizes that depend on data, which batches have not.
fn is_refused(error: &Error) -> bool {
    matches!(error, Error::VmapSizes { .. })
}

/// Whether a graph's vectorized form gives what the graph gives; `None` if it has none.
fn check(generated: &Generated, rng: &mut Rng, compiled: bool) -> Result<Option<()>, String> {
    let graph = &generated.graph;
    let mut mapped: Vec<bool> = graph.inputs().iter().map(|_| !rng.one_in(4)).collect();
    if !mapped.contains(&true)
        && let Some(first) = mapped.first_mut()
    {
        *first = true;
    }
    let batch = match vmap(graph, &mapped, BATCH) {
        Ok(batch) => batch,
        Err(error) if is_refused(&error) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    windlass_ir::verify(&batch).map_err(|e| e.to_string())?;
    let examples = examples(generated, &mapped, rng);
    let inputs: Vec<Tensor> = (0..mapped.len())
        .map(|i| match mapped[i] {
            true => stacked(&examples.iter().map(|e| e.inputs[i].clone()).collect::<Vec<_>>()),
            false => generated.inputs[i].clone(),
        })
        .collect();
    let fail = |error: String| format!("{error}\n{}", print_graph(&batch));
    let mut ways = vec![interpret(&batch, &inputs).map_err(|e| fail(e.to_string()))?];
    if compiled {
        let session =
            Session::new(batch.clone(), windlass::Options::default()).map_err(|e| fail(e.to_string()))?;
        ways.push(session.run(inputs).map_err(|e| fail(e.to_string()))?.into_tensors());
    }
    for found in ways {
        for (at, one) in examples.iter().enumerate() {
            let found: Vec<Tensor> = found.iter().map(|whole| example(whole, at)).collect();
            if found == one.outputs {
                continue;
            }
            for ((found, expected), bounds) in found.iter().zip(&one.outputs).zip(bounds(one)) {
                compare_elements(found, expected, &bounds)
                    .map_err(|e| fail(format!("example {at} of {mapped:?}: {e}")))?;
            }
        }
    }
    Ok(Some(()))
}

fn report(seed: u64, error: &str, graph: &Graph) -> String {
    format!("== {}\n{error}\n{}", repeat(seed, "vmap"), print_graph(graph))
}

#[test]
fn every_op_over_a_batch() {
    // Ops whose results always have sizes that depend on data.
    let refused = ["non_zero", "compress", "non_max_suppression", "range", "loop"];
    let mut failures = Vec::new();
    for name in op_names() {
        let mut done = 0;
        for seed in 0..TRIES {
            let options = Options { nodes: 1, late: false, named: false, with: Some(name.to_string()) };
            let generated = generate(seed, &options);
            let holds = generated.graph.nodes().any(|(_, data)| data.op.name() == name);
            if !holds || generated.graph.inputs().is_empty() {
                continue;
            }
            match check(&generated, &mut Rng::new(seed), done == 0) {
                Ok(Some(())) => done += 1,
                Ok(None) => {}
                Err(error) => failures.push(report(seed, &format!("{name}: {error}"), &generated.graph)),
            }
            if done == GRAPHS {
                break;
            }
        }
        let takes_nothing = ["constant", "iota"].contains(&name);
        assert!(
            done > 0 || takes_nothing || refused.contains(&name) || !failures.is_empty(),
            "{name} is never vectorized"
        );
    }
    let count = failures.len();
    failures.truncate(6);
    assert!(count == 0, "{count} failures, the first of which:\n{}", failures.join("\n"));
}

#[test]
fn random_graphs_over_a_batch() {
    let mut failures = Vec::new();
    let mut done = 0;
    for seed in seeds(60) {
        let options = Options { late: false, named: false, ..Options::default() };
        let generated = generate(seed, &options);
        match check(&generated, &mut Rng::new(seed), seed % 4 == 0) {
            Ok(found) => done += usize::from(found.is_some()),
            Err(error) => failures.push(report(seed, &error, &generated.graph)),
        }
    }
    let count = failures.len();
    failures.truncate(6);
    assert!(count == 0, "{count} failures, the first of which:\n{}", failures.join("\n"));
    assert!(done > 20 || std::env::var_os("WINDLASS_SEED").is_some(), "only {done} graphs were vectorized");
}

#[test]
fn weights_that_examples_share_meet_all_rows_at_once() {
    let mut b = Builder::new("layer");
    let x = b.input("x", TensorType::fixed(DType::F32, &[1, 5]));
    let w = b.input("w", TensorType::fixed(DType::F32, &[5, 4]));
    let y = b.push1(ops::MatMul::default(), &[x, w]).unwrap();
    let y = b.map(ScalarFn::Relu, &[y]).unwrap();
    b.output("y", y);
    let batch = vmap(&b.finish().unwrap(), &[true, false], 64).unwrap();
    let product = batch.nodes().find(|(_, data)| data.op.name() == "matmul").unwrap().1;
    assert_eq!(batch.ty(product.ins[0]).to_string(), "f32[64, 5]");
}

#[test]
fn sizes_that_depend_on_data_are_refused_by_name() {
    let mut b = Builder::new("main");
    let x = b.input("x", TensorType::fixed(DType::F32, &[5]));
    let at = b.push(ops::NonZero, &[x], Some("where".into())).unwrap();
    b.output("at", at[0]);
    let error = vmap(&b.finish().unwrap(), &[true], 2).unwrap_err();
    assert!(error.to_string().starts_with("non_zero `where` has no vectorized form"), "{error}");
}
