//! Data large enough to be read in another order than it is written: the loops agree with the graph's meaning, and code has
//! the loops' bits on any number of threads, at every width of vectors.

use windlass_ir::loops::Program;
use windlass_ir::loops::interpret::run_program;
use windlass_ir::ops::{Conv, MatMul, Transpose, Winograd};
use windlass_ir::{Builder, DType, Graph, ScalarFn, Tensor, TensorType, Value, interpret};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};
use windlass_passes::{pipeline, run};
use windlass_tests::widths::{check, check_graph};

#[test]
fn transposed_operands() {
    for (dtype, shape, perm) in [
        ("f32", "[70, 130]", "[1, 0]"),
        ("f32", "[600, 523]", "[1, 0]"),
        ("f64", "[3, 64, 65]", "[0, 2, 1]"),
        ("u8", "[129, 300]", "[1, 0]"),
        ("f16", "[2, 17, 5, 90]", "[3, 1, 0, 2]"),
        ("f32", "[32, 16, 16, 24]", "[3, 1, 2, 0]"),
    ] {
        check(&format!(
            "graph @g(%x: {dtype}{shape}) {{
               %0 = transpose %x {{perm = {perm}}}
               return %0 as \"y\"
             }}"
        ));
        check(&format!(
            "graph @g(%x: {dtype}{shape}) {{
               %0 = transpose %x {{perm = {perm}}}
               %1 = add %0, %0
               %2 = cast %1 {{to = f32}}
               return %2 as \"y\"
             }}"
        ));
    }
}

#[test]
fn transposed_operands_with_borders() {
    for (shape, perm, pads) in [
        ("[300, 70]", "[1, 0]", "[2, 3, 1, 5]"),
        ("[16, 8, 9, 40]", "[3, 1, 2, 0]", "[0, 1, 1, 0, 0, 1, 1, 0]"),
        ("[16, 8, 9, 40]", "[3, 1, 2, 0]", "[1, 0, 0, 3, 2, 1, 0, 1]"),
    ] {
        check(&format!(
            "graph @g(%x: f32{shape}) {{
               %0 = transpose %x {{perm = {perm}}}
               %1 = constant {{value = f32[] [1.5]}}
               %2 = pad %0, %1 {{pads = {pads}}}
               return %2 as \"y\"
             }}"
        ));
    }
}

#[test]
fn left_operands_whose_steps_are_pages_apart() {
    let program = check(
        "graph @g(%x: f32[130, 1024], %w: f32[130, 256]) {
           %0 = matmul %x, %w {trans_a = true}
           return %0 as \"y\"
         }",
    );
    let text = program.to_string();
    assert_eq!(text.matches("kernel k").count(), 3, "both operands are laid out: {text}");
}

#[test]
fn right_operands_of_few_columns_are_laid_out_by_column() {
    for (rows, steps, columns) in [(40, 33, 3), (9, 64, 2), (4, 5, 3), (3, 300, 2), (50, 3, 3)] {
        let program = check(&format!(
            "graph @g(%x: f32[{rows}, {steps}], %w: f32[{steps}, {columns}]) {{
               %0 = matmul %x, %w
               return %0 as \"y\"
             }}"
        ));
        // Sums in lanes, of neighbours on both sides, where enough rows use them.
        let text = program.to_string();
        assert_eq!(text.contains("pack for"), rows > 3 && steps > 3, "{rows} x {steps} x {columns}: {text}");
    }
}

#[test]
fn means_of_channels_that_are_packed_with_the_batch() {
    let program = check(
        "graph @g(%x: f32[16, 2, 64, 16]) {
           %0 = reduce_mean %x {axes = [0, 1, 2], keepdims = true}
           %1 = sub %x, %0
           %2 = transpose %1 {perm = [2, 1, 0, 3]}
           %3 = reshape %2 {shape = [64, 2, 256]}
           return %3 as \"y\"
         }",
    );
    // A mean is made once for each channel, and not for each channel of each example.
    assert!(!program.to_string().contains(")%16"), "{program}");
}

