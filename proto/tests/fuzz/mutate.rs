//! Mutations of encoded messages: bits, bytes, cuts, repeats, splices, extreme numbers, fields of their own.

use prost::encoding::encode_varint;

/// A random number generator that a seed names.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `n`, 0 if there is none.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// The largest numbers of protobuf and what lies around the bounds.
const NUMBERS: [u64; 8] =
    [0, 1, u32::MAX as u64, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 1, i64::MAX as u64];

/// Changes an encoded message in a few places; `other` is another one.
pub(crate) fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.truncate(at),
            3 => {
                let end = (at + random.below(16)).min(input.len());
                let piece = input[at.min(end)..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => {
                let cut = random.below(other.len());
                input.truncate(at);
                input.extend(&other[cut..]);
            }
            5 => {
                // A field of the message itself, with an extreme number: protobuf takes the last one.
                let mut field = vec![(random.below(15) as u8 + 1) << 3];
                encode_varint(NUMBERS[random.below(NUMBERS.len())], &mut field);
                input.extend(field);
            }
            6 if !input.is_empty() => {
                let mut number = Vec::new();
                encode_varint(NUMBERS[random.below(NUMBERS.len())], &mut number);
                input.splice(at..=at, number);
            }
            _ => input.insert(at.min(input.len()), random.below(256) as u8),
        }
    }
}
