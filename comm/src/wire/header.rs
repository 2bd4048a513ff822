//! The header of an operation, written once into each neighbour's control slot, and the layout of the immediate.
//!
//! The header says what this rank runs, so that a mismatch is an error naming both ranks, and where the neighbour may
//! put its pieces. A neighbour sends nothing before it has seen it: that is the only flow control an operation needs
//! besides its landing slots.

use super::{Malformed, Reader};
use crate::dtype::DType;
use crate::ids::{Attempt, Generation};
use std::fmt;

/// Bytes of a control slot.
pub const HEADER_BYTES: usize = 128;

const MAGIC: u32 = u32::from_le_bytes(*b"LPOP");

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Kind {
    Barrier = 1,
    Broadcast = 2,
    AllGather = 3,
    ReduceScatter = 4,
    AllReduce = 5,
    Reduce = 6,
    AllToAll = 7,
    PointToPoint = 8,
}

impl Kind {
    /// The kind with this number.
    pub fn from_wire(byte: u8) -> Option<Self> {
        [
            Self::Barrier,
            Self::Broadcast,
            Self::AllGather,
            Self::ReduceScatter,
            Self::AllReduce,
            Self::Reduce,
            Self::AllToAll,
            Self::PointToPoint,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Its name in messages and in the table of algorithms.
    pub fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::AllGather => "all-gather",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllReduce => "all-reduce",
            Self::Reduce => "reduce",
            Self::AllToAll => "all-to-all",
            Self::PointToPoint => "send/receive",
        }
    }
}

/// What must be equal on all members of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Which ranks: a number derived from the list of members.
    pub group: u64,
    /// Operations of this group before this one.
    pub sequence: u64,
    /// What it does.
    pub kind: Kind,
    /// How: the number of a [`crate::table::Algorithm`].
    pub algorithm: u8,
    /// Elements' type.
    pub dtype: DType,
    /// Root member, or 0.
    pub root: u32,
    /// Length in elements; 0 for all-to-all-v, whose counts are per pair.
    pub elements: u64,
    /// Elements per piece.
    pub chunk: u64,
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} of group {:08x}", self.kind.name(), self.sequence, self.group >> 32)?;
        write!(f, " ({} x {:?}, algorithm {}", self.elements, self.dtype, self.algorithm)?;
        write!(f, ", root {}, chunk {})", self.root, self.chunk)
    }
}

/// One rank's words to one neighbour about one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the sender.
    pub attempt: Attempt,
    /// Of the sender.
    pub generation: Generation,
    /// What the sender runs.
    pub descriptor: Descriptor,
    /// The sender's operation slot: immediates to it carry this.
    pub slot: u8,
    /// Landing slots that the receiver of the header may fill at the sender.
    pub landings: u8,
    /// Bytes of each.
    pub landing_bytes: u32,
    /// First byte of the first, in the sender's region 0.
    pub landing_at: u64,
    /// Bytes that the sender will send to the receiver of this header.
    pub to_you: u64,
    /// Bytes that the sender expects from it.
    pub from_you: u64,
}

impl Header {
    /// As written into the control slot.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let d = &self.descriptor;
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC.to_le_bytes());
        out.extend(self.attempt.0.to_le_bytes());
        out.extend(self.generation.0.to_le_bytes());
        out.extend(d.root.to_le_bytes());
        out.extend([d.kind as u8, d.algorithm, d.dtype as u8, self.slot, self.landings]);
        for word in [d.group, d.sequence, d.elements, d.chunk, self.landing_at] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.to_you.to_le_bytes());
        out.extend(self.from_you.to_le_bytes());
        out.extend(self.landing_bytes.to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        out.try_into().expect("resized to this length")
    }

    /// As read from the control slot.
    ///
    /// # Errors
    /// When a field has a value that no rank writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        if r.u32()? != MAGIC {
            return Err(Malformed::Bad("header magic"));
        }
        let attempt = Attempt(r.u32()?);
        let generation = Generation(r.u32()?);
        let root = r.u32()?;
        let kind = Kind::from_wire(r.u8()?).ok_or(Malformed::Bad("operation kind"))?;
        let algorithm = r.u8()?;
        let dtype = DType::from_wire(r.u8()?).ok_or(Malformed::Bad("dtype"))?;
        let (slot, landings) = (r.u8()?, r.u8()?);
        let (group, sequence) = (r.u64()?, r.u64()?);
        let (elements, chunk, landing_at) = (r.u64()?, r.u64()?, r.u64()?);
        let (to_you, from_you, landing_bytes) = (r.u64()?, r.u64()?, r.u32()?);
        if usize::from(slot) >= Imm::OPERATIONS || usize::from(landings) > Imm::LANDINGS {
            return Err(Malformed::Bad("slot"));
        }
        Ok(Self {
            attempt,
            generation,
            descriptor: Descriptor {
                group,
                sequence,
                kind,
                algorithm,
                dtype,
                root,
                elements,
                chunk,
            },
            slot,
            landings,
            landing_bytes,
            landing_at,
            to_you,
            from_you,
        })
    }
}