#[test]
fn weights_of_channels_of_their_own_are_put_in_order_once() {
    for kernel in [5, 7] {
        let mut b = Builder::new("depthwise");
        let x = b.input("x", TensorType::fixed(DType::F32, &[1, 11, 9, 100]));
        let weights =
            b.constant(Tensor::from_fn::<f32>(&[100, 1, kernel, kernel], |i| (i * 7919 % 61) as f32));
        let weights = b.push1(Transpose::by(&[2, 3, 1, 0]), &[weights]).unwrap();
        let op = Conv { pads: vec![1; 4], group: 100, channels_last: true, ..Conv::plain() };
        let y = b.push1(op, &[x, weights]).unwrap();
        b.output("y", y);
        let program = check_graph(&b.finish().unwrap(), "a depthwise convolution");
        let prepare = program.prepare.as_ref().expect("weights are put in order before the first run");
        assert_eq!(prepare.outputs.len(), 1, "{program}");
    }
}

#[test]
fn small_groups_of_channels_are_computed_beside_each_other() {
    for (dtype, groups, ins, outs) in [
        (DType::F32, 32, 4, 4),
        (DType::F32, 9, 8, 8),
        (DType::F32, 20, 2, 2),
        (DType::F32, 33, 1, 2),
        (DType::F32, 12, 2, 4),
        (DType::F32, 12, 4, 2),
        (DType::F32, 7, 3, 3),
        (DType::F32, 1, 8, 8),
        (DType::F64, 10, 4, 4),
        (DType::F16, 10, 4, 4),
    ] {
        let mut b = Builder::new("grouped");
        let x = b.input("x", TensorType::fixed(dtype, &[1, 6, 9, groups * ins]));
        let len = groups * outs * ins * 9;
        let numbers: Vec<f64> = (0..len).map(|i| (i * 7919 % 61) as f64 / 64.0).collect();
        let weights = b.constant(Tensor::from_f64s(dtype, &[groups * outs, ins, 3, 3], &numbers));
        let weights = b.push1(Transpose::by(&[2, 3, 1, 0]), &[weights]).unwrap();
        let op = Conv {
            pads: vec![1; 4],
            strides: vec![1, 2],
            group: groups as i64,
            channels_last: true,
            ..Conv::plain()
        };
        let y = b.push1(op, &[x, weights]).unwrap();
        let y = b.cast(y, DType::F32).unwrap();
        b.output("y", y);
        let name = format!("{groups} groups of {ins} by {outs} of {dtype}");
        let text = check_graph(&b.finish().unwrap(), &name).to_string();
        // One vector has the channels of several groups.
        assert!(groups == 1 || dtype != DType::F32 || text.contains(&format!(")/{outs}")), "{name}: {text}");
    }
}

