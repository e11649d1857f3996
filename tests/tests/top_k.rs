//! The best of each row, in lanes along it and beside it, with many that are equal. The loops agree with the graph's
//! meaning, and code has the loops' bits on any number of threads, at every width of vectors.

use windlass_tests::widths::check;

#[test]
fn rows_of_any_length_along_any_axis() {
    for (shape, axis, k) in [
        ("[3, 1]", 1, 1),
        ("[2, 7]", 1, 7),
        ("[5, 32]", 1, 3),
        ("[4, 100]", 1, 10),
        ("[1, 130]", 1, 100),
        ("[2, 17000]", 1, 4),
        ("[9, 5]", 0, 4),
        ("[2, 12, 70]", 1, 12),
        ("[3, 40, 2, 3]", 1, 5),
    ] {
        for dtype in ["f32", "f64", "f16", "i32", "u8", "i64"] {
            for largest in [true, false] {
                for output in ["%0", "%1"] {
                    check(&format!(
                        "graph @g(%x: {dtype}{shape}) {{
                           %0, %1 = top_k %x {{k = [{k}], axis = {axis}, largest = {largest}}}
                           %2 = cast {output} {{to = f64}}
                           return %2 as \"y\"
                         }}"
                    ));
                }
            }
        }
    }
}

#[test]
fn the_least_and_the_greatest_numbers() {
    for (dtype, low, high) in [
        ("i32", "-2147483648", "2147483647"),
        ("u8", "0", "255"),
        ("f32", "-inf", "nan"),
        ("f32", "inf", "nan"),
        ("f64", "nan", "-inf"),
    ] {
        for largest in [true, false] {
            // All elements are one of the two.
            check(&format!(
                "graph @g(%x: {dtype}[2, 40]) {{
                   %low = constant {{value = {dtype}[] [{low}]}}
                   %high = constant {{value = {dtype}[] [{high}]}}
                   %few = constant {{value = {dtype}[] [2]}}
                   %0 = gt %x, %few
                   %1 = select %0, %low, %high
                   %2, %3 = top_k %1 {{k = [40], axis = 1, largest = {largest}}}
                   %4 = cast %3 {{to = f64}}
                   return %4 as \"y\"
                 }}"
            ));
        }
    }
}
