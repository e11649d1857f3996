//! Numbers as text: exact for every value of every element type, NaN payloads included.

use super::lex::Token;
use crate::dtype::{Bool8, DType};
use crate::tensor::Tensor;
use crate::{bf16, f16};

/// Writes the element at `i` of a tensor.
pub(super) fn print_element(tensor: &Tensor, i: usize) -> String {
    let bits = |size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&tensor.bytes()[i * size..(i + 1) * size]);
        u64::from_le_bytes(bytes)
    };
    let dtype = tensor.dtype();
    match dtype {
        // A shortest decimal of the wider type is exact for the narrower one.
        DType::F16 => print_f32(tensor.as_slice::<f16>()[i].to_f32(), bits(2), bits_of_nan(dtype), 4),
        DType::BF16 => print_f32(tensor.as_slice::<bf16>()[i].to_f32(), bits(2), bits_of_nan(dtype), 4),
        DType::F32 => print_f32(tensor.as_slice::<f32>()[i], bits(4), bits_of_nan(dtype), 8),
        DType::F64 => print_f64(tensor.as_slice::<f64>()[i]),
        DType::Bool => match tensor.as_slice::<Bool8>()[i].0 {
            0 => "false".to_string(),
            1 => "true".to_string(),
            other => format!("0x{other:02x}"),
        },
        DType::I8 => tensor.as_slice::<i8>()[i].to_string(),
        DType::I16 => tensor.as_slice::<i16>()[i].to_string(),
        DType::I32 => tensor.as_slice::<i32>()[i].to_string(),
        DType::I64 => tensor.as_slice::<i64>()[i].to_string(),
        DType::U8 => tensor.as_slice::<u8>()[i].to_string(),
        DType::U16 => tensor.as_slice::<u16>()[i].to_string(),
        DType::U32 => tensor.as_slice::<u32>()[i].to_string(),
        DType::U64 => tensor.as_slice::<u64>()[i].to_string(),
    }
}

fn print_f32(value: f32, bits: u64, nan: u64, digits: usize) -> String {
    match value.is_nan() {
        true if bits == nan => "nan".to_string(),
        true => format!("0x{bits:0digits$x}"),
        false => format!("{value:?}"),
    }
}

/// Writes an f64.
pub(super) fn print_f64(value: f64) -> String {
    match value.is_nan() {
        true if value.to_bits() == bits_of_nan(DType::F64) => "nan".to_string(),
        true => format!("0x{:016x}", value.to_bits()),
        false => format!("{value:?}"),
    }
}

/// The bits of the NaN that is written `nan`.
fn bits_of_nan(dtype: DType) -> u64 {
    match dtype {
        DType::F16 => u64::from(f16::NAN.to_bits()),
        DType::BF16 => u64::from(bf16::NAN.to_bits()),
        DType::F32 => u64::from(f32::NAN.to_bits()),
        _ => f64::NAN.to_bits(),
    }
}

/// The bits of an element of this type, or `None` if the token is none.
pub(super) fn parse_element(dtype: DType, token: &Token<'_>) -> Option<u64> {
    let int = |text: &str| {
        let value: i128 = text.parse().ok()?;
        let (low, high) = dtype.int_range();
        (low..=high).contains(&value).then_some(value as u64)
    };
    let mask = u64::MAX >> (64 - 8 * dtype.size());
    match token {
        Token::Hex(digits) => u64::from_str_radix(digits, 16).ok().filter(|bits| bits & !mask == 0),
        Token::Word("nan") if dtype.is_float() => Some(bits_of_nan(dtype)),
        Token::Word("true") if dtype == DType::Bool => Some(1),
        Token::Word("false") if dtype == DType::Bool => Some(0),
        Token::Word(text @ "inf") | Token::Number(text) => match dtype {
            DType::F16 => Some(u64::from(f16::from_f32(text.parse().ok()?).to_bits())),
            DType::BF16 => Some(u64::from(bf16::from_f32(text.parse().ok()?).to_bits())),
            DType::F32 => Some(u64::from(text.parse::<f32>().ok()?.to_bits())),
            DType::F64 => Some(text.parse::<f64>().ok()?.to_bits()),
            DType::Bool => None,
            _ => int(text).map(|bits| bits & mask),
        },
        Token::Word(_) | Token::Value(_) | Token::Text(_) | Token::Punct(_) | Token::End => None,
    }
}

/// A tensor's bytes as hexadecimal digits.
pub(super) fn print_bytes(tensor: &Tensor) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * tensor.bytes().len());
    text.push_str("0x");
    for byte in tensor.bytes() {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes that hexadecimal digits stand for.
pub(super) fn parse_bytes(digits: &str) -> Option<Vec<u8>> {
    let value = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| Some(value(pair[0])? << 4 | value(*pair.get(1)?)?)).collect()
}
