//! Every op's gradient rule against central differences, in f64: graphs of the generator that hold the op, their
//! float inputs moved off the points where functions have corners. Gradients of gradients likewise.

use windlass_ir::ops::ReduceKind;
use windlass_ir::{Builder, DType, Error, Graph, Tensor, Value, gradients, interpret, ops};
use windlass_tests::generate::{Options, Rng, generate, op_names};

/// Ops whose results depend on no float operand smoothly: positions, counts, comparisons, roundings to integers.
const FLAT: &[&str] = &[
    "arg_max",
    "arg_min",
    "bitcast",
    "constant",
    "iota",
    "range",
    "shape_of",
    "non_zero",
    "max_pool_indices",
    "non_max_suppression",
    "quantize_linear",
    "dynamic_quantize_linear",
    "dequantize_linear",
    "is_nan",
    "not",
    "and",
    "or",
    "xor",
    "shl",
    "shr",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "pack2",
    "unpack2",
    "dot2",
    "dot4",
    "hardmax",
    "threefry",
    "stop_gradient",
    "ceil",
    "floor",
    "round",
    "trunc",
    "sign",
];

/// Ops whose gradient is refused, or checked through others.
const REFUSED: &[&str] = &[
    // The size of the result depends on the data; loops of a known number of iterations have a test of their own.
    "compress",
    "loop",
    // Its operands belong together; it is checked as the gradient of `max_pool`, and with its own gradient.
    "max_pool_grad",
    // Made by passes that run after differentiation.
    "winograd_weight",
    "winograd_input",
    "winograd_output",
];

/// Ops that have a gradient with some of their attributes only.
const PARTLY: &[&str] = &["roi_align", "deform_conv"];

/// How many graphs of each op are checked, and how many are tried for that.
const GRAPHS: usize = 8;
const TRIES: u64 = 600;

/// The sum of every float result times fixed numbers, and what it is differentiated by.
struct Function {
    graph: Graph,
    inputs: Vec<Tensor>,
    /// Which inputs are floats.
    floats: Vec<usize>,
}

fn is_double(graph: &Graph) -> bool {
    let types = graph.inputs().iter().map(|(_, v)| graph.ty(*v));
    let results = graph.nodes().flat_map(|(_, data)| data.outs.iter().map(|&v| graph.ty(v)));
    types.chain(results).all(|ty| !ty.dtype.is_float() || ty.dtype == DType::F64)
}

/// Numbers between -1 and 1.
fn noise(rng: &mut Rng, shape: &[usize], scale: f64) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| rng.between(-1 << 40, 1 << 40) as f64 * scale / (1u64 << 40) as f64)
        .collect();
    Tensor::from_f64s(DType::F64, shape, &values)
}

/// Copies a graph into a builder and sums its float results times noise.
fn weighted_sum(b: &mut Builder, graph: &Graph, inputs: &[Value], rng: &mut Rng) -> Option<Value> {
    let outs = b.inline(graph, inputs).ok()?;
    let mut total: Option<Value> = None;
    for out in outs {
        let ty = b.ty(out).clone();
        let (true, Some(shape)) = (ty.dtype == DType::F64, ty.as_shape()) else { continue };
        let weights = b.constant(noise(rng, &shape, 1.0));
        let product = b.map(windlass_ir::ScalarFn::Mul, &[out, weights]).ok()?;
        let axes: Vec<i64> = (0..shape.len() as i64).collect();
        let sum = b.push1(ops::Reduce::over(ReduceKind::Sum, &axes, false), &[product]).ok()?;
        total = Some(match total {
            Some(other) => b.map(windlass_ir::ScalarFn::Add, &[other, sum]).ok()?,
            None => sum,
        });
    }
    total
}

impl Function {
    /// The function of a generated graph, if it is one of doubles.
    fn new(seed: u64, name: &str, rng: &mut Rng) -> Option<Function> {
        let options = Options { nodes: 1, late: false, named: false, with: Some(name.to_string()) };
        let generated = generate(seed, &options);
        let graph = &generated.graph;
        let holds = graph.nodes().any(|(_, data)| data.op.name() == name);
        if !holds || !is_double(graph) {
            return None;
        }
        let mut b = Builder::new("function");
        let inputs: Vec<Value> =
            graph.inputs().iter().map(|(n, v)| b.input(n, graph.ty(*v).clone())).collect();
        let total = weighted_sum(&mut b, graph, &inputs, rng)?;
        b.output("f", total);
        let floats: Vec<usize> = (0..inputs.len()).filter(|&i| b.ty(inputs[i]).dtype.is_float()).collect();
        let mut moved = generated.inputs.clone();
        for &i in &floats {
            let away = noise(rng, moved[i].shape(), 0.06).to_f64s();
            let values: Vec<f64> = moved[i].to_f64s().iter().zip(away).map(|(x, d)| x + d).collect();
            moved[i] = Tensor::from_f64s(DType::F64, moved[i].shape(), &values);
        }
        let function = Function { graph: b.finish().ok()?, inputs: moved, floats };
        (!function.floats.is_empty() && function.at(&function.inputs)?.is_finite()).then_some(function)
    }

