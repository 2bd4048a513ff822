//! The networks as compute segments.
