//! The bench on its own: `lampyris bench` is the same function behind the same flags.

use clap::Parser;
use lampyris_hfreduce::bench::{Operation, Options, RankProgram, rank_main, run};

/// Measures all-reduce or all-to-all between processes of this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// allreduce or alltoall; `rank` is for the bench itself
    operation: String,
    /// Ranks in all
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// Nodes; more than one means tcp between them
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Sizes in MiB, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "16,64,256")]
    sizes: Vec<f64>,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Algorithm between nodes: ring, halving, double-tree
    #[arg(long)]
    algorithm: Option<String>,
    /// Any order of addition instead of the canonical one
    #[arg(long)]
    fast: bool,
    /// Buffers in private memory
    #[arg(long)]
    private: bool,
    /// Rounds inside one node
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Emulate the nodes as hosts with links of so many Gbit/s (needs root)
    #[arg(long)]
    gbit: Option<f64>,
    /// Bytes of a piece between nodes
    #[arg(long)]
    chunk_bytes: Option<usize>,
    /// The report as JSON
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "the report is what a person asked for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let operation = match arguments.operation.as_str() {
        "rank" => return Ok(rank_main()?),
        "allreduce" => Operation::AllReduce,
        "alltoall" => Operation::AllToAll,
        other => return Err(format!("no operation {other:?}: allreduce or alltoall").into()),
    };
    let options = Options {
        operation,
        ranks: arguments.ranks,
        nodes: arguments.nodes,
        sizes: arguments.sizes.iter().map(|mib| (mib * f64::from(1 << 20)) as usize).collect(),
        dtype: arguments.dtype,
        algorithm: arguments.algorithm,
        canonical: !arguments.fast,
        private: arguments.private,
        rounds: arguments.rounds,
        rate_bits: arguments.gbit.map(|gbit| (gbit * 1e9) as u64),
        chunk_bytes: arguments.chunk_bytes,
        ..Options::default()
    };
    let program = RankProgram { program: std::env::current_exe()?, arguments: vec!["rank".into()] };
    let report = run(&options, &program)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
