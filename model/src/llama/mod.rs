//! LLaMA blocks: grouped-query attention and the dense feed-forward.

pub(crate) mod attention;
