//! Text to token shards to batches: deterministic order, a cursor that is one number.
