//! The bearer token of every call.

use super::door::Peer;
use std::sync::Arc;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Lets calls pass that bring the token; all, if there is none. Their connection then counts as known.
#[derive(Clone)]
pub(super) struct Bearer {
    expected: Option<Arc<str>>,
    lets_strangers_in: bool,
}

impl Bearer {
    pub(super) fn new(token: Option<&str>) -> Bearer {
        let expected = token.map(|token| format!("Bearer {token}").into());
        Bearer { expected, lets_strangers_in: false }
    }

    /// The same for a service that answers everybody; without the token a connection stays a stranger's.
    pub(super) fn letting_strangers_in(self) -> Bearer {
        Bearer { lets_strangers_in: true, ..self }
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<Peer>();
        let given = request.metadata().get("authorization").map(|value| value.as_bytes());
        let is_right = self
            .expected
            .as_ref()
            .is_none_or(|expected| given.is_some_and(|given| equal(given, expected.as_bytes())));
        if is_right {
            peer.map_or(Ok(()), Peer::recognise)?;
        } else if !self.lets_strangers_in {
            if let Some(peer) = peer {
                peer.refused();
            }
            return Err(Status::unauthenticated("the bearer token is missing or wrong"));
        }
        Ok(request)
    }
}

/// Compares in a time that depends on the lengths alone.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y));
    a.len() == b.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::super::door::{Admission, Door, Origin, Places};
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    fn call(bearer: &Bearer, admission: &Admission, given: Option<&str>) -> Result<(), Status> {
        let mut request = Request::new(());
        request.extensions_mut().insert(admission.peer.clone());
        if let Some(given) = given {
            request.metadata_mut().insert("authorization", given.parse().expect("ASCII"));
        }
        bearer.clone().call(request).map(drop)
    }

    #[test]
    fn only_the_right_token_makes_a_connection_known() {
        let door = Door::new(Places::for_files(1_024));
        let bearer = Bearer::new(Some("0123456789abcdef"));
        let health = bearer.clone().letting_strangers_in();
        let mut stranger = door.admit(Origin::User(1)).expect("a place");
        for wrong in [
            None,
            Some(""),
            Some("Bearer "),
            Some("0123456789abcdef"),
            Some("Bearer 0123456789abcdeX"),
        ] {
            assert!(call(&bearer, &stranger, wrong).is_err(), "{wrong:?}");
            call(&health, &stranger, wrong).expect("health answers everybody");
            assert_eq!(stranger.known.try_recv(), Err(TryRecvError::Empty), "{wrong:?}");
        }
        call(&bearer, &stranger, Some("Bearer 0123456789abcdef")).expect("is let in");
        assert_eq!(stranger.known.try_recv(), Ok(()));
        let mut anybody = door.admit(Origin::User(1)).expect("a place");
        call(&Bearer::new(None), &anybody, None).expect("there is no token");
        assert_eq!(anybody.known.try_recv(), Ok(()));
    }
}