/// A graph of a product with what is made of a constant.
fn product(x: TensorType, weights: Tensor, make: impl Fn(&mut Builder, [Value; 2]) -> [Value; 2]) -> Graph {
    let mut b = Builder::new("g");
    let (x, weights) = (b.input("x", x), b.constant(weights));
    let [x, weights] = make(&mut b, [x, weights]);
    let y = b.push1(MatMul { trans_a: false, trans_b: false }, &[x, weights]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

#[test]
fn weights_that_take_many_times_the_memory_are_made_in_every_run() {
    for (columns, stored_as) in [(4200, DType::I8), (1000, DType::F32)] {
        let x = TensorType::fixed(DType::F32, &[5, 1024]);
        let weights = Tensor::from_fn::<i8>(&[1024, columns], |i| (i * 37 % 256) as u8 as i8);
        let make = |b: &mut Builder, [x, weights]: [Value; 2]| [x, b.cast(weights, DType::F32).unwrap()];
        let program = check_graph(&product(x, weights, make), "a product with bytes");
        let prepared = program.prepare.as_ref().map_or(DType::I8, |prepare| prepare.outputs[0].1.dtype);
        assert_eq!(prepared, stored_as, "of {columns} columns");
    }
}

/// The bytes of memory that is neither an input's nor an output's nor a constant's.
fn between(program: &Program) -> u64 {
    assert!(!program.repeats.is_empty(), "{program}");
    program.arena_bytes
}

#[test]
fn weights_made_in_every_run_are_made_in_pieces() {
    let x = TensorType::fixed(DType::F32, &[5, 1024]);
    let weights = Tensor::from_fn::<i8>(&[1024, 4224], |i| (i * 37 % 256) as u8 as i8);
    let make = |b: &mut Builder, [x, weights]: [Value; 2]| [x, b.cast(weights, DType::F32).unwrap()];
    let program = check_graph(&product(x, weights, make), "a product with bytes");
    assert!(between(&program) <= 3 << 20, "{program}");

    let mut b = Builder::new("winograd");
    let x = b.input("x", TensorType::fixed(DType::F32, &[1, 5, 7, 128]));
    let weights =
        b.constant(Tensor::from_fn::<f32>(&[3, 3, 128, 960], |i| ((i * 7919) % 61) as f32 / 4096.0));
    let weights = b.push1(Winograd::weight(), &[weights]).unwrap();
    let tiles = b.push1(Winograd::input(&[1; 4]), &[x]).unwrap();
    let sums = b.push1(MatMul { trans_a: false, trans_b: false }, &[tiles, weights]).unwrap();
    let y = b.push1(Winograd::output(&[1, 5, 7]), &[sums]).unwrap();
    b.output("y", y);
    let program = check_graph(&b.finish().unwrap(), "a convolution");
    assert!(between(&program) <= 6 << 20, "{program}");
}

#[test]
fn known_bytes_are_multiplied_in_pairs_that_are_stored_as_bytes() {
    for (rows, steps, columns, stored_as) in
        [(13, 64, 40, DType::I16), (5, 6, 19, DType::I16), (7, 64, 40, DType::I32)]
    {
        let x = TensorType::fixed(DType::I8, &[rows, steps]);
        let shape = [steps, columns];
        let weights = match stored_as {
            DType::I16 => Tensor::from_fn::<i8>(&shape, |i| (i * 37 % 256) as u8 as i8),
            _ => Tensor::from_fn::<u8>(&shape, |i| (i * 37 % 256) as u8),
        };
        let program = check_graph(
            &product(x, weights, |b, values| values.map(|value| b.cast(value, DType::I32).unwrap())),
            "a product of bytes",
        );
        let (_, stored) = &program.prepare.as_ref().unwrap().outputs[0];
        assert_eq!(stored.dtype, stored_as, "of {rows} rows");
        // They are unpacked once for the rows of a tile.
        let text = program.to_string();
        let unpacked = text.find("unpack2");
        assert_eq!(unpacked.is_some(), stored_as == DType::I16, "{text}");
        let rest = &text[unpacked.unwrap_or(0)..];
        assert!(unpacked.is_none() || rest.find("unroll for") < rest.find("dot2"), "{text}");
    }
}

#[test]
fn small_integers_that_are_packed_as_they_stand_are_read_as_words() {
    for (dtype, steps, columns) in
        [(DType::I16, 64, 40), (DType::I16, 6, 19), (DType::I8, 64, 100), (DType::I8, 12, 9)]
    {
        let mut b = Builder::new("words");
        let x = if dtype == DType::I8 { DType::U8 } else { dtype };
        let x = b.input("x", TensorType::fixed(x, &[13, steps]));
        let w: Vec<f64> = (0..steps * columns).map(|i| (i * 37 % 251) as f64 - 125.0).collect();
        let w = b.constant(Tensor::from_f64s(dtype, &[columns, steps], &w));
        let values = [x, w].map(|value| b.cast(value, DType::I32).unwrap());
        let y = b.push1(MatMul { trans_a: false, trans_b: true }, &values).unwrap();
        b.output("y", y);
        let graph = b.finish().unwrap();
        let program = check_graph(&graph, "a product of words");
        // Fours of bytes, which not every machine multiplies.
        let machine = Machine { byte_products: true, ..Machine::with_vectors(512) };
        let of_bytes = lower(&graph, &LowerOptions { machine, ..LowerOptions::default() }).unwrap();
        let numbers: Vec<f64> = (0..13 * steps).map(|i| (i * 29 % 120) as f64).collect();
        let input = Tensor::from_f64s(graph.ty(graph.inputs()[0].1).dtype, &[13, steps], &numbers);
        let found = run_program(&of_bytes, std::slice::from_ref(&input)).unwrap();
        assert_eq!(found, interpret(&graph, &[input]).unwrap(), "{of_bytes}");
        for program in [&program, &of_bytes] {
            // Bytes that are multiplied in pairs are unpacked from halves of words.
            let halves = program.to_string().contains("unpack2");
            let prepare = program.prepare.as_ref().unwrap().to_string();
            assert_eq!(prepare.contains("pack2"), halves, "{prepare}");
        }
        // The first element of a word must begin one.
        let odd = "graph @g(%x: i16[13, 5], %w: i16[9, 5]) {
           %0 = cast %x {to = i32} %1 = cast %w {to = i32}
           %2 = matmul %0, %1 {trans_b = true}
           return %2 as \"y\"
         }";
        check(odd);
    }
}

#[test]
fn panels_of_groups_are_laid_out_without_asking_of_each_lane() {
    for (groups, outs) in [(3, 80), (3, 72), (2, 84), (2, 67)] {
        let mut b = Builder::new("groups");
        let x = b.input("x", TensorType::fixed(DType::F32, &[1, 20 * groups, 9, 8]));
        let w = Tensor::from_fn::<f32>(&[groups * outs, 20, 1, 1], |i| ((i * 7919) % 61) as f32 / 64.0);
        let w = b.constant(w);
        let op = Conv { group: groups as i64, ..Conv::plain() };
        let y = b.push1(op, &[x, w]).unwrap();
        b.output("y", y);
        let passes = pipeline("O2").unwrap().stages;
        let (graph, _) = run(&b.finish().unwrap(), passes, &windlass_passes::Options::default()).unwrap();
        let program = check_graph(&graph, "a convolution in groups");
        let text = program.prepare.as_ref().unwrap().to_string();
        assert_eq!(text.contains("] if "), !outs.is_multiple_of(8), "{groups} groups of {outs}: {text}");
    }
}

#[test]
fn right_operands_are_packed_a_few_rows_at_a_time() {
    for (rows, columns) in [(600, 300), (401, 520)] {
        let x = TensorType::fixed(DType::F32, &[7, rows]);
        let weights = Tensor::from_fn::<f32>(&[rows, columns], |i| ((i * 7919) % 61) as f32 / 64.0);
        let program = check_graph(&product(x, weights, |_, values| values), "a product");
        let prepare = program.prepare.as_ref().unwrap();
        let kernel = &prepare.kernels[0];
        let (source, _) = kernel.params().next().unwrap();
        assert_eq!(kernel.leaves_behind(source), 32 * columns, "{prepare}");
    }
}

#[test]
fn tiles_are_as_wide_as_the_panels_that_a_few_rows_are_multiplied_by() {
    // Rows that one tile holds and that several do; columns of whole panels of 48, of 32, and of neither.
    for rows in [6, 7, 8, 9, 12, 13, 16, 31, 48, 49] {
        for columns in [96, 144, 64, 100] {
            let x = TensorType::fixed(DType::F32, &[rows, 40]);
            let weights = Tensor::from_fn::<f32>(&[40, columns], |i| ((i * 7919) % 61) as f32 / 64.0);
            check_graph(&product(x, weights, |_, values| values), &format!("{rows} rows, {columns} columns"));
        }
    }
}

#[test]
fn weights_in_pieces_are_laid_out_for_a_few_rows() {
    // Columns of each head are a part of a row.
    for rows in [5, 48] {
        let mut b = Builder::new("heads");
        let x = b.input("x", TensorType::fixed(DType::F32, &[rows, 40]));
        let w = Tensor::from_fn::<f32>(&[40, 3 * 64], |i| ((i * 7919) % 61) as f32 / 64.0);
        let w = b.constant(w);
        let y = b.push1(MatMul::default(), &[x, w]).unwrap();
        let y = b.reshape(y, &[rows, 3, 64]).unwrap();
        let y = b.push1(Transpose::by(&[1, 0, 2]), &[y]).unwrap();
        b.output("y", y);
        let program = check_graph(&b.finish().unwrap(), "heads");
        assert!(program.prepare.is_some(), "{rows} rows");
    }
}

#[test]
fn what_a_product_of_one_row_is_added_to_is_read_in_its_order() {
    // Of known weights whose rows are the product's columns, which alone would be read from end to end.
    let mut b = Builder::new("shifted");
    let pixels = b.input("pixels", TensorType::fixed(DType::F32, &[1, 30, 40, 64]));
    let time = b.input("time", TensorType::fixed(DType::F32, &[1, 96]));
    let w = Tensor::from_fn::<f32>(&[64, 96], |i| ((i * 7919) % 61) as f32 / 64.0);
    let w = b.constant(w);
    let shift = b.push1(MatMul { trans_a: false, trans_b: true }, &[time, w]).unwrap();
    let shift = b.reshape(shift, &[1, 1, 1, 64]).unwrap();
    let y = b.map(ScalarFn::Add, &[pixels, shift]).unwrap();
    b.output("y", y);
    let program = check_graph(&b.finish().unwrap(), "a product of one row and an image");
    let stores = |text: &str| text.lines().filter(|line| line.contains("y0[")).map(str::to_string).collect();
    let stores: Vec<String> = stores(&program.kernels.last().unwrap().to_string());
    let apart = |store: &&String| store[..store.find(']').unwrap()].rsplit(' ').next().unwrap().contains('*');
    assert!(!stores.is_empty() && !stores.iter().any(|store| apart(&store)), "{stores:?}");
}
