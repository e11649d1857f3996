//! Which importer serves an operator of a domain at an operator set version.
//!
//! Operators whose op names them in `OpDef::ONNX` need nothing here: their attributes are filled by
//! name. The irregular ones stand in [`ops`], one table a family.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use windlass_ir::attrs::{AttrError, Slot};
use windlass_ir::{Late, Op};

use super::node::{Imported, NodeCx};
use super::ops;
use super::problem::{Problem, invalid, unsupported};

/// Imports one node.
pub(crate) type NodeImporter = fn(&mut NodeCx<'_, '_>) -> Imported;

/// One row of a family's table.
pub(crate) struct Entry {
    /// The operator.
    pub name: &'static str,
    /// The operator set versions of the default domain this importer knows.
    pub versions: RangeInclusive<u32>,
    pub import: NodeImporter,
}

/// An operator at every version.
pub(crate) const fn entry(name: &'static str, import: NodeImporter) -> Entry {
    Entry { name, versions: 1..=NEWEST, import }
}

/// An operator at some versions.
pub(crate) const fn entry_at(
    name: &'static str,
    versions: RangeInclusive<u32>,
    import: NodeImporter,
) -> Entry {
    Entry { name, versions, import }
}

/// The newest operator set of the default domain that the importers were written for.
pub(crate) const NEWEST: u32 = 28;

/// How an operator is imported.
#[derive(Clone, Copy)]
pub(crate) enum Importing {
    /// By a function.
    Function(NodeImporter),
    /// As the op of this name, attribute by attribute.
    Generic(&'static str),
}

impl Importing {
    pub fn apply(self, cx: &mut NodeCx<'_, '_>) -> Imported {
        match self {
            Importing::Function(import) => import(cx),
            Importing::Generic(name) => import_generic(cx, name),
        }
    }
}

type Table = HashMap<&'static str, Vec<(RangeInclusive<u32>, Importing)>>;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table::new();
    for entry in ops::FAMILIES.iter().copied().flatten() {
        let rows = table.entry(entry.name).or_default();
        rows.push((entry.versions.clone(), Importing::Function(entry.import)));
    }
    for info in Op::LIST {
        for (i, (name, versions)) in info.onnx.iter().enumerate() {
            // A family lists an operator for each of its names.
            let op = info.names[i.min(info.names.len() - 1)];
            table.entry(name).or_default().push((versions.clone(), Importing::Generic(op)));
        }
    }
    table
});

/// The importer of an operator.
pub(crate) fn find(domain: &str, op_type: &str, version: u32) -> Result<Importing, Problem> {
    if domain == "com.microsoft"
        && let Some(entry) = ops::MICROSOFT.iter().find(|entry| entry.name == op_type)
    {
        return Ok(Importing::Function(entry.import));
    }
    if !domain.is_empty() {
        unsupported!("operator `{op_type}` of domain `{domain}`");
    }
    if version > NEWEST {
        unsupported!("operator set {version}; the newest known is {NEWEST}");
    }
    let Some(rows) = TABLE.get(op_type) else {
        unsupported!("operator `{op_type}`");
    };
    match rows.iter().find(|(versions, _)| versions.contains(&version)) {
        Some((_, import)) => Ok(*import),
        None => unsupported!("operator `{op_type}` of operator set {version}"),
    }
}

/// Imports a node whose operands and attributes are those of the op.
fn import_generic(cx: &mut NodeCx<'_, '_>, name: &'static str) -> Imported {
    let Some(mut op) = Op::from_name(name) else {
        invalid!("there is no op `{name}`");
    };
    let mut problem = None;
    let mut fill = |name: &'static str, slot: Slot<'_>| {
        if let Err(found) = fill_slot(cx, name, slot) {
            problem.get_or_insert(found);
        }
        Ok::<(), AttrError>(())
    };
    let filled = op.attrs(&mut fill);
    if let Some(problem) = problem {
        return Err(problem);
    }
    if let Err(error) = filled {
        invalid!("{error}");
    }
    let ins = cx.inputs()?;
    cx.push_whole(op, &ins)
}

fn fill_slot(cx: &mut NodeCx<'_, '_>, name: &str, slot: Slot<'_>) -> Imported<()> {
    match slot {
        Slot::Int(field) => set(field, cx.int(name)?),
        Slot::Ints(field) => set(field, cx.ints(name)?),
        Slot::Float(field) => set(field, cx.float(name)?),
        Slot::Floats(field) => set(field, cx.floats(name)?),
        Slot::Text(field) => set(field, cx.string(name)?),
        Slot::Bool(field) => set(field, cx.int(name)?.map(|i| i != 0)),
        Slot::DType(field) => set(field, cx.dtype(name)?),
        Slot::Tensor(field) => set(field, cx.tensor(name)?),
        Slot::Late(field) => set(field, cx.ints(name)?.map(Late::Known)),
        Slot::Keyword(field) => {
            if let Some(word) = cx.string(name)?
                && !field.set_word(&word)
            {
                unsupported!("attribute `{name}` is `{word}`; known are {}", field.words().join(", "));
            }
        }
        Slot::Graph(_) => unsupported!("attribute `{name}`"),
    }
    Ok(())
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
