//! The flags of the bench, for every program that offers it.

use super::{Operation, Options};
use lampyris_comm::table::Row;

/// What to measure, as a person says it.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Ranks in all
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub ranks: usize,
    /// Nodes, filled in order; more than one means tcp between them
    #[arg(long, value_name = "M", default_value_t = 1)]
    pub nodes: usize,
    /// Bytes per rank in MiB, separated by commas
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_value = "16,64,256")]
    pub sizes: Vec<f64>,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// Algorithm between the nodes: ring, halving, double-tree, doubling; else the table's choice
    #[arg(long)]
    pub algorithm: Option<String>,
    /// A row in front of the table of algorithms, e.g. all-reduce,<=65536,>=4=ring; may be repeated
    #[arg(long, value_name = "ROW")]
    pub prefer: Vec<Row>,
    /// Any order of addition instead of the canonical one
    #[arg(long)]
    pub fast: bool,
    /// Buffers in private memory instead of shared
    #[arg(long)]
    pub private: bool,
    /// Measured rounds inside one node
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub rounds: usize,
    /// Time of back-to-back operations between nodes
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub seconds: f64,
    /// Emulate the nodes as hosts with links of so many Gbit/s (needs root)
    #[arg(long, value_name = "GBIT")]
    pub gbit: Option<f64>,
    /// Most bytes of a piece between nodes
    #[arg(long, value_name = "BYTES")]
    pub chunk_bytes: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// The same for [`super::run`].
    pub fn options(&self, operation: Operation) -> Options {
        let bytes = |mib: &f64| (mib * f64::from(1 << 20)) as usize;
        Options {
            operation,
            ranks: self.ranks,
            nodes: self.nodes,
            sizes: self.sizes.iter().map(bytes).collect(),
            dtype: self.dtype.clone(),
            algorithm: self.algorithm.clone(),
            prefer: self.prefer.iter().map(ToString::to_string).collect(),
            canonical: !self.fast,
            private: self.private,
            rounds: self.rounds,
            seconds: self.seconds,
            rate_bits: self.gbit.map(|gbit| (gbit * 1e9) as u64),
            chunk_bytes: self.chunk_bytes,
        }
    }
}
