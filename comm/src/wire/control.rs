//! Words on the control sockets: heartbeats, notices of death and abort, goodbyes, shared descriptors.

use super::{Malformed, Reader, put_text};
use crate::error::Error;
use crate::ids::Rank;
use crate::wire::header::Kind;

/// Largest control message.
pub const MAX_CONTROL: usize = 16 << 10;

/// Longest text in one.
const MAX_TEXT: usize = 1 << 10;

/// Ranks that one notice of a timeout names; the rest is cut.
const MAX_WAITING: usize = 8;

/// An operation that a rank has entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// The group.
    pub group: u64,
    /// Its sequence number in the group.
    pub sequence: u64,
    /// What it is.
    pub kind: Kind,
}

/// One control message.
#[derive(Debug, Clone)]
pub enum Control {
    /// "I run, and nothing changed since my last words."
    Alive,
    /// "I run, and these are the operations I entered last", one per group, newest last.
    Entered(Vec<Entered>),
    /// Why the communicator is at its end. From whoever saw it first, handed on once by everybody.
    Fate(Error),
    /// The sender closes its communicator in good order.
    Bye,
    /// A descriptor travels with this message.
    Memory {
        /// What it is: agreed by both sides.
        key: u64,
        /// Its size.
        bytes: u64,
    },
}

impl Control {
    /// With its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0u8; 4];
        match self {
            Self::Alive => out.push(0),
            Self::Entered(list) => {
                out.push(1);
                out.push(u8::try_from(list.len()).expect("a handful"));
                for entered in list {
                    out.extend(entered.group.to_le_bytes());
                    out.extend(entered.sequence.to_le_bytes());
                    out.push(entered.kind as u8);
                }
            }
            Self::Fate(error) => {
                out.push(2);
                encode_fate(&mut out, error);
            }
            Self::Bye => out.push(3),
            Self::Memory { key, bytes } => {
                out.push(4);
                out.extend(key.to_le_bytes());
                out.extend(bytes.to_le_bytes());
            }
        }
        let length = u32::try_from(out.len() - 4).expect("bounded above");
        out[..4].copy_from_slice(&length.to_le_bytes());
        out
    }

    /// The first message of `bytes` and its length, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the length or the message is not one of ours.
    pub fn decode_front(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_CONTROL {
            return Err(Malformed::Bad("control length"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        Ok(Some((Self::decode(body)?, 4 + length)))
    }

    fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(body);
        let message = match r.u8()? {
            0 => Self::Alive,
            1 => {
                let count = r.u8()?;
                let entered = (0..count).map(|_| {
                    let (group, sequence) = (r.u64()?, r.u64()?);
                    let kind = Kind::from_wire(r.u8()?).ok_or(Malformed::Bad("kind"))?;
                    Ok(Entered { group, sequence, kind })
                });
                Self::Entered(entered.collect::<Result<_, Malformed>>()?)
            }
            2 => Self::Fate(decode_fate(&mut r)?),
            3 => Self::Bye,
            4 => Self::Memory { key: r.u64()?, bytes: r.u64()? },
            _ => return Err(Malformed::Bad("control message")),
        };
        r.end()?;
        Ok(message)
    }
}

fn encode_fate(out: &mut Vec<u8>, error: &Error) {
    match error {
        Error::PeerDead { rank, seen_by } => {
            out.push(0);
            out.extend(rank.0.to_le_bytes());
            out.extend(seen_by.0.to_le_bytes());
        }
        Error::PeerVanished { rank, seen_by, peer_timeout_ms } => {
            out.push(1);
            out.extend(rank.0.to_le_bytes());
            out.extend(seen_by.0.to_le_bytes());
            out.extend(peer_timeout_ms.to_le_bytes());
        }
        Error::Aborted { rank, reason } => {
            out.push(2);
            out.extend(rank.0.to_le_bytes());
            put_text(out, reason, MAX_TEXT);
        }
        Error::Timeout { operation, timeout_ms, waiting } => {
            out.push(3);
            put_text(out, operation, MAX_TEXT);
            out.extend(timeout_ms.to_le_bytes());
            let waiting = &waiting[..waiting.len().min(MAX_WAITING)];
            out.push(u8::try_from(waiting.len()).expect("cut above"));
            for (rank, what) in waiting {
                out.extend(rank.0.to_le_bytes());
                put_text(out, what, MAX_TEXT);
            }
        }
        Error::Mismatch { ours, our_operation, theirs, their_operation } => {
            out.push(4);
            out.extend(ours.0.to_le_bytes());
            put_text(out, our_operation, MAX_TEXT);
            out.extend(theirs.0.to_le_bytes());
            put_text(out, their_operation, MAX_TEXT);
        }
        // Everything else happened on one rank only: the others learn that it gave up, and why.
        other => {
            out.push(5);
            put_text(out, &other.to_string(), MAX_TEXT);
        }
    }
}

fn decode_fate(r: &mut Reader<'_>) -> Result<Error, Malformed> {
    Ok(match r.u8()? {
        0 => Error::PeerDead { rank: Rank(r.u32()?), seen_by: Rank(r.u32()?) },
        1 => Error::PeerVanished {
            rank: Rank(r.u32()?),
            seen_by: Rank(r.u32()?),
            peer_timeout_ms: r.u64()?,
        },
        2 => Error::Aborted { rank: Rank(r.u32()?), reason: r.text(MAX_TEXT)? },
        3 => {
            let (operation, timeout_ms) = (r.text(MAX_TEXT)?, r.u64()?);
            let count = usize::from(r.u8()?);
            if count > MAX_WAITING {
                return Err(Malformed::Bad("number of ranks"));
            }
            let waiting = (0..count).map(|_| Ok((Rank(r.u32()?), r.text(MAX_TEXT)?)));
            let waiting = waiting.collect::<Result<_, Malformed>>()?;
            Error::Timeout { operation, timeout_ms, waiting }
        }
        4 => Error::Mismatch {
            ours: Rank(r.u32()?),
            our_operation: r.text(MAX_TEXT)?,
            theirs: Rank(r.u32()?),
            their_operation: r.text(MAX_TEXT)?,
        },
        // The rank is filled in by the receiver, who knows the socket.
        5 => Error::Aborted { rank: Rank(u32::MAX), reason: r.text(MAX_TEXT)? },
        _ => return Err(Malformed::Bad("fate")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let entered = Entered { group: 1, sequence: 2, kind: Kind::Reduce };
        let all = [
            Control::Alive,
            Control::Entered(vec![entered; 8]),
            Control::Fate(Error::PeerDead { rank: Rank(1), seen_by: Rank(2) }),
            Control::Fate(Error::Timeout {
                operation: "x".into(),
                timeout_ms: 5,
                waiting: vec![(Rank(3), "is elsewhere".into())],
            }),
            Control::Fate(Error::Mismatch {
                ours: Rank(0),
                our_operation: "a".into(),
                theirs: Rank(1),
                their_operation: "b".into(),
            }),
            Control::Bye,
            Control::Memory { key: 3, bytes: 4 },
        ];
        for message in all {
            let bytes = message.encode();
            let (decoded, length) =
                Control::decode_front(&bytes).expect("valid").expect("complete");
            assert_eq!(length, bytes.len());
            assert_eq!(format!("{decoded:?}"), format!("{message:?}"));
            for cut in 0..bytes.len() {
                assert!(Control::decode_front(&bytes[..cut]).expect("valid so far").is_none());
            }
        }
    }
}