/// The 32-bit immediate: 5 bits of operation slot, 5 bits of landing slot, 22 bits of message index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imm {
    /// A piece has landed in landing slot `landing` of the receiver's operation `slot`.
    Data {
        /// The receiver's operation slot.
        slot: u8,
        /// The landing slot.
        landing: u8,
        /// Twice the piece's index, plus one if it is a result rather than a partial sum.
        index: u32,
    },
    /// The sender's header for its operation slot `slot` lies in its control slot.
    Header {
        /// The sender's operation slot.
        slot: u8,
    },
    /// The sender has read the receiver's header of operation slot `slot`.
    Seen {
        /// The receiver's operation slot.
        slot: u8,
    },
    /// Landing slot `landing`, filled by the receiver's operation `slot`, is free again.
    Credit {
        /// The receiver's operation slot.
        slot: u8,
        /// The landing slot.
        landing: u8,
    },
}

impl Imm {
    /// Operations in flight per rank: their slot has 5 bits, and one value marks control words.
    pub const OPERATIONS: usize = 31;
    /// Landing slots per neighbour and operation: 5 bits.
    pub const LANDINGS: usize = 32;
    const CONTROL: u32 = 31;
    const INDEX: u32 = (1 << 22) - 1;

    /// As 32 bits.
    pub fn encode(self) -> u32 {
        let pack = |slot: u32, landing: u32, index: u32| slot << 27 | landing << 22 | index;
        match self {
            Self::Data { slot, landing, index } => {
                debug_assert!(index <= Self::INDEX);
                pack(u32::from(slot), u32::from(landing), index & Self::INDEX)
            }
            Self::Header { slot } => pack(Self::CONTROL, 0, u32::from(slot)),
            Self::Seen { slot } => pack(Self::CONTROL, 1, u32::from(slot)),
            Self::Credit { slot, landing } => {
                pack(Self::CONTROL, 2, u32::from(slot) << 8 | u32::from(landing))
            }
        }
    }

    /// From 32 bits.
    ///
    /// # Errors
    /// When the word is none that [`Self::encode`] makes.
    pub fn decode(word: u32) -> Result<Self, Malformed> {
        let (slot, landing, index) = (word >> 27, (word >> 22) & 31, word & Self::INDEX);
        let byte = |value: u32| u8::try_from(value).map_err(|_| Malformed::Bad("slot"));
        if slot != Self::CONTROL {
            return Ok(Self::Data { slot: byte(slot)?, landing: byte(landing)?, index });
        }
        let (low, high) = (byte(index & 0xff)?, byte(index >> 8));
        let operation = |slot: u8| {
            if usize::from(slot) < Self::OPERATIONS {
                Ok(slot)
            } else {
                Err(Malformed::Bad("slot"))
            }
        };
        match landing {
            0 => Ok(Self::Header { slot: operation(byte(index)?)? }),
            1 => Ok(Self::Seen { slot: operation(byte(index)?)? }),
            2 if usize::from(low) < Self::LANDINGS => {
                Ok(Self::Credit { slot: operation(high?)?, landing: low })
            }
            _ => Err(Malformed::Bad("control word")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediates_round_trip() {
        let all = [
            Imm::Data { slot: 30, landing: 31, index: (1 << 22) - 1 },
            Imm::Data { slot: 0, landing: 0, index: 0 },
            Imm::Header { slot: 30 },
            Imm::Seen { slot: 7 },
            Imm::Credit { slot: 30, landing: 31 },
        ];
        for imm in all {
            assert_eq!(Imm::decode(imm.encode()), Ok(imm));
        }
    }

    #[test]
    fn headers_round_trip() {
        let header = Header {
            attempt: Attempt(3),
            generation: Generation(9),
            descriptor: Descriptor {
                group: 0xdead_beef_0000_0001,
                sequence: 17,
                kind: Kind::AllReduce,
                algorithm: 2,
                dtype: DType::Bf16,
                root: 5,
                elements: 1 << 40,
                chunk: 131_072,
            },
            slot: 4,
            landings: 32,
            landing_bytes: 1 << 19,
            landing_at: 1 << 33,
            to_you: 77,
            from_you: 78,
        };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}
