//! The gRPC words between cli, scheduler, worker and rank.
