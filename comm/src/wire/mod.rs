//! Every byte string that another process may have written, and its parser.
//!
//! Parsers are total: any input gives a value or an error, never a panic, and nothing is allocated from a length that
//! was not checked against a bound first. `tests/fuzz.rs` throws mutated inputs at each of them.

pub mod control;
pub mod frame;
pub mod handshake;
pub mod header;
pub mod table;

/// Why bytes were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The input ends before the value does.
    #[error("ends too early")]
    Short,
    /// A field has a value that no version of this program writes.
    #[error("bad {0}")]
    Bad(&'static str),
}

/// Reads little-endian values off the front of a byte string.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(front)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.bytes(N)?.try_into().expect("exactly N bytes were taken"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A string with a 16-bit length, at most `limit` bytes.
    pub(crate) fn text(&mut self, limit: usize) -> Result<String, Malformed> {
        let length = usize::from(self.u16()?);
        if length > limit {
            return Err(Malformed::Bad("text length"));
        }
        String::from_utf8(self.bytes(length)?.to_vec()).map_err(|_| Malformed::Bad("text"))
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Bad("trailing bytes")) }
    }
}

/// Appends a string with a 16-bit length, cut at `limit` bytes (on a character boundary).
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str, limit: usize) {
    let mut length = text.len().min(limit);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    out.extend(u16::try_from(length).expect("limits fit 16 bits").to_le_bytes());
    out.extend(&text.as_bytes()[..length]);
}
