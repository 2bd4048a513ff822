//! Sharded, atomic, re-shardable snapshots keyed by global tensor coordinates; Hugging Face layout in and out.
