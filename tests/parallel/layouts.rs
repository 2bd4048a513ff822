//! The same recipe on other layouts: losses, weights, moments and biases have the bits of the one-rank run.

use lampyris_checkpoint::Kind;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_tests::desk::{Desk, signal};
use rustix::process::Signal;
use std::sync::Arc;

/// 8 micro-batches in 8 leaves, so that up to 8 ranks can share them; 6 steps, buckets small enough to be many.
const RECIPE: [&str; 8] = [
    "batch.micro_batch=1",
    "batch.leaves=8",
    "schedule.total_tokens=3_072",
    "schedule.warmup_tokens=1_024",
    "eval.every_steps=3",
    "parallel.bucket_bytes=20_000",
    "output.sample_tokens=0",
    "checkpoint.every_s=0",
];

/// A way to spread a run.
struct Layout {
    nodes: usize,
    per_node: usize,
    expert: usize,
    zero: usize,
}

const fn layout(nodes: usize, per_node: usize, expert: usize, zero: usize) -> Layout {
    Layout { nodes, per_node, expert, zero }
}

impl Layout {
    fn name(&self) -> String {
        let Layout { nodes, per_node, expert, zero } = self;
        format!("{nodes}x{per_node}-ep{expert}-zero{zero}")
    }

    fn sets(&self) -> [String; 3] {
        let data = self.nodes * self.per_node;
        [
            format!("parallel.data={data}"),
            format!("parallel.expert={}", self.expert),
            format!("parallel.zero={}", self.zero),
        ]
    }

    /// Trains `recipe` on this layout and compares it with the run `undisturbed`.
    fn equals(&self, desk: &Desk, recipe: &str, sets: &[&str], undisturbed: &str) {
        let name = self.name();
        let own = self.sets();
        let mut all: Vec<&str> = sets.to_vec();
        all.extend(own.iter().map(String::as_str));
        let nodes = self.nodes.to_string();
        let ended = desk.train_with(recipe, &name, &all, &["--nodes", &nodes]);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        assert_eq!(desk.losses(&name), desk.losses(undisturbed), "{name}");
        assert_eq!(desk.validation(&name), desk.validation(undisturbed), "{name}");
        desk.assert_same_state(&name, undisturbed);
    }
}

fn all_equal_one_rank(recipe: &str, compute: &str, layouts: &[Layout]) {
    let desk = Desk::new();
    let compute = format!("compute={compute}");
    let mut sets = RECIPE.to_vec();
    sets.push(&compute);
    let ended = desk.train(recipe, "undisturbed", &sets);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(desk.losses("undisturbed").len(), 6);
    for layout in layouts {
        layout.equals(&desk, recipe, &sets, "undisturbed");
    }
}

#[test]
fn dense_fp32() {
    all_equal_one_rank("debug_llama", "fp32", &[layout(1, 2, 1, 0), layout(2, 2, 1, 1)]);
}

#[test]
fn dense_bf16() {
    all_equal_one_rank("debug_llama", "bf16", &[layout(1, 4, 1, 1), layout(2, 1, 1, 0)]);
}

#[test]
fn experts_fp32() {
    let layouts = [layout(1, 2, 1, 1), layout(1, 2, 2, 0), layout(2, 2, 2, 1), layout(1, 4, 4, 1)];
    all_equal_one_rank("debug_moe", "fp32", &layouts);
}

#[test]
fn experts_bf16() {
    let layouts = [layout(2, 1, 2, 1), layout(1, 4, 2, 0), layout(2, 4, 4, 1)];
    all_equal_one_rank("debug_moe", "bf16", &layouts);
}

#[test]
fn resume_on_other_layouts_goes_on_bit_for_bit() {
    moved_equals_undisturbed("adamw");
}

/// A matrix has another owner on each of the layouts, and its momentum moves along.
#[test]
fn muon_resumes_on_other_layouts_bit_for_bit() {
    let desk = moved_equals_undisturbed("muon");
    let shown = lampyris_checkpoint::report::show(Arc::new(RealDisk), desk.newest("moved").dir());
    let elements = shown.expect("opens").elements;
    assert!(elements[&Kind::ExpAvg] == elements[&Kind::Weight], "{elements:?}");
    assert!(elements[&Kind::ExpAvgSq] < elements[&Kind::Weight] / 2, "{elements:?}");
    // A plan that somebody has edited since.
    let plan = desk.path("moved").join("plan.toml");
    let text = std::fs::read_to_string(&plan).expect("a plan");
    let edited = text.replace("[optimizer.muon]\nmomentum = 0.95\n", "");
    assert_ne!(text, edited);
    std::fs::write(&plan, edited).expect("is written");
    let ended = desk.run(&["resume", "moved"]);
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(ended.stderr.contains("holds optimizer state of Muon for"), "{}", ended.stderr);
    assert!(ended.stderr.contains("put optimizer.kind back"), "{}", ended.stderr);
    assert!(desk.newest("moved").dir().exists(), "nothing is set aside as damaged");
}

/// 1 -> 4 -> 2 ranks, with experts and optimizer state spread differently each time.
fn moved_equals_undisturbed(optimizer: &str) -> Desk {
    let desk = Desk::new();
    let mut sets = RECIPE.to_vec();
    let optimizer = format!("optimizer.kind={optimizer}");
    sets.extend([optimizer.as_str(), "schedule.total_tokens=12_288"]);
    let ended = desk.train("debug_moe", "undisturbed", &sets);
    assert_eq!(ended.code, 0, "{}", ended.stderr);

    let mut child = desk.start("debug_moe", "moved", &sets);
    for (layout, stop_after) in [(layout(2, 2, 2, 1), 3), (layout(1, 2, 1, 0), 9)] {
        desk.wait_for_step("moved", stop_after);
        signal(child.id(), Signal::TERM);
        assert_eq!(child.wait().expect("waits").code(), Some(85));
        let step = desk.newest("moved").manifest().id.step.0;
        assert!((stop_after..24).contains(&step), "stopped after step {step}");
        let own = layout.sets();
        let all: Vec<&str> = sets.iter().copied().chain(own.iter().map(String::as_str)).collect();
        child = desk.resume("debug_moe", "moved", &all, &["--nodes", &layout.nodes.to_string()]);
    }
    assert_eq!(child.wait().expect("waits").code(), Some(0));
    assert_eq!(desk.losses("moved"), desk.losses("undisturbed"));
    assert_eq!(desk.losses("moved").len(), 24);
    desk.assert_same_state("moved", "undisturbed");
    desk
}
