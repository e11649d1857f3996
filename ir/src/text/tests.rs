//! What parses, what it prints as, and what is refused.

use super::*;
use crate::attrs::Late;
use crate::ops::{self, Op};
use crate::{Builder, DType, Dim, Element, ScalarFn, Tensor, TensorType, bf16, f16};

fn round_trip(graph: &Graph) -> String {
    let text = print_graph(graph);
    let parsed = parse_graph(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(parsed, *graph, "{text}");
    text
}

fn error(text: &str) -> String {
    match parse_graph(text).unwrap_err() {
        Error::Parse { span, message } => format!("{message}: {}", &text[span]),
        other => panic!("{other}"),
    }
}

/// A graph of one constant.
fn constant(value: Tensor) -> Graph {
    let mut b = Builder::new("main");
    let value = b.constant(value);
    b.output("y", value);
    b.finish().unwrap()
}

#[test]
fn names_types_and_late_attributes() {
    let mut b = Builder::new("odd name");
    let x = b.input("x", TensorType::new(DType::F32, [Dim::named("batch"), Dim::named("a b"), Dim::Unknown]));
    let shape = b.input("shape:0", TensorType::fixed(DType::I64, &[2]));
    let y = b
        .push(
            ops::Reshape { shape: Late::Operand(1), copy_zero: true },
            &[x, shape],
            Some("layer \"1\"\n\\é\u{1}".into()),
        )
        .unwrap()[0];
    let top = ops::TopK { k: Late::Operand(1), axis: 0, largest: true, sorted: true };
    let outs = b.push(top, &[y, shape], None);
    assert!(outs.is_err(), "k is one integer");
    let k = b.constant(Tensor::from_ints(&[3]));
    let outs = b
        .push(ops::TopK { k: Late::Operand(1), axis: -2, largest: true, sorted: true }, &[x, k], None)
        .unwrap();
    b.output("values", outs[0]);
    b.output("", y);
    let graph = b.finish().unwrap();
    let text = print_graph(&graph);
    assert!(
        text.starts_with("graph @\"odd name\"(%x: f32[batch, \"a b\", ?], %1 as \"shape:0\": i64[2]) {\n")
    );
    assert!(
        text.contains(
            "%2 = reshape %x {shape = %1, copy_zero = true} \"layer \\\"1\\\"\\n\\\\é\\u{1}\" : f32[?, ?]"
        ),
        "{text}"
    );
    assert!(text.contains("top_k %x {k = [3], axis = -2} : "), "{text}");
    assert_eq!(parse_graph_unverified(&text).unwrap().outputs(), graph.outputs());
    assert!(matches!(parse_graph(&text), Err(Error::Verify { invariant: "V5", .. })));
}

#[test]
fn elements_are_exact() {
    let floats =
        [0.0, -0.0, 1.0, -2.5, 0.1, 1e-45, 3.4e38, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY];
    round_trip(&constant(Tensor::new(&[10], &floats)));
    let nans = [f32::NAN, f32::from_bits(0x7fc0_0001), f32::from_bits(0xffc0_0000)];
    let text = round_trip(&constant(Tensor::new(&[3], &nans)));
    assert!(text.contains("[nan, 0x7fc00001, 0xffc00000]"), "{text}");
    round_trip(&constant(Tensor::new(&[2], &[f64::MAX, 5e-324])));
    for bits in 0..1024u16 {
        let high = bits << 6;
        let halves: Vec<f16> = (0..64).map(|low| f16::from_bits(high | low)).collect();
        let brains: Vec<bf16> = (0..64).map(|low| bf16::from_bits(high | low)).collect();
        if bits % 64 == 0 || bits % 32 == 31 {
            round_trip(&constant(Tensor::new(&[64], &halves)));
            round_trip(&constant(Tensor::new(&[8, 8], &brains)));
        }
    }
    round_trip(&constant(Tensor::new(&[2], &[i64::MIN, i64::MAX])));
    round_trip(&constant(Tensor::new(&[2], &[0u64, u64::MAX])));
    round_trip(&constant(Tensor::new(&[3], &[i8::MIN, -1, i8::MAX])));
    round_trip(&constant(Tensor::scalar(crate::Bool8(1))));
    round_trip(&constant(Tensor::zeros(DType::BF16, &[3, 0, 2])));
    round_trip(&constant(Tensor::from_fn::<i16>(&[65], |i| i16::from_i128(i as i128 * -7))));
}

#[test]
fn what_is_wrong_is_said_where_it_is() {
    let graph = |body: &str| format!("graph @main(%x: f32[2, 3]) {{\n{body}\n}}");
    assert_eq!(error(&graph("return %y as \"y\"")), "`%y` is not defined before this: %y");
    assert_eq!(error(&graph("%y = frob %x return %y as \"y\"")), "there is no op `frob`: frob");
    assert_eq!(
        error(&graph("%y = add %x, %x : f32[3] return")),
        "add gives f32[2, 3], not f32[3]: %y = add %x, %x : f32[3]"
    );
    assert_eq!(
        error(&graph("%y = transpose %x {perm = 1} return")),
        "attribute `perm`: takes a list of integers: perm = 1"
    );
    assert_eq!(
        error(&graph("%y = transpose %x {prem = []} return")),
        "transpose has no attribute `prem`, or it is given twice: prem = []"
    );
    assert_eq!(
        error(&graph("%y = pad %x, %x {mode = red} return")),
        "attribute `mode`: takes one of constant, reflect, edge, wrap: mode = red"
    );
    assert_eq!(error(&graph("%y = constant {value = i8[1] [128]} return")), "`128` is not of type i8: 128");
    assert_eq!(error(&graph("%y = constant {value = i8[2] 0x123} return")), "a byte takes two digits: 0x123");
    assert_eq!(
        error(&graph("%y = constant {value = i8[2] [1]} return")),
        "i8[2] has 2 elements, found 1: i8[2] [1]"
    );
    assert_eq!(error(&graph("%x = relu %x return %x as \"y\"")), "`%x` is defined twice: %x");
    assert_eq!(
        error(&graph("%y = matmul %x, %x return")),
        "matmul node0: (C3) f32[2, 3] and f32[2, 3] contract 3 with 2: %y = matmul %x, %x"
    );
    assert_eq!(
        error("graph @main() { return \"\\q\" }"),
        "a string that does not end, or has an unknown escape: \""
    );
    let huge = parse_graph("graph @main(%x: f32[9999999999999, 9999999999999]) {}").unwrap_err();
    assert!(huge.to_string().starts_with("the type at byte 16: "), "{huge}");
    assert_eq!(error(""), "`graph` is expected, found the end of the text: ");
    assert_eq!(error("graph @main() { return } x"), "graph `main` has no outputs: graph @main() { return }");
}

#[test]
fn deep_nesting_is_refused() {
    let text = "graph @a() { %0 = constant {value = ".repeat(100_000);
    assert!(matches!(parse_graph(&text), Err(Error::Limit { what: "levels", limit: 64, .. })));
}

#[test]
fn values_may_have_any_name_and_operands_end_where_the_next_node_begins() {
    let text = "graph @main(%a: f32[2]) {
        // A constant has no operands, and the next line begins with a value.
        %c = constant {value = f32[] [2]}
        %i = iota {shape = [2], dtype = f32}
        %v, %w = top_k %a {k = [1]}
        %s = add %c, %i
        return %s as \"s\", %w as \"w\" }";
    let graph = parse_graph(text).unwrap();
    assert_eq!(graph.node_count(), 4);
    let expected = "graph @main(%a: f32[2]) {
  %1 = constant {value = f32[] [2.0]} : f32[]
  %2 = iota {shape = [2], dtype = f32} : f32[2]
  %3, %4 = top_k %a {k = [1]} : f32[1], i64[1]
  %5 = add %1, %2 : f32[2]
  return %5 as \"s\", %4 as \"w\"
}
";
    assert_eq!(round_trip(&graph), expected);
    let elided = print_graph_with(&graph, PrintOptions { elide_above: Some(0) });
    assert!(elided.contains("constant {value = f32[] ...}"));
}

#[test]
fn inputs_after_nodes_are_numbered_first() {
    let mut b = Builder::new("main");
    let one = b.scalar(DType::F32, 1.0);
    let x = b.input("9", TensorType::fixed(DType::F32, &[1]));
    let y = b.map(ScalarFn::Add, &[one, x]).unwrap();
    b.output("y", y);
    let text = print_graph(&b.finish().unwrap());
    assert_eq!(print_graph(&parse_graph(&text).unwrap()), text);
    assert!(matches!(*parse_graph(&text).unwrap().node(crate::Node::at(0)).op, Op::Constant(_)));
}
