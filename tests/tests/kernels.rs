//! Random kernels are valid, print and parse, and mean the same in any order.

use windlass_ir::loops::interpret::Order;
use windlass_ir::loops::{Native, check_expanded, expand_kernel, parse_kernel, print_kernel, verify_kernel};
use windlass_tests::kernels::{Options, compare_bits, generate};

#[test]
fn random_kernels_hold_their_promises() {
    for seed in 0..400 {
        let options = Options { expanded: seed % 2 == 0, ..Options::default() };
        let generated = generate(seed, &options);
        let kernel = &generated.kernel;
        let broken = |e: &dyn std::fmt::Display| format!("seed {seed}: {e}\n{kernel}");
        verify_kernel(kernel).unwrap_or_else(|e| panic!("{}", broken(&e)));
        let expanded = expand_kernel(kernel, Native::default());
        check_expanded(&expanded, Native::default()).unwrap_or_else(|e| panic!("{}", broken(&e)));
        verify_kernel(&expanded).unwrap_or_else(|e| panic!("{}", broken(&e)));
        let text = print_kernel(kernel);
        let back = parse_kernel(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        assert_eq!(print_kernel(&back), text, "seed {seed}");
        let forward = generated.interpret(Order::Forward).unwrap_or_else(|e| panic!("{}", broken(&e)));
        let backward = generated.interpret(Order::Backward).unwrap_or_else(|e| panic!("{}", broken(&e)));
        for (a, b) in forward.iter().zip(&backward) {
            compare_bits(a, b).unwrap_or_else(|e| panic!("{}", broken(&e)));
        }
    }
}
