//! The 32 bytes in front of each put on a tcp data socket.

use super::{Malformed, Reader};
use crate::ids::Generation;

/// Bytes of a frame header.
pub const FRAME_BYTES: usize = 32;

/// Largest payload of one frame. Pieces are far smaller; a larger length is garbage.
pub const MAX_PAYLOAD: u32 = 64 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"LPFR");

/// Header of one put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Frames of another generation are read and dropped.
    pub generation: Generation,
    /// Target region of the receiver.
    pub region: u32,
    /// First byte inside it.
    pub offset: u64,
    /// Bytes that follow.
    pub length: u32,
    /// The immediate.
    pub imm: u32,
}

impl Frame {
    /// As sent.
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&self.generation.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.region.to_le_bytes());
        out[12..16].copy_from_slice(&self.imm.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..28].copy_from_slice(&self.length.to_le_bytes());
        out
    }

    /// As received.
    ///
    /// # Errors
    /// When the magic, the length or the padding is wrong: the stream is not ours or has lost its place.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        if reader.u32()? != MAGIC {
            return Err(Malformed::Bad("frame magic"));
        }
        let generation = Generation(reader.u32()?);
        let (region, imm, offset) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let length = reader.u32()?;
        if length > MAX_PAYLOAD {
            return Err(Malformed::Bad("frame length"));
        }
        if reader.u32()? != 0 {
            return Err(Malformed::Bad("frame padding"));
        }
        reader.end()?;
        Ok(Self { generation, region, offset, length, imm })
    }
}
