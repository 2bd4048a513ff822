//! Strangers at the rendezvous: none of them harms the ranks that belong there.

use crate::world::{membership, next_generation, rendezvous, small};
use lampyris_comm::{Attempt, Communicator, Error, Generation, Membership, Secret};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn form(generation: Generation) {
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let me = membership(rank, 2, 2, generation);
                let comm = Communicator::connect(&me, small()).expect("strangers do no harm");
                comm.world().barrier().expect("works");
            });
        }
    });
}

#[test]
fn garbage_silence_and_floods_do_not_keep_ranks_from_meeting() {
    let address = rendezvous().0.address();
    let mut open = Vec::new();
    // Slow loris: hundreds of connections that say nothing, or one byte.
    for i in 0..400 {
        let mut stream = TcpStream::connect(address).expect("listening");
        if i % 2 == 0 {
            stream.write_all(b"L").expect("sent");
        }
        open.push(stream);
    }
    let hello_then_length: Vec<u8> = b"LPHI".iter().chain(&[0xff; 200]).copied().collect();
    for garbage in [&[0u8; 4096][..], &[0xff; 64], b"GET / HTTP/1.1\r\n\r\n", &hello_then_length] {
        let mut stream = TcpStream::connect(address).expect("listening");
        stream.write_all(garbage).expect("sent");
        open.push(stream);
    }
    form(next_generation());
    // Garbage is answered by hanging up, at the latest when patience is over.
    let mut last = open.pop().expect("pushed");
    last.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
    let ended = last.read(&mut [0; 1]);
    let reset = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(matches!(ended, Ok(0)) || ended.as_ref().is_err_and(reset), "{ended:?}");
}

#[test]
fn a_wrong_secret_or_attempt_is_refused_with_a_reason() {
    let me = membership(0, 2, 2, next_generation());
    let wrong = Membership { secret: Secret::random().expect("randomness"), ..me };
    let error = Communicator::connect(&wrong, small()).expect_err("a wrong secret");
    assert!(error.to_string().contains("does not know this attempt's secret"), "{error}");
    let me = membership(0, 2, 2, next_generation());
    let old = Membership { attempt: Attempt(0), ..me };
    let error = Communicator::connect(&old, small()).expect_err("an old attempt");
    assert!(
        matches!(&error, Error::Refused { reason, .. } if reason.contains("attempt")),
        "{error}"
    );
    form(next_generation());
}
