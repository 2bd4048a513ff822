//! The bearer token of every call.

use std::sync::Arc;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Lets calls pass that bring the token; all, if there is none.
#[derive(Clone)]
pub(super) struct Bearer {
    expected: Option<Arc<str>>,
}

impl Bearer {
    pub(super) fn new(token: Option<&str>) -> Bearer {
        Bearer { expected: token.map(|token| format!("Bearer {token}").into()) }
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(expected) = &self.expected else { return Ok(request) };
        let given = request.metadata().get("authorization").map(|value| value.as_bytes());
        match given.is_some_and(|given| equal(given, expected.as_bytes())) {
            true => Ok(request),
            false => Err(Status::unauthenticated("the bearer token is missing or wrong")),
        }
    }
}

/// Compares in a time that depends on the lengths alone.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y));
    a.len() == b.len() && differ == 0
}
