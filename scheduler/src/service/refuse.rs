//! Errors as gRPC statuses; the table stands in the head of `scheduler.proto`.

use crate::core::Refusal;
use crate::error::Error;
use tonic::Status;

pub(super) fn of_refusal(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NoSuchJob(_) | Refusal::NoSuchNode(_) | Refusal::NoSuchQuota { .. } => {
            Status::not_found(text)
        }
        Refusal::HasEnded { .. } | Refusal::BeingCancelled(_) | Refusal::NotSuspended(_) => {
            Status::failed_precondition(text)
        }
        Refusal::BadSpec { .. } => Status::invalid_argument(text),
        Refusal::RequestIdTaken { .. } => Status::already_exists(text),
        Refusal::TooManyJobs { .. } => Status::resource_exhausted(text),
    }
}

pub(super) fn of_error(error: &Error) -> Status {
    match error {
        Error::DiskFull { .. } => Status::resource_exhausted(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

pub(super) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field}: required"))
}

pub(super) fn stopping() -> Status {
    Status::unavailable("the scheduler is stopping: try again")
}
