//! Images whose rows are contiguous, channel by channel: windows over them, and images resized and sampled. The loops
//! agree with the graph's meaning, and code has the loops' bits on any number of threads, at every width of vectors.

use windlass_tests::widths::check;

#[test]
fn windows_over_rows() {
    for (op, attributes) in [
        ("max_pool", "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"),
        ("max_pool", "kernel_shape = [2, 2], strides = [2, 2]"),
        ("max_pool", "kernel_shape = [5, 5], pads = [2, 2, 2, 2]"),
        ("max_pool", "kernel_shape = [2, 3], strides = [1, 3]"),
        ("average_pool", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"),
        ("average_pool", "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"),
        (
            "average_pool",
            "kernel_shape = [5, 4], strides = [1, 2], pads = [2, 3, 2, 0], count_include_pad = true",
        ),
        ("average_pool", "kernel_shape = [2, 2], strides = [2, 2], dilations = [1, 2]"),
    ] {
        for shape in ["[1, 2, 7, 20]", "[2, 3, 9, 37]", "[1, 5, 12, 113]"] {
            for dtype in ["f32", "f64", "f16"] {
                check(&format!(
                    "graph @g(%x: {dtype}{shape}) {{
                       %0 = {op} %x {{{attributes}}}
                       return %0 as \"y\"
                     }}"
                ));
            }
        }
    }
}

#[test]
fn every_second_element() {
    // As many as one piece of a vector, some, or none.
    for count in (1..40).chain([64, 65, 127]) {
        for dtype in ["f32", "i32", "u8", "f64"] {
            check(&format!(
                "graph @g(%x: {dtype}[3, {}]) {{
                   %0 = slice %x {{starts = [0], ends = [1000], axes = [1], steps = [2]}}
                   %1 = cast %0 {{to = f32}}
                   return %1 as \"y\"
                 }}",
                2 * count - 1
            ));
        }
    }
}

#[test]
fn images_resized() {
    for attributes in [
        "scales = [1.0, 1.0, 2.0, 2.0], mode = linear",
        "scales = [1.0, 1.0, 0.5, 0.6], mode = linear, coordinate_transformation_mode = align_corners",
        "scales = [1.0, 1.0, 1.7, 2.3], mode = cubic",
        "scales = [1.0, 1.0, 3.0, 0.4], mode = cubic, exclude_outside = true",
        "scales = [1.0, 1.0, 1.3, 1.9], mode = nearest",
        "scales = [1.0, 1.0, 2.0, 2.0], mode = nearest, coordinate_transformation_mode = asymmetric, nearest_mode = floor",
        "scales = [1.0, 1.0, 1.0, 3.0], mode = nearest, coordinate_transformation_mode = asymmetric, nearest_mode = floor",
        "scales = [1.0, 1.0, 2.0, 5.0], mode = nearest, coordinate_transformation_mode = asymmetric, nearest_mode = floor",
    ] {
        for shape in ["[1, 3, 40, 33]", "[2, 20, 12, 9]", "[1, 1, 5, 300]", "[2, 33, 18, 20]"] {
            check(&format!(
                "graph @g(%x: f32{shape}) {{
                   %0 = resize %x {{{attributes}}}
                   return %0 as \"y\"
                 }}"
            ));
        }
    }
}

#[test]
fn images_sampled() {
    for (mode, padding) in [("linear", "zeros"), ("nearest", "border"), ("cubic", "reflection")] {
        for (x, grid) in [("[2, 9, 12, 10]", "[2, 30, 21, 2]"), ("[1, 40, 16, 16]", "[1, 64, 64, 2]")] {
            check(&format!(
                "graph @g(%x: f32{x}, %g: f32{grid}) {{
                   %two = constant {{value = f32[] [2.0]}}
                   %0 = sub %g, %two
                   %1 = grid_sample %x, %0 {{mode = {mode}, padding_mode = {padding}}}
                   return %1 as \"y\"
                 }}"
            ));
        }
    }
}
