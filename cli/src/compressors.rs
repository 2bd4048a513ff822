//! What general compressors make of the held-out text: the yardstick beside a model's bits per byte.

use flate2::Compression;
use flate2::write::GzEncoder;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;
use std::io::{self, Write};

/// A compressor's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compressed {
    /// Name and level, as on a command line.
    pub(crate) name: &'static str,
    /// Bytes of the text.
    text_bytes: usize,
    /// Bytes of the compressed file.
    bytes: usize,
}

impl Compressed {
    /// Bits of the compressed file per byte of text.
    pub(crate) fn bits_per_byte(&self) -> f64 {
        8.0 * self.bytes as f64 / self.text_bytes as f64
    }
}

/// `text` through gzip and xz at level 9, in about a second per MB. Nothing for an empty text.
pub(crate) fn compress(text: &[u8]) -> io::Result<Vec<Compressed>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let result =
        |name, bytes: Vec<u8>| Compressed { name, text_bytes: text.len(), bytes: bytes.len() };
    Ok(vec![result("xz -9", xz(text)?), result("gzip -9", gzip(text)?)])
}

fn gzip(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text)?;
    encoder.finish()
}

/// Preset 9 has a dictionary of 64 MiB, for which the encoder takes ten times that; one as long as the text finds the
/// same matches.
fn xz(text: &[u8]) -> io::Result<Vec<u8>> {
    const SMALLEST_DICTIONARY: u32 = 4096;
    const DICTIONARY: u32 = 64 << 20;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut options = LzmaOptions::new_preset(9)?;
    options.dict_size(length.clamp(SMALLEST_DICTIONARY, DICTIONARY));
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let stream = Stream::new_stream_encoder(&filters, Check::Crc64)?;
    let mut encoder = XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(text)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn both_shrink_text_and_give_it_back() {
        let text: Vec<u8> = (0..2_000_u32)
            .flat_map(|n| format!("line {} of it\n", n * n % 977).into_bytes())
            .collect();
        let results = compress(&text).unwrap();
        assert_eq!(results.iter().map(|r| r.name).collect::<Vec<_>>(), ["xz -9", "gzip -9"]);
        assert!(results.iter().all(|r| r.bits_per_byte() < 4.0 && r.bits_per_byte() > 0.0));
        let mut back = Vec::new();
        liblzma::read::XzDecoder::new(&xz(&text).unwrap()[..]).read_to_end(&mut back).unwrap();
        assert_eq!(back, text);
        back.clear();
        flate2::read::GzDecoder::new(&gzip(&text).unwrap()[..]).read_to_end(&mut back).unwrap();
        assert_eq!(back, text);
    }

    #[test]
    fn no_text_has_no_figures() {
        assert_eq!(compress(b"").unwrap(), []);
    }
}
