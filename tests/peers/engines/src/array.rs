//! Dense arrays as numpy's .npy files hold them: what the engines are given and what they give back.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use npyz::{AutoSerialize, DType, NpyFile, Order, WriteOptions, WriterBuilder};

/// Elements in row-major order.
pub struct Array {
    pub shape: Vec<usize>,
    pub elements: Elements,
}

/// The element types of the models' inputs and outputs.
pub enum Elements {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

impl Array {
    pub fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let file = NpyFile::new(BufReader::new(File::open(path)?))?;
            let shape = file.shape().iter().map(|&size| Ok(usize::try_from(size)?));
            let shape = shape.collect::<Result<Vec<_>>>()?;
            ensure!(file.order() == Order::C || shape.len() < 2, "the array is not in row-major order");
            let DType::Plain(element) = file.dtype() else { bail!("an array of records") };
            let elements = match element.to_string().as_str() {
                "<f4" => Elements::F32(file.into_vec()?),
                "<i8" => Elements::I64(file.into_vec()?),
                "<i4" => Elements::I32(file.into_vec()?),
                "|i1" => Elements::I8(file.into_vec()?),
                "|u1" => Elements::U8(file.into_vec()?),
                "|b1" => Elements::Bool(file.into_vec()?),
                other => bail!("elements of numpy's type {other}"),
            };
            Ok(Self { shape, elements })
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        match &self.elements {
            Elements::F32(values) => write(path, &self.shape, values),
            Elements::I64(values) => write(path, &self.shape, values),
            Elements::I32(values) => write(path, &self.shape, values),
            Elements::I8(values) => write(path, &self.shape, values),
            Elements::U8(values) => write(path, &self.shape, values),
            Elements::Bool(values) => write(path, &self.shape, values),
        }
        .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn write<T: AutoSerialize>(path: &Path, shape: &[usize], values: &[T]) -> Result<()> {
    let shape: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
    let file = BufWriter::new(File::create(path)?);
    let mut writer = WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(values)?;
    Ok(writer.finish()?)
}