    fn at(&self, inputs: &[Tensor]) -> Option<f64> {
        Some(interpret(&self.graph, inputs).ok()?[0].to_f64s()[0])
    }

    /// The graph whose results are the gradients by the float inputs, 0 for those without one.
    fn gradient(&self) -> Result<Graph, Error> {
        let graph = &self.graph;
        let mut b = Builder::new("gradient");
        let inputs: Vec<Value> =
            graph.inputs().iter().map(|(n, v)| b.input(n, graph.ty(*v).clone())).collect();
        let f = b.inline(graph, &inputs)?[0];
        let one = b.scalar(DType::F64, 1.0);
        let wrt: Vec<Value> = self.floats.iter().map(|&i| inputs[i]).collect();
        for (&i, flow) in self.floats.iter().zip(gradients(&mut b, &[(f, one)], &wrt)?) {
            let shape = b.ty(inputs[i]).shape();
            let flow = flow.unwrap_or_else(|| b.constant(Tensor::zeros(DType::F64, &shape)));
            let name = format!("d_{}", graph.inputs()[i].0);
            b.output(&name, flow);
        }
        b.finish()
    }

    /// The central difference along one element, `None` at a corner.
    fn difference(&self, input: usize, element: usize) -> Option<f64> {
        let along = |h: f64| {
            let mut at = self.inputs.clone();
            let mut values = at[input].to_f64s();
            let x = values[element];
            let mut f = |x: f64| {
                values[element] = x;
                at[input] = Tensor::from_f64s(DType::F64, at[input].shape(), &values);
                self.at(&at)
            };
            Some((f(x + h)? - f(x - h)?) / (2.0 * h))
        };
        let h = 1e-3;
        let (wide, middle, narrow) = (along(h)?, along(h / 2.0)?, along(h / 4.0)?);
        // Each halving quarters the error where the function is smooth.
        let (first, second) = ((4.0 * middle - wide) / 3.0, (4.0 * narrow - middle) / 3.0);
        let best = (16.0 * second - first) / 15.0;
        let scale = best.abs().max(1.0);
        ((first - second).abs() < 1e-4 * scale && best.is_finite()).then_some(best)
    }

    /// Compares some elements of the gradient with differences; the number that were compared.
    fn check(&self, gradient: &Graph, rng: &mut Rng, what: &str) -> Result<usize, String> {
        let found = interpret(gradient, &self.inputs).map_err(|e| format!("{what}: {e}\n{gradient}"))?;
        let mut compared = 0;
        for (&input, found) in self.floats.iter().zip(found) {
            let found = found.to_f64s();
            for _ in 0..found.len().min(8) {
                let element = rng.below(found.len());
                let Some(expected) = self.difference(input, element) else { continue };
                let bound = 1e-6 * expected.abs().max(found[element].abs()).max(0.05);
                if (found[element] - expected).abs() > bound || found[element].is_nan() {
                    return Err(format!(
                        "{what}: element {element} of input {input} has gradient {}, differences give {expected}\n{}\n{gradient}",
                        found[element], self.graph
                    ));
                }
                compared += 1;
            }
        }
        Ok(compared)
    }
}

/// Checks one op; what went wrong.
fn check_op(name: &str) -> Result<(), String> {
    let (mut graphs, mut compared, mut twice) = (0, 0, 0);
    let mut second_error = None;
    for seed in 0..TRIES {
        if graphs == GRAPHS {
            break;
        }
        let mut rng = Rng::new(seed);
        let Some(function) = Function::new(seed, name, &mut rng) else { continue };
        let gradient = match function.gradient() {
            Err(Error::NoGradient { .. }) if PARTLY.contains(&name) => continue,
            other => other.map_err(|e| format!("{name}, seed {seed}: {e}"))?,
        };
        windlass_ir::verify(&gradient).map_err(|e| format!("{name}, seed {seed}: {e}"))?;
        let count = function.check(&gradient, &mut rng, &format!("{name}, seed {seed}"))?;
        graphs += usize::from(count > 0);
        compared += count;
        // The gradient of a sum of gradients.
        let mut b = Builder::new("twice");
        let inputs: Vec<Value> =
            gradient.inputs().iter().map(|(n, v)| b.input(n, gradient.ty(*v).clone())).collect();
        let Some(total) = weighted_sum(&mut b, &gradient, &inputs, &mut rng) else { continue };
        b.output("f", total);
        let Ok(graph) = b.finish() else { continue };
        let second = Function { graph, inputs: function.inputs, floats: function.floats };
        match second.gradient() {
            Ok(gradient) => {
                twice += second.check(&gradient, &mut rng, &format!("{name} twice, seed {seed}"))?
            }
            Err(error) => second_error = Some(error),
        }
    }
    println!("{name}: {graphs} graphs, {compared} elements, {twice} twice");
    match (graphs, second_error) {
        (0, _) => Err(format!("{name}: no graph of doubles was found")),
        (_, Some(error)) => Err(format!("{name}: the gradient has no gradient: {error}")),
        _ => Ok(()),
    }
}

