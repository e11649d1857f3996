//! Conversions of f16: every one, and f32 around every boundary, by instructions and by integer arithmetic alike.

use windlass_codegen::{Options, Target, jit};
use windlass_ir::loops::interpret::run_program;
use windlass_ir::text::parse_graph;
use windlass_ir::{DType, Tensor, f16};
use windlass_passes::lower::{LowerOptions, lower};
use windlass_runtime::Pool;

/// The bits that code gives at every width of vectors, which are those of the loops.
fn converted(from: &Tensor, to: DType) -> Tensor {
    let text = format!(
        "graph @g(%x: {}) {{
           %0 = cast %x {{to = {to}}}
           return %0 as \"y\"
         }}",
        from.ty()
    );
    let program = lower(&parse_graph(&text).unwrap(), &LowerOptions::default()).unwrap();
    let expected = run_program(&program, std::slice::from_ref(from)).unwrap().remove(0);
    for bits in Target::host().vector_widths().unwrap() {
        let options = Options { vector_bits: Some(bits), ..Options::default() };
        let (executable, _) = jit(&program, &options).unwrap();
        let mut found = Tensor::zeros(expected.dtype(), expected.shape());
        executable.run(&Pool::new(1), &[from.bytes()], &mut [found.bytes_mut()]).unwrap();
        let differs = |size: usize| {
            let pairs = found.bytes().chunks(size).zip(expected.bytes().chunks(size));
            pairs.enumerate().find(|(_, (a, b))| a != b).map(|(at, pair)| format!("element {at}: {pair:x?}"))
        };
        assert_eq!(differs(to.size()), None, "{bits} bits");
    }
    expected
}

#[test]
fn every_f16_to_f32_and_back() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_ne_bytes).collect();
    let all = Tensor::from_bytes(DType::F16, &[1 << 16], &bytes).unwrap();
    let wide = converted(&all, DType::F32);
    let back = converted(&wide, DType::F16);
    for (bits, pair) in (0..=u16::MAX).zip(back.bytes().chunks(2)) {
        let is_nan = bits & 0x7fff > 0x7c00;
        let quiet = if is_nan { bits | 0x200 } else { bits };
        assert_eq!(pair, quiet.to_ne_bytes(), "{bits:#x}");
    }
}

#[test]
fn f32_to_f16_around_every_boundary() {
    let mut patterns: Vec<u32> = Vec::new();
    for high in 0..=u16::MAX {
        // Ties between neighbours, what is just beside them, and the neighbours themselves.
        for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x2000, 0x7fff, 0x8000, 0x8001, 0xf000, 0xffff] {
            patterns.push(u32::from(high) << 16 | low);
        }
    }
    let values: Vec<f32> = patterns.iter().map(|&bits| f32::from_bits(bits)).collect();
    let found = converted(&Tensor::new(&[values.len()], &values), DType::F16);
    for (value, pair) in values.iter().zip(found.bytes().chunks(2)) {
        let expected = f16::from_f32(*value).to_bits();
        assert_eq!(pair, expected.to_ne_bytes(), "{:#x}", value.to_bits());
    }
}
