//! numpy's files: a tensor a `.npy`, several named ones a `.npz`.
//!
//! bf16 is no type of numpy: it is written as `|V2`, as the `ml_dtypes` package does, and two-byte
//! voids are read as bf16.

use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::Path;

use windlass_ir::{DType, Limits, Shape, Tensor, TensorType};

use crate::error::Error;
use crate::onnx::testcase::write_whole;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Headers are a line of text; a longer one is no header.
const HEADER_BYTES: usize = 1 << 16;

/// Reads a `.npy` file.
pub fn read(path: impl AsRef<Path>, limits: &Limits) -> Result<Tensor, Error> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::file(path))?;
    read_from(BufReader::new(file), &path.display().to_string(), limits)
}

/// Writes a `.npy` file, which appears whole or not at all.
pub fn write(path: impl AsRef<Path>, tensor: &Tensor) -> Result<(), Error> {
    let mut bytes = header(tensor);
    bytes.extend_from_slice(tensor.bytes());
    write_whole(path.as_ref(), &bytes)
}

/// Reads every array of an `.npz` file, in the file's order.
pub fn read_npz(path: impl AsRef<Path>, limits: &Limits) -> Result<Vec<(String, Tensor)>, Error> {
    let path = path.as_ref();
    let subject = path.display().to_string();
    let broken = |error: zip::result::ZipError| numpy(&subject, error.to_string());
    let file = File::open(path).map_err(Error::file(path))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    (0..archive.len()).map(|i| read_member(&mut archive, i, &subject, limits)).collect()
}

fn read_member(
    archive: &mut zip::ZipArchive<impl Read + Seek>,
    index: usize,
    subject: &str,
    limits: &Limits,
) -> Result<(String, Tensor), Error> {
    let member = archive.by_index(index).map_err(|error| numpy(subject, error.to_string()))?;
    let name = member.name().strip_suffix(".npy").unwrap_or(member.name()).to_string();
    let tensor = read_from(member, &format!("{subject}: `{name}`"), limits)?;
    Ok((name, tensor))
}

/// Writes named arrays as an `.npz` file, uncompressed; it appears whole or not at all.
pub fn write_npz(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<(), Error> {
    let path = path.as_ref();
    let broken = |error: zip::result::ZipError| numpy(&path.display().to_string(), error.to_string());
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(true);
    for (name, tensor) in tensors {
        archive.start_file(format!("{name}.npy"), options).map_err(broken)?;
        archive.write_all(&header(tensor)).map_err(Error::file(path))?;
        archive.write_all(tensor.bytes()).map_err(Error::file(path))?;
    }
    write_whole(path, &archive.finish().map_err(broken)?.into_inner())
}

fn numpy(subject: &str, message: impl Into<String>) -> Error {
    Error::Numpy { subject: subject.to_string(), message: message.into() }
}

/// numpy's spelling of a type, little-endian.
fn descriptor(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "|b1",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::F16 => "<f2",
        DType::BF16 => "|V2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
    }
}

/// The type of a descriptor, and whether its bytes are to be swapped.
fn parse_descriptor(text: &str) -> Option<(DType, bool)> {
    let (order, kind) = text.split_at_checked(1)?;
    let known = |d: &&DType| &descriptor(**d)[1..] == kind;
    let dtype = if text == "bfloat16" { DType::BF16 } else { *DType::ALL.iter().find(known)? };
    match order {
        ">" => Some((dtype, dtype.size() > 1)),
        "<" | "|" | "=" | "b" => Some((dtype, false)),
        _ => None,
    }
}

