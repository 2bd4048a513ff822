//! Messages on a byte stream: the length in 4 bytes little-endian, then the protobuf bytes.
//!
//! A rank writes and reads blocking ([`write`], [`read`]); a shim, which waits for many ranks at once, feeds what has
//! arrived to a [`Decoder`]. Whatever the bytes are, nothing here panics and no more than [`MAX_FRAME_BYTES`] are kept.

use prost::Message;
use std::io::{self, Read, Write};

/// Largest message in bytes. The longest by far is sampled text: a few KiB. A larger length is a broken or foreign
/// peer, and refusing it bounds the memory that such a peer can take.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Bytes of the length.
const HEADER_BYTES: usize = 4;

/// Why a stream cannot be read or written further. The stream is then useless: close it.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side is gone or the socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    /// A length over the limit.
    #[error("a message of {0} bytes exceeds the limit of {MAX_FRAME_BYTES} bytes")]
    TooLong(usize),
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
    /// The bytes are not a message of the expected type.
    #[error("not a message: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Writes one message in a single call of `write_all` and flushes.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, or [`FrameError::Io`].
pub fn write(out: &mut impl Write, message: &impl Message) -> Result<(), FrameError> {
    out.write_all(&encode(message)?)?;
    Ok(out.flush()?)
}

/// The bytes of one frame.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode(message: &impl Message) -> Result<Vec<u8>, FrameError> {
    let length = message.encoded_len();
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    message.encode_raw(&mut bytes);
    Ok(bytes)
}

/// Reads one message; `None` if the stream ended between messages.
///
/// # Errors
/// Any [`FrameError`].
pub fn read<M: Message + Default>(input: &mut impl Read) -> Result<Option<M>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match input.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut body = vec![0; body_length(header)?];
    input.read_exact(&mut body).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(error),
    })?;
    Ok(Some(M::decode(&body[..])?))
}

fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME_BYTES { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// Cuts a stream that arrives in pieces into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete message, or `None` until more bytes arrive. Call it until `None` after each `push`: what stays
    /// buffered is then less than one frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] or [`FrameError::Decode`].
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let end = HEADER_BYTES + body_length(*header)?;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let message = M::decode(&self.buffer[HEADER_BYTES..end])?;
        self.buffer.drain(..end);
        Ok(Some(message))
    }

    /// Whether the stream may end here without a message being cut.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests;
