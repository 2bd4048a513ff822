//! Round trips, hostile bytes, and the decoder against the blocking reader.

use super::*;
use crate::rank::{FromRank, Note, Sample, StepDone, ToRank, from_rank::Body};
use proptest::prelude::*;

fn sample(text: &str) -> FromRank {
    FromRank { body: Some(Body::Sample(Sample { prompt: "fn".into(), text: text.into() })) }
}

fn step(step: u64) -> FromRank {
    FromRank {
        body: Some(Body::StepDone(StepDone { step, loss: 1.0 / 3.0, ..Default::default() })),
    }
}

fn stream(messages: &[FromRank]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        write(&mut bytes, message).unwrap();
    }
    bytes
}

#[test]
fn messages_come_back_in_order_and_the_end_is_clean() {
    let sent = [step(1), sample(" main() {}\n"), FromRank { body: None }, step(2)];
    let bytes = stream(&sent);
    let mut input = &bytes[..];
    for message in &sent {
        assert_eq!(read::<FromRank>(&mut input).unwrap().as_ref(), Some(message));
    }
    assert_eq!(read::<FromRank>(&mut input).unwrap(), None);
}

#[test]
fn a_huge_length_is_refused_before_any_memory_is_taken() {
    let bytes = [0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    let error = read::<FromRank>(&mut &bytes[..]).unwrap_err();
    assert!(matches!(error, FrameError::TooLong(0xffff_ffff)), "{error}");
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    assert!(matches!(decoder.next_message::<FromRank>(), Err(FrameError::TooLong(_))));
}

#[test]
fn a_message_over_the_limit_is_not_written() {
    let message = sample(&"x".repeat(MAX_FRAME_BYTES + 1));
    let mut out = Vec::new();
    assert!(matches!(write(&mut out, &message), Err(FrameError::TooLong(_))));
    assert!(out.is_empty());
}

#[test]
fn every_cut_is_reported_as_truncated() {
    let bytes = stream(&[step(7)]);
    for cut in 1..bytes.len() {
        let error = read::<FromRank>(&mut &bytes[..cut]).unwrap_err();
        assert!(matches!(error, FrameError::Truncated), "cut at {cut}: {error}");
    }
}

#[test]
fn a_message_of_the_other_direction_is_not_silently_something_else() {
    let note = Note { severity: 1, text: "text".into() };
    let bytes = stream(&[FromRank { body: Some(Body::Note(note)) }]);
    let down = read::<ToRank>(&mut &bytes[..]).unwrap().unwrap();
    assert_eq!(down.body, None);
}

proptest! {
    #[test]
    fn any_bytes_end_in_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut input = &bytes[..];
        while let Ok(Some(_)) = read::<FromRank>(&mut input) {}
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_message::<FromRank>() {}
    }

    #[test]
    fn the_decoder_equals_the_reader_however_the_bytes_arrive(
        texts in proptest::collection::vec(".{0,40}", 1..6),
        piece in 1_usize..64,
    ) {
        let sent: Vec<FromRank> = texts.iter().map(|text| sample(text)).collect();
        let mut decoder = Decoder::default();
        let mut received = Vec::new();
        for chunk in stream(&sent).chunks(piece) {
            decoder.push(chunk);
            while let Some(message) = decoder.next_message::<FromRank>().unwrap() {
                received.push(message);
            }
        }
        prop_assert_eq!(received, sent);
        prop_assert!(decoder.is_empty());
    }
}
