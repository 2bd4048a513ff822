//! Errors as gRPC statuses; the table stands in the head of `scheduler.proto`.

use crate::core::{Reason, Refusal};
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
        Refusal::TooManyJobs { .. }
        | Refusal::TooManyQuotas { .. }
        | Refusal::TooManyGroups { .. } => Status::resource_exhausted(text),
    }
}

/// Why a connection is closed. ALREADY_EXISTS tells a worker that trying again does not help.
pub(super) fn of_reason(reason: &Reason) -> Status {
    match reason {
        Reason::NameTaken { .. } => Status::already_exists(reason.to_string()),
        _ => Status::aborted(reason.to_string()),
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
