//! ONNX: models in ([`load`], [`from_bytes`]) and out ([`to_bytes`]), and test cases ([`testcase`]).

mod calls;
mod declared;
mod export;
mod external;
mod four_bits;
mod frame;
mod import;
mod node;
mod ops;
mod problem;
pub mod proto;
mod registry;
mod rewire;
mod tensor;
pub mod testcase;

pub use declared::Sizes;
pub use export::{VERSION as EXPORT_VERSION, to_bytes};

use std::io::Read;
use std::path::Path;

use prost::Message;
pub use prost::bytes::Bytes;
use windlass_ir::{Graph, Limits, Tensor};

use crate::error::Error;
use external::Source;
use import::Importer;
use proto::ModelProto;

/// An imported model.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it computes. Its inputs are those without a default.
    pub graph: Graph,
    /// What its file says about it.
    pub metadata: Metadata,
    /// Inputs that the model gives a value itself, in the model's order. They are constants of the graph.
    pub defaults: Vec<(String, Tensor)>,
}

/// What a model's file says about the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The version of the file format.
    pub ir_version: i64,
    /// The program that wrote it.
    pub producer_name: String,
    /// That program's version.
    pub producer_version: String,
    /// The model's name space, in reverse-DNS form.
    pub domain: String,
    /// The model's own version.
    pub model_version: i64,
    /// Documentation.
    pub doc_string: String,
    /// Operator sets: domain and version.
    pub operator_sets: Vec<(String, i64)>,
    /// Free keys and values.
    pub properties: Vec<(String, String)>,
}

/// Reads a model file. External data is read only from inside the file's folder.
///
/// # Errors
/// If the file cannot be read, is no valid model, exceeds a limit, or holds anything unsupported:
/// then the error lists everything that is.
pub fn load(path: impl AsRef<Path>, limits: &Limits) -> Result<Model, Error> {
    load_with(path, limits, &Sizes::default(), None)
}

/// How the bytes of a large file are had without reading it whole, by mapping it say.
pub type MapFile<'a> = &'a dyn Fn(&std::fs::File) -> std::io::Result<Bytes>;

/// Like [`load`], for the sizes that are given, and with large files mapped by `map`, if it is given. Tensors then
/// share the bytes of the mapping.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    path: impl AsRef<Path>,
    limits: &Limits,
    sizes: &Sizes,
    map: Option<MapFile<'_>>,
) -> Result<Model, Error> {
    let path = path.as_ref();
    let bytes = read_file(path, limits, map)?;
    let source = Source::beside(path, limits, bytes.len() as u64, map);
    import_model(&decode_model(bytes)?, &source, sizes)
}

/// A model from the bytes of a file. It can have no external data.
///
/// # Errors
/// As [`load`].
pub fn from_bytes(bytes: impl Into<Bytes>, limits: &Limits) -> Result<Model, Error> {
    let bytes = bytes.into();
    Limits::check(|| "model".to_string(), "bytes", bytes.len() as u64, limits.file_bytes)?;
    let source = Source::memory(limits, bytes.len() as u64);
    import_model(&decode_model(bytes)?, &source, &Sizes::default())
}

/// Files smaller than this are read rather than mapped.
pub(crate) const MAPPED_BYTES: u64 = 128 << 10;

/// A file's bytes, if there are no more than a model may have.
pub(crate) fn read_file(path: &Path, limits: &Limits, map: Option<MapFile<'_>>) -> Result<Bytes, Error> {
    let file = std::fs::File::open(path).map_err(Error::file(path))?;
    let metadata = file.metadata().map_err(Error::file(path))?;
    let size = metadata.len();
    let subject = || path.display().to_string();
    Limits::check(subject, "bytes", size, limits.file_bytes)?;
    if let Some(map) = map
        && metadata.is_file()
        && size >= MAPPED_BYTES
    {
        return map(&file).map_err(Error::file(path));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    // What is not a regular file may hold more than it says.
    file.take(limits.file_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::file(path))?;
    Limits::check(subject, "bytes", bytes.len() as u64, limits.file_bytes)?;
    Ok(Bytes::from(bytes))
}

pub(crate) fn decode_model(bytes: Bytes) -> Result<ModelProto, Error> {
    ModelProto::decode(bytes).map_err(|error| Error::Protobuf { what: "model", error })
}

fn import_model(proto: &ModelProto, source: &Source, sizes: &Sizes) -> Result<Model, Error> {
    let Some(graph) = &proto.graph else {
        return Err(Error::invalid("model", "holds no graph"));
    };
    let importer = Importer::new(source, &proto.functions, &proto.opset_import)?;
    let (imported, defaults) = importer.import_main(graph, sizes)?;
    Ok(Model { graph: imported, metadata: metadata(proto), defaults })
}

fn metadata(proto: &ModelProto) -> Metadata {
    Metadata {
        ir_version: proto.ir_version(),
        producer_name: proto.producer_name().to_string(),
        producer_version: proto.producer_version().to_string(),
        domain: proto.domain().to_string(),
        model_version: proto.model_version(),
        doc_string: proto.doc_string().to_string(),
        operator_sets: proto
            .opset_import
            .iter()
            .map(|set| (set.domain().to_string(), set.version()))
            .collect(),
        properties: proto
            .metadata_props
            .iter()
            .map(|entry| (entry.key().to_string(), entry.value().to_string()))
            .collect(),
    }
}
