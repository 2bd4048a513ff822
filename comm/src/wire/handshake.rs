//! How two processes of one attempt recognise each other before anything else is read.
//!
//! Three fixed-length messages: hello, challenge, proof. Both sides prove knowledge of the attempt's secret with a keyed
//! BLAKE3 over both nonces and the hello, so a proof cannot be replayed, reflected or moved to another purpose. A
//! stranger can make the other side read at most [`HELLO_BYTES`] + [`PROOF_BYTES`] bytes.

use super::{Malformed, Reader};
use crate::ids::{Attempt, Generation, Rank};
use crate::secret::Secret;

/// Bytes of the first message, from the connecting side.
pub const HELLO_BYTES: usize = 64;
/// Bytes of the second, from the accepting side.
pub const CHALLENGE_BYTES: usize = 64;
/// Bytes of the third, from the connecting side.
pub const PROOF_BYTES: usize = 32;

const MAGIC: u32 = u32::from_le_bytes(*b"LPHI");
const VERSION: u32 = 1;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To the rendezvous.
    Rendezvous,
    /// The control socket between two ranks.
    Control,
    /// One data lane between two ranks.
    Data(u8),
}

/// Who connects, to whom, for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Of the connecting rank.
    pub attempt: Attempt,
    /// Of the connecting rank.
    pub generation: Generation,
    /// The connecting rank.
    pub from: Rank,
    /// The rank it wants; 0 at the rendezvous.
    pub to: Rank,
    /// What for.
    pub purpose: Purpose,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
}

impl Hello {
    /// As sent.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        let (purpose, lane) = match self.purpose {
            Purpose::Rendezvous => (0, 0),
            Purpose::Control => (1, 0),
            Purpose::Data(lane) => (2, lane),
        };
        let words = [MAGIC, VERSION, self.attempt.0, self.generation.0, self.from.0, self.to.0];
        for (at, word) in words.into_iter().enumerate() {
            out[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
        out[24] = purpose;
        out[25] = lane;
        out[32..].copy_from_slice(&self.nonce);
        out
    }

    /// As received.
    ///
    /// # Errors
    /// When it is not a hello of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        if r.u32()? != MAGIC {
            return Err(Malformed::Bad("hello magic"));
        }
        if r.u32()? != VERSION {
            return Err(Malformed::Bad("protocol version: all ranks must run the same build"));
        }
        let (attempt, generation) = (Attempt(r.u32()?), Generation(r.u32()?));
        let (from, to) = (Rank(r.u32()?), Rank(r.u32()?));
        let purpose = match (r.u8()?, r.u8()?) {
            (0, 0) => Purpose::Rendezvous,
            (1, 0) => Purpose::Control,
            (2, lane) => Purpose::Data(lane),
            _ => return Err(Malformed::Bad("purpose")),
        };
        if r.array::<6>()? != [0; 6] {
            return Err(Malformed::Bad("padding"));
        }
        let nonce = r.array()?;
        r.end()?;
        Ok(Self { attempt, generation, from, to, purpose, nonce })
    }
}

/// The accepting side's answer: its own nonce, and its proof.
pub fn challenge(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    nonce: [u8; 32],
) -> [u8; CHALLENGE_BYTES] {
    let mut out = [0; CHALLENGE_BYTES];
    out[..32].copy_from_slice(&nonce);
    out[32..].copy_from_slice(secret.mac(b"accept", hello, &nonce).as_bytes());
    out
}

/// The connecting side's proof, or `None` when the accepting side does not know the secret.
pub fn prove(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
) -> Option<[u8; PROOF_BYTES]> {
    let (nonce, mac) = challenge.split_first_chunk::<32>().expect("64 bytes");
    let mac = blake3::Hash::from_slice(mac).expect("the other 32 bytes");
    // Comparison of blake3 hashes takes constant time.
    (secret.mac(b"accept", hello, nonce) == mac)
        .then(|| *secret.mac(b"connect", hello, nonce).as_bytes())
}

/// Whether the connecting side knows the secret.
pub fn verify(
    secret: &Secret,
    hello: &[u8; HELLO_BYTES],
    nonce: &[u8; 32],
    proof: &[u8; PROOF_BYTES],
) -> bool {
    secret.mac(b"connect", hello, nonce) == blake3::Hash::from_bytes(*proof)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            attempt: Attempt(1),
            generation: Generation(2),
            from: Rank(3),
            to: Rank(4),
            purpose: Purpose::Data(5),
            nonce: [6; 32],
        }
    }

    #[test]
    fn both_sides_prove_the_secret() {
        let (secret, wrong) = (Secret::from_bytes([1; 32]), Secret::from_bytes([2; 32]));
        let hello = hello().encode();
        let nonce = [9; 32];
        let challenge = challenge(&secret, &hello, nonce);
        let proof = prove(&secret, &hello, &challenge).expect("same secret");
        assert!(verify(&secret, &hello, &nonce, &proof));
        assert!(!verify(&wrong, &hello, &nonce, &proof));
        assert!(prove(&wrong, &hello, &challenge).is_none());
        let mut other = hello;
        other[8] ^= 1;
        assert!(!verify(&secret, &other, &nonce, &proof), "a proof holds for one hello only");
        // The accepting side's own proof is no proof of the connecting side.
        let reflected = challenge[32..].try_into().expect("32 bytes");
        assert!(!verify(&secret, &hello, &nonce, &reflected));
    }

    #[test]
    fn hellos_round_trip() {
        assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
    }
}