fn header(tensor: &Tensor) -> Vec<u8> {
    let sizes: String = tensor.shape().iter().map(|n| format!("{n}, ")).collect();
    let sizes = if tensor.rank() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let descr = descriptor(tensor.dtype());
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // Data starts at a multiple of 64 bytes; before it the magic, the version and a length take 10.
    let padded = (text.len() + 11).next_multiple_of(64) - 11;
    text.push_str(&" ".repeat(padded - text.len()));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn read_from(mut from: impl Read, subject: &str, limits: &Limits) -> Result<Tensor, Error> {
    let fail = |message: &str| numpy(subject, message);
    let mut start = [0; 8];
    from.read_exact(&mut start).map_err(|_| fail("too short"))?;
    if &start[..6] != MAGIC {
        return Err(fail("is not a numpy file"));
    }
    let mut length = [0; 4];
    let length_bytes = if start[6] == 1 { 2 } else { 4 };
    from.read_exact(&mut length[..length_bytes]).map_err(|_| fail("too short"))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > HEADER_BYTES {
        return Err(fail("has an oversized header"));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text).map_err(|_| fail("too short"))?;
    let text = String::from_utf8(text).map_err(|_| fail("has a header that is not text"))?;
    let header = Header::parse(&text).ok_or_else(|| numpy(subject, format!("header {text:?}")))?;
    let Some((dtype, swapped)) = parse_descriptor(&header.descriptor) else {
        return Err(numpy(subject, format!("elements of type {}", header.descriptor)));
    };
    let ty = TensorType::fixed(dtype, &header.shape);
    limits.check_type(&ty, || subject.to_string())?;
    let len: usize = header.shape.iter().product();
    // What is promised is not allocated before it has arrived.
    let mut bytes = Vec::new();
    let wanted = (len * dtype.size()) as u64;
    from.take(wanted + 1).read_to_end(&mut bytes).map_err(Error::file(subject))?;
    if swapped {
        bytes.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    if dtype == DType::Bool {
        bytes.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    let found = bytes.len();
    let stored: Shape = match header.fortran_order {
        true => header.shape.iter().rev().copied().collect(),
        false => header.shape.clone(),
    };
    let Some(tensor) = Tensor::from_bytes(dtype, &stored, &bytes) else {
        return Err(numpy(subject, format!("{found} bytes of data for {ty}")));
    };
    match header.fortran_order {
        true => transposed(&tensor).ok_or_else(|| fail("cannot be transposed")),
        false => Ok(tensor),
    }
}

/// All dimensions in reverse order.
fn transposed(tensor: &Tensor) -> Option<Tensor> {
    let op = windlass_ir::ops::Transpose::default().into();
    windlass_ir::eval_op(&op, std::slice::from_ref(tensor)).ok()?.pop()
}

/// The dictionary at the start of a file.
struct Header {
    descriptor: String,
    fortran_order: bool,
    shape: Shape,
}

impl Header {
    /// Reads the three entries that numpy writes; structured types are none it knows.
    fn parse(text: &str) -> Option<Header> {
        let after = |key: &str| {
            let quoted = [format!("'{key}'"), format!("\"{key}\"")];
            let found = quoted.iter().find_map(|q| text.find(q.as_str()).map(|at| at + q.len()))?;
            Some(text[found..].trim_start().strip_prefix(':')?.trim_start())
        };
        let descriptor = after("descr")?;
        let quote = descriptor.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let descriptor = descriptor[1..].split(quote).next()?.to_string();
        let fortran_order = match after("fortran_order")? {
            text if text.starts_with("True") => true,
            text if text.starts_with("False") => false,
            _ => return None,
        };
        let sizes = after("shape")?.strip_prefix('(')?.split(')').next()?;
        let sizes = sizes.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape: Option<Shape> = sizes.map(|size| size.trim_end_matches('L').parse().ok()).collect();
        Some(Header { descriptor, fortran_order, shape: shape? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = Vec::new();
        for dtype in DType::ALL {
            for shape in [&[][..], &[3], &[2, 0], &[2, 3, 1]] {
                let len: usize = shape.iter().product();
                let values: Vec<f64> = (0..len).map(|i| i as f64).collect();
                let tensor = Tensor::from_f64s(dtype, shape, &values);
                let path = folder.path().join("x.npy");
                write(&path, &tensor).unwrap();
                assert_eq!(read(&path, &Limits::default()).unwrap(), tensor);
                all.push((format!("{dtype}_{}", shape.len()), tensor));
            }
        }
        let path = folder.path().join("x.npz");
        write_npz(&path, &all).unwrap();
        assert_eq!(read_npz(&path, &Limits::default()).unwrap(), all);
    }

    fn file(dictionary: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&(dictionary.len() as u16).to_le_bytes());
        bytes.extend_from_slice(dictionary.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn other_orders_are_put_in_order() {
        let bytes =
            file("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 2), }", &[0, 1, 0, 2, 0, 3, 0, 4]);
        let tensor = read_from(&bytes[..], "x", &Limits::default()).unwrap();
        assert_eq!(tensor, Tensor::new::<i16>(&[2, 2], &[1, 3, 2, 4]));
    }

    #[test]
    fn refuses_what_is_malformed() {
        let good = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", &[0; 8]);
        for cut in 0..good.len() {
            assert!(read_from(&good[..cut], "x", &Limits::default()).is_err(), "cut at {cut}");
        }
        for dictionary in [
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
            "{'descr': '<f4', 'shape': (2,), }",
            "",
        ] {
            assert!(read_from(&file(dictionary, &[0; 8])[..], "x", &Limits::default()).is_err());
        }
    }
}
