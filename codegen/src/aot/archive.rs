//! Static libraries: an `ar` archive of one member with a symbol index, in the System V and GNU format
//! that the linkers of ELF systems read.

/// An archive that holds one object file, indexed by the symbols it exports.
pub fn archive(member: &str, object: &[u8], symbols: &[String]) -> Vec<u8> {
    let mut names = Vec::new();
    for symbol in symbols {
        names.extend_from_slice(symbol.as_bytes());
        names.push(0);
    }
    let index_bytes = 4 + 4 * symbols.len() + names.len();
    let padded = index_bytes.next_multiple_of(2);
    let object_at = MAGIC.len() + HEADER + padded;
    let mut out = MAGIC.to_vec();
    out.extend(header("/", index_bytes));
    out.extend((symbols.len() as u32).to_be_bytes());
    for _ in symbols {
        out.extend((object_at as u32).to_be_bytes());
    }
    out.extend(names);
    out.resize(object_at, b'\n');
    // Longer names would need a table of their own.
    let short: String = member.chars().filter(char::is_ascii_graphic).take(13).collect();
    out.extend(header(&format!("{short}/"), object.len()));
    out.extend(object);
    if !object.len().is_multiple_of(2) {
        out.push(b'\n');
    }
    out
}

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;

/// A member's header: name, time, owner, group, mode and size, in columns.
fn header(name: &str, size: usize) -> Vec<u8> {
    format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644).into_bytes()
}
