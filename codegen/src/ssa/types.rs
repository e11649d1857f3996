//! Types of values: scalars, and vectors of them.

use std::fmt;

/// The type of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// 8 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// An IEEE float of 32 bits.
    F32,
    /// An IEEE float of 64 bits.
    F64,
}

impl Element {
    /// Its size.
    pub fn bytes(self) -> usize {
        match self {
            Element::I8 => 1,
            Element::I16 => 2,
            Element::I32 | Element::F32 => 4,
            Element::I64 | Element::F64 => 8,
        }
    }

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, Element::F32 | Element::F64)
    }

    /// The integer of a size in bytes.
    pub fn int(bytes: usize) -> Element {
        match bytes {
            1 => Element::I8,
            2 => Element::I16,
            4 => Element::I32,
            _ => Element::I64,
        }
    }
}

/// The type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Type {
    element: Element,
    lanes: u8,
}

impl Type {
    /// A byte; the truth of a comparison is one, 0 or 1.
    pub const I8: Type = Type::scalar(Element::I8);
    /// An integer of 32 bits.
    pub const I32: Type = Type::scalar(Element::I32);
    /// An integer of 64 bits, or an address.
    pub const I64: Type = Type::scalar(Element::I64);
    /// A float of 32 bits.
    pub const F32: Type = Type::scalar(Element::F32);

    /// A scalar.
    pub const fn scalar(element: Element) -> Type {
        Type { element, lanes: 1 }
    }

    /// A vector of this many bytes, at least 16.
    pub fn vector(element: Element, bytes: usize) -> Type {
        Type { element, lanes: (bytes / element.bytes()) as u8 }
    }

    /// The type of its lanes.
    pub fn element(self) -> Element {
        self.element
    }

    /// The number of lanes.
    pub fn lanes(self) -> usize {
        usize::from(self.lanes)
    }

    /// One lane as a scalar.
    pub fn lane(self) -> Type {
        Type::scalar(self.element)
    }

    /// The type of as many bytes with another element.
    pub fn with_element(self, element: Element) -> Type {
        match self.is_vector() {
            true => Type::vector(element, self.bytes()),
            false => Type::scalar(element),
        }
    }

    /// Integers in place of floats.
    pub fn as_int(self) -> Type {
        Type { element: Element::int(self.element.bytes()), lanes: self.lanes }
    }

    /// Its size.
    pub fn bytes(self) -> usize {
        self.element.bytes() * self.lanes()
    }

    /// The width of a lane.
    pub fn lane_bits(self) -> u32 {
        8 * self.element.bytes() as u32
    }

    /// Whether there are several lanes.
    pub fn is_vector(self) -> bool {
        self.lanes > 1
    }

    /// Whether lanes are floats.
    pub fn is_float(self) -> bool {
        self.element.is_float()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = match self.element {
            Element::I8 => "i8",
            Element::I16 => "i16",
            Element::I32 => "i32",
            Element::I64 => "i64",
            Element::F32 => "f32",
            Element::F64 => "f64",
        };
        match self.lanes {
            1 => f.write_str(element),
            lanes => write!(f, "{element}x{lanes}"),
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
