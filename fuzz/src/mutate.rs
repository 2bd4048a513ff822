//! The mutations: bits, bytes, cuts, repeats, splices, odd characters, and numbers at the ends of ranges as text, as words and
//! as the varints of protobuf.

/// Random numbers that a seed names.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Equal seeds give equal numbers, and so do an even one and the next.
    pub fn new(seed: u64) -> Dice {
        // Xorshift stays at zero.
        Dice(seed | 1)
    }

    /// A number below `n`; 0 if there is none.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }

    fn of<'a, T: ?Sized>(&mut self, choice: &[&'a T]) -> &'a T {
        choice[self.below(choice.len())]
    }
}

/// Numbers as texts have them, at which arithmetic breaks.
const TEXTS: &[&str] = &[
    "0",
    "1",
    "-1",
    "0.5",
    "63",
    "4097",
    "1e999",
    "2147483648",
    "4294967295",
    "4611686018427387904",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999",
];

/// The same for binary formats.
const NUMBERS: [u64; 9] =
    [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX as u64, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX];

/// Bytes that mean something in binary formats or in texts.
const BYTES: &[u8] = b"\0\x01\x7f\x80\xff\"{[]}\\,:-=|# \t\n09an";

/// Characters that are seldom thought of: an escape, letters and digits of more than one byte, one that turns text round.
const CHARACTERS: &[&str] = &["\u{1b}", "é", "１", "\u{202e}", "\r\n", "'"];

/// Changes `input` in one to five places; `other` is another input, from which a piece may come.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(5) {
        let at = dice.below(input.len());
        match dice.below(12) {
            0 if !input.is_empty() => input[at] ^= 1 << dice.below(8),
            1 if !input.is_empty() => input[at] = BYTES[dice.below(BYTES.len())],
            2 => input.truncate(at),
            3 => {
                let end = (at + dice.below(40)).min(input.len());
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => {
                input.truncate(at);
                input.extend(&other[dice.below(other.len())..]);
            }
            5 | 6 => replace_number(input, at, dice.of(TEXTS)),
            7 => drop(input.splice(at..at, dice.of(CHARACTERS).bytes())),
            8 if input.len() >= at + 4 => {
                let number = NUMBERS[dice.below(NUMBERS.len())] as u32;
                input[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            9 if !input.is_empty() => {
                let number = NUMBERS[dice.below(NUMBERS.len())];
                input.splice(at..=at, varint(number));
            }
            10 => {
                // A field of the message itself: protobuf takes the last one.
                input.push((dice.below(15) as u8 + 1) << 3);
                input.extend(varint(NUMBERS[dice.below(NUMBERS.len())]));
            }
            _ => input.insert(at, dice.below(256) as u8),
        }
    }
}

/// Puts `number` in place of the first one at or behind `at`, or at `at` where none is.
fn replace_number(input: &mut Vec<u8>, at: usize, number: &str) {
    let found = input[at..].iter().position(u8::is_ascii_digit);
    let start = found.map_or(at, |skipped| at + skipped);
    let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    input.splice(start..start + digits, number.bytes());
}

/// `number` in groups of seven bits, the lowest first, as protobuf has it.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