#[test]
fn gradients_are_central_differences() {
    let only = std::env::var("WINDLASS_OP").ok();
    let names = op_names().into_iter().filter(|name| !FLAT.contains(name) && !REFUSED.contains(name));
    let names: Vec<&str> = names.filter(|name| only.as_deref().is_none_or(|op| op == *name)).collect();
    let failures: Vec<String> = names.into_iter().filter_map(|name| check_op(name).err()).collect();
    assert!(failures.is_empty(), "{} ops:\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn what_has_no_gradient_is_named_with_the_way_to_it() {
    let mut b = Builder::new("g");
    let ty = windlass_ir::TensorType::fixed(DType::F64, &[1, 1, 3, 3]);
    let ins = [b.input("x", ty.clone()), b.input("w", ty)];
    b.set_name(Some("product".into()));
    let product = b.push1(ops::MatMul::default(), &ins).unwrap();
    let region = b.constant(Tensor::new(&[1, 4], &[0f64, 0.0, 2.0, 2.0]));
    let image = b.constant(Tensor::new(&[1], &[0i64]));
    b.set_name(Some("regions".into()));
    // How many samples there are depends on the regions.
    let (mode, sampling_ratio, half_pixel) = (ops::RoiMode::Avg, 0, true);
    let (output_height, output_width, spatial_scale) = (1, 1, 1.0);
    let align =
        ops::RoiAlign { mode, output_height, output_width, sampling_ratio, spatial_scale, half_pixel };
    let regions = b.push1(align, &[product, region, image]).unwrap();
    b.set_name(Some("exponential".into()));
    let y = b.map(windlass_ir::ScalarFn::Exp, &[regions]).unwrap();
    let one = b.scalar_like(y, 1.0);
    let one = b.broadcast(one, &[1, 1, 1, 1]).unwrap();
    let error = gradients(&mut b, &[(y, one)], &ins[1..]).unwrap_err();
    let way = "exp `exponential` <- roi_align `regions` <- matmul `product` <- input `w`";
    let expected =
        format!("roi_align `regions` is not differentiable, and a gradient would flow through it: {way}");
    assert_eq!(error.to_string(), expected);
}

/// `x` becomes `w tanh(x)`, five times over.
#[test]
fn loops_of_a_known_number_of_iterations() {
    let ty = |shape: &[usize]| windlass_ir::TensorType::fixed(DType::F64, shape);
    let mut b = Builder::new("body");
    b.input("trip", windlass_ir::TensorType::fixed(DType::I64, &[]));
    let condition = b.input("condition", windlass_ir::TensorType::fixed(DType::Bool, &[]));
    let (x, w) = (b.input("x", ty(&[3])), b.input("w", ty(&[3])));
    let y = b.map(windlass_ir::ScalarFn::Tanh, &[x]).unwrap();
    let y = b.map(windlass_ir::ScalarFn::Mul, &[y, w]).unwrap();
    b.output("condition", condition);
    b.output("x", y);
    let body = std::sync::Arc::new(b.finish().unwrap());

    let mut b = Builder::new("main");
    let (x, w) = (b.input("x", ty(&[3])), b.input("w", ty(&[3])));
    let trips = b.constant(Tensor::scalar(5i64));
    let condition = b.constant(Tensor::from_i128s(DType::Bool, &[], &[1]));
    let y = b.push1(ops::Loop { body, num_states: 1 }, &[trips, condition, x, w]).unwrap();
    let total = b.push1(ops::Reduce::over(ReduceKind::Sum, &[0], false), &[y]).unwrap();
    b.output("f", total);
    let mut rng = Rng::new(1);
    let inputs = vec![noise(&mut rng, &[3], 1.0), noise(&mut rng, &[3], 1.5)];
    let function = Function { graph: b.finish().unwrap(), inputs, floats: vec![0, 1] };
    let gradient = function.gradient().unwrap();
    assert!(function.check(&gradient, &mut rng, "loop").unwrap() > 3);
}
