//! Words at the rendezvous, after the handshake: join, and the table or the reason why there is none.

use super::{Malformed, Reader, put_text};
use crate::ids::{Node, Rank};

/// Largest message at the rendezvous: a table of [`MAX_RANKS`] entries.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Most ranks of one job: every rank has a control socket to every other.
pub const MAX_RANKS: usize = 4096;
const MAX_ADDRESS: usize = 128;
const MAX_REASON: usize = 1024;

/// How a rank is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The rank.
    pub rank: Rank,
    /// Its node.
    pub node: Node,
    /// `ip:port` where it listens.
    pub address: String,
    /// Name of its Unix socket in the abstract namespace.
    pub local: String,
}

/// What a rank says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// How to reach it.
    pub entry: Entry,
    /// How many ranks it expects.
    pub ranks: u32,
}

/// What the rendezvous answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// All ranks, in order.
    Table(Vec<Entry>),
    /// These did not come in time.
    Missing(Vec<Rank>),
    /// Not with us.
    Refused(String),
    /// This rank has died before all were connected.
    Gone(Rank),
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend(entry.rank.0.to_le_bytes());
    out.extend(entry.node.0.to_le_bytes());
    put_text(out, &entry.address, MAX_ADDRESS);
    put_text(out, &entry.local, MAX_ADDRESS);
}

fn entry(r: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let (rank, node) = (Rank(r.u32()?), Node(r.u32()?));
    Ok(Entry { rank, node, address: r.text(MAX_ADDRESS)?, local: r.text(MAX_ADDRESS)? })
}

impl Join {
    /// Without a length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_entry(&mut out, &self.entry);
        out.extend(self.ranks.to_le_bytes());
        out
    }

    /// From the whole message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        let join = Self { entry: entry(&mut r)?, ranks: r.u32()? };
        r.end()?;
        let ranks = join.ranks as usize;
        if ranks == 0 || ranks > MAX_RANKS || join.entry.rank.index() >= ranks {
            return Err(Malformed::Bad("number of ranks"));
        }
        Ok(join)
    }
}

impl Reply {
    /// Without a length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let count = |n: usize| u32::try_from(n).expect("at most MAX_RANKS").to_le_bytes();
        match self {
            Self::Table(entries) => {
                out.push(0);
                out.extend(count(entries.len()));
                entries.iter().for_each(|entry| put_entry(&mut out, entry));
            }
            Self::Missing(ranks) => {
                out.push(1);
                out.extend(count(ranks.len()));
                ranks.iter().for_each(|rank| out.extend(rank.0.to_le_bytes()));
            }
            Self::Gone(rank) => {
                out.push(3);
                out.extend(rank.0.to_le_bytes());
            }
            Self::Refused(reason) => {
                out.push(2);
                put_text(&mut out, reason, MAX_REASON);
            }
        }
        out
    }

    /// From the whole message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        let kind = r.u8()?;
        let reply = if kind == 2 {
            Self::Refused(r.text(MAX_REASON)?)
        } else if kind == 3 {
            Self::Gone(Rank(r.u32()?))
        } else {
            let count = r.u32()? as usize;
            if count > MAX_RANKS {
                return Err(Malformed::Bad("number of ranks"));
            }
            match kind {
                0 => Self::Table((0..count).map(|_| entry(&mut r)).collect::<Result<_, _>>()?),
                1 => Self::Missing(
                    (0..count).map(|_| Ok(Rank(r.u32()?))).collect::<Result<_, Malformed>>()?,
                ),
                _ => return Err(Malformed::Bad("reply")),
            }
        };
        r.end()?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let entry = |rank| Entry {
            rank: Rank(rank),
            node: Node(1),
            address: "10.0.0.1:5".into(),
            local: "x".into(),
        };
        let join = Join { entry: entry(2), ranks: 3 };
        assert_eq!(Join::decode(&join.encode()), Ok(join));
        for reply in [
            Reply::Table(vec![entry(0), entry(1)]),
            Reply::Missing(vec![Rank(4)]),
            Reply::Gone(Rank(7)),
            Reply::Refused("no".into()),
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }
}
