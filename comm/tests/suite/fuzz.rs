//! Fuzzing of every parser that sees bytes of other processes (`tests/corpus`).

use lampyris_comm::wire::control::Control;
use lampyris_comm::wire::frame::Frame;
use lampyris_comm::wire::handshake::Hello;
use lampyris_comm::wire::header::{Header, Imm};
use lampyris_comm::wire::table::{Join, Reply};
use lampyris_fuzz::fuzz;
use std::path::Path;
use std::time::Duration;

/// Feeds one input to its parser and checks what must hold for any input.
fn parse(parser: &str, input: &[u8]) {
    match parser {
        "frame" => {
            if let Ok(frame) = Frame::decode(input) {
                assert_eq!(frame.encode(), input);
            }
        }
        "hello" => {
            if let Ok(hello) = Hello::decode(input) {
                assert_eq!(hello.encode(), input);
            }
        }
        "header" => {
            if let Ok(header) = Header::decode(input) {
                assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
        }
        "imm" => {
            for word in input.chunks_exact(4) {
                let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
                if let Ok(imm) = Imm::decode(word) {
                    assert_eq!(Imm::decode(imm.encode()), Ok(imm));
                }
            }
        }
        "control" => {
            if let Ok(Some((message, length))) = Control::decode_front(input) {
                assert!(length <= input.len());
                let again = message.encode();
                let (same, _) = Control::decode_front(&again).expect("own words").expect("whole");
                assert_eq!(format!("{same:?}"), format!("{message:?}"));
            }
        }
        "join" => {
            if let Ok(join) = Join::decode(input) {
                assert_eq!(Join::decode(&join.encode()), Ok(join));
            }
        }
        "reply" => {
            if let Ok(reply) = Reply::decode(input) {
                assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    }
}

fn run(time: Duration) {
    fuzz(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"), time, None, parse);
}

#[test]
fn parsers_survive_the_corpus_and_two_seconds_of_mutations() {
    run(Duration::from_secs(2));
}

#[test]
#[ignore = "ten minutes: make test-long"]
fn parsers_survive_ten_minutes_of_mutations() {
    run(Duration::from_secs(600));
}
