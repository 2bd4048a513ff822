//! Who goes, who stays, and whose share is used up.

use super::*;
use tokio::sync::oneshot::error::TryRecvError;

fn places() -> Places {
    Places {
        connections: 20,
        strangers: 4,
        strangers_per_address: 2,
        people: 6,
        people_per_address: 3,
        streams: 5,
        streams_per_address: 3,
        streams_per_connection: 2,
        first_request: Duration::from_secs(5),
    }
}

fn admit(door: &Door, uid: u32) -> Admission {
    door.admit(Origin::User(uid)).expect("a place")
}

/// What has become of a stranger.
fn fate(admission: &mut Admission) -> Result<(), TryRecvError> {
    admission.known.try_recv()
}

#[test]
fn the_oldest_stranger_goes_when_there_are_too_many() {
    let door = Door::new(places());
    let mut known = admit(&door, 1);
    known.peer.recognise().expect("let in");
    let mut oldest = admit(&door, 1);
    let mut next = admit(&door, 1);
    assert_eq!(fate(&mut oldest), Err(TryRecvError::Empty));
    // Two of one address: the third takes the place of the first.
    let third = admit(&door, 1);
    assert_eq!(fate(&mut oldest), Err(TryRecvError::Closed));
    assert!(oldest.peer.recognise().is_err());
    // Four in all: others take the place of the oldest of all.
    let others: Vec<Admission> = (2..5).map(|uid| admit(&door, uid)).collect();
    assert_eq!(fate(&mut next), Err(TryRecvError::Closed));
    assert_eq!((fate(&mut known), known.peer.recognise().is_ok()), (Ok(()), true));
    assert_eq!(door.tally().strangers.len(), 4);
    drop((known, oldest, next, third, others));
    let tally = door.tally();
    assert!(tally.connections.is_empty() && tally.shares.is_empty() && tally.strangers.is_empty());
    assert_eq!((tally.people, tally.streams), (0, 0));
}

#[test]
fn people_leave_places_to_workers() {
    let door = Door::new(places());
    let mut inside = Vec::new();
    for uid in [1, 1, 1, 2, 2, 2] {
        let admission = admit(&door, uid);
        admission.peer.recognise().expect("let in");
        inside.push(admission);
    }
    assert_eq!(
        admit(&door, 1).peer.recognise().expect_err("full").code(),
        tonic::Code::ResourceExhausted
    );
    assert!(admit(&door, 3).peer.recognise().is_err(), "all places of people are taken");
    // A worker does not count as one of them.
    let worker = inside[0].peer.as_worker();
    let other = admit(&door, 3);
    other.peer.recognise().expect("its place");
    drop(worker);
    assert!(admit(&door, 4).peer.recognise().is_err());
    drop(inside);
    admit(&door, 4).peer.recognise().expect("places again");
}

#[test]
fn there_is_an_end_to_connections() {
    let places = Places { connections: 3, ..places() };
    let door = Door::new(places);
    let mut inside: Vec<Admission> = (0..3).map(|uid| admit(&door, uid)).collect();
    assert!(door.admit(Origin::User(7)).is_none());
    // Who had shown nothing makes room for the next.
    assert_eq!(fate(&mut inside[0]), Err(TryRecvError::Closed));
    inside.remove(0);
    admit(&door, 7);
}

#[test]
fn streams_are_shared_between_connections_and_addresses() {
    let door = Door::new(places());
    let (one, other, far) = (admit(&door, 1), admit(&door, 1), admit(&door, 2));
    let mut open: Vec<StreamPlace> = (0..2).map(|_| one.peer.stream().expect("a place")).collect();
    let refused = one.peer.stream().err().expect("full");
    assert!(refused.message().contains("this connection"), "{refused}");
    open.push(other.peer.stream().expect("a place"));
    assert!(other.peer.stream().err().expect("full").message().contains("this address"));
    open.extend((0..2).map(|_| far.peer.stream().expect("a place")));
    let third = admit(&door, 3);
    assert!(third.peer.stream().err().expect("full").message().contains("all clients"));
    drop(open);
    assert!(one.peer.stream().is_ok() && third.peer.stream().is_ok());
}

#[test]
fn a_machine_is_one_address_however_it_writes_itself() {
    let of = |text: &str| Origin::of_machine(text.parse().expect("an address"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("2001:db8::1").to_string(), "2001:db8::/64");
}
