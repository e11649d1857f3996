//! Where sums of products are kept: in registers, a row of a tile in vectors of its own. Code that spills them or takes
//! their lanes apart is right, and slow; no test of results sees it.

use windlass_codegen::{Target, asm_text};
use windlass_ir::text::parse_graph;
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower};

/// A block of code with at least this many multiply-adds is the inside of a tile.
const TILE: usize = 12;

#[test]
fn sums_of_tiles_stay_in_registers() {
    let target = Target::parse("x86_64-unknown-linux-gnu").expect("code is made for it");
    let target = Target { cpu: Some("x86-64-v4".to_string()), ..target };
    for (name, text) in [
        (
            "product",
            "graph @g(%x: f32[48, 64], %w: f32[64, 80]) { %y = matmul %x, %w : f32[48, 80] return %y as \"y\" }",
        ),
        (
            "product of 24 columns",
            "graph @g(%x: f32[48, 64], %w: f32[64, 24]) { %y = matmul %x, %w : f32[48, 24] return %y as \"y\" }",
        ),
        (
            "product of 28 columns",
            "graph @g(%x: f32[48, 64], %w: f32[64, 28]) { %y = matmul %x, %w : f32[48, 28] return %y as \"y\" }",
        ),
        (
            "product of 196 rows",
            "graph @g(%x: f32[196, 64], %w: f32[64, 32]) { %y = matmul %x, %w : f32[196, 32] return %y as \"y\" }",
        ),
        (
            "product of 45 rows",
            "graph @g(%x: f32[45, 64], %w: f32[64, 16]) { %y = matmul %x, %w : f32[45, 16] return %y as \"y\" }",
        ),
        (
            "product of 81 rows",
            "graph @g(%x: f32[81, 64], %w: f32[64, 48]) { %y = matmul %x, %w : f32[81, 48] return %y as \"y\" }",
        ),
        (
            "long product",
            "graph @g(%x: f32[60, 2000], %w: f32[2000, 64]) { %y = matmul %x, %w return %y as \"y\" }",
        ),
        (
            "convolution",
            "graph @g(%x: f32[1, 14, 14, 32], %w: f32[3, 3, 32, 32]) \
             { %y = conv %x, %w {channels_last = true} return %y as \"y\" }",
        ),
        (
            "pairs",
            "graph @g(%x: i8[48, 64], %w: i8[64, 80]) \
             { %a = cast %x {to = i32} %b = cast %w {to = i32} %y = matmul %a, %b return %y as \"y\" }",
        ),
        (
            "recurrence, in blocks of two sizes",
            "graph @g(%x: f32[3, 16, 128], %r: f32[128, 32], %h: f32[16, 32], %c: f32[16, 32]) \
             { %y, %h2, %c2 = lstm_steps %x, %r, %h, %c {activations = \"Relu Relu Relu\"} \
               return %y as \"y\" }",
        ),
        (
            "depthwise",
            "graph @g(%x: f32[1, 14, 14, 32], %w: f32[3, 3, 1, 32]) \
             { %y = conv %x, %w {channels_last = true, group = 32} return %y as \"y\" }",
        ),
    ] {
        let graph = parse_graph(text).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        for bits in [256, 512] {
            let options = LowerOptions { machine: Machine::with_vectors(bits), ..LowerOptions::default() };
            let program = lower(&graph, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut tiles = 0;
            for kernel in &program.kernels {
                let asm = asm_text(kernel, &target, Some(bits)).unwrap_or_else(|e| panic!("{name}: {e}"));
                for block in asm.split("block") {
                    let products = block.matches("vfmadd").count() + block.matches("vpmaddwd").count();
                    if products >= TILE {
                        tiles += 1;
                        let spilled: Vec<&str> = block.lines().filter(|line| line.contains("[rsp")).collect();
                        assert!(spilled.is_empty(), "{name}, {bits} bits: {spilled:?} in\n{block}");
                        let moved: Vec<&str> = block.lines().filter(|line| moves_lanes(line)).collect();
                        assert!(moved.is_empty(), "{name}, {bits} bits: {moved:?} in\n{block}");
                    }
                }
            }
            assert!(tiles > 0, "{name} has no tile of {bits} bits");
        }
    }
}

/// Whether a line of a listing computes a single lane, or takes lanes out of vectors or puts them in.
fn moves_lanes(line: &str) -> bool {
    let name = line.split_whitespace().next().unwrap_or_default();
    let scalar = name.starts_with("vfmadd") && name.ends_with("ss");
    scalar
        || ["vpextr", "vinsert", "vextract", "vperm", "valign", "vblend", "vpblend"]
            .iter()
            .any(|n| name.starts_with(n))
}
