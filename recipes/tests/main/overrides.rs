//! `--set`, presets, paths and defaults.

use crate::{defaults, shipped_plan};
use lampyris_plan::TrainPlan;
use lampyris_plan::model_spec::{Attention, Gate};
use lampyris_plan::train_plan::*;
use lampyris_recipes::{load, parse, shipped};
use std::path::Path;

/// `text` as if it lay in `/recipes`.
fn plan_of(text: &str, sets: &[&str]) -> TrainPlan {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    parse(text, Path::new("/recipes/mine.toml"), &sets, &defaults())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn with_sets(sets: &[&str]) -> TrainPlan {
    plan_of(shipped("debug_moe").expect("a shipped recipe"), sets)
}

#[test]
fn every_type_can_be_set() {
    let plan = with_sets(&[
        "name=my-run",
        "compute=bf16",
        "batch.leaves = 2",
        "schedule.total_tokens=1e6",
        "optimizer.eps=1e-6",
        "output.tensorboard=false",
        "output.sample_prompt=Once upon a time",
        "tokenizer={ kind = \"bpe\", vocab_size = 512 }",
    ]);
    assert_eq!(plan.name, "my-run");
    assert_eq!(plan.compute, Compute::Bf16);
    assert_eq!(plan.batch.leaves, 2);
    assert_eq!(plan.schedule.total_tokens, 1_000_000);
    assert_eq!(plan.optimizer.eps, 1e-6);
    assert!(!plan.output.tensorboard);
    assert_eq!(plan.output.sample_prompt, "Once upon a time");
    assert_eq!(plan.tokenizer, TokenizerPlan::Bpe { vocab_size: 512, train_bytes: 16 << 20 });
    assert_eq!(plan.model.vocab_size, 512);
}

#[test]
fn the_last_set_wins() {
    assert_eq!(with_sets(&["seed=5", "seed=6"]).seed, 6);
}

/// A path in the recipe belongs to the recipe's folder, one typed in the shell to the current folder.
#[test]
fn relative_paths_have_two_bases() {
    let text_path = |plan: &TrainPlan| match &plan.data.sources[..] {
        [Source::Text { path }] => path.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text_path(&with_sets(&[])), "/recipes/debug_text/alice_*.txt");
    assert_eq!(text_path(&with_sets(&["data.path=more/*.txt"])), "/here/more/*.txt");
    assert_eq!(text_path(&with_sets(&["data.path=/abs.txt"])), "/abs.txt");

    let runs = with_sets(&[]).output.runs_dir;
    assert_eq!(runs, Path::new("/here/runs"));
    assert_eq!(with_sets(&["output.runs_dir=out"]).output.runs_dir, Path::new("/here/out"));
    let text = format!("{}\n[output]\nruns_dir = \"out\"", shipped("debug_moe").unwrap());
    assert_eq!(plan_of(&text, &[]).output.runs_dir, Path::new("/recipes/out"));
    assert_eq!(with_sets(&[]).data.cache_dir, Path::new("/cache"));
    assert_eq!(with_sets(&["data.cache_dir=c"]).data.cache_dir, Path::new("/here/c"));
}

#[test]
fn a_recipe_path_is_relative_to_the_current_folder() {
    let text = shipped("debug_moe").unwrap();
    let plan = parse(text, Path::new("sub/mine.toml"), &[], &defaults()).unwrap();
    let expected = Source::Text { path: "/here/sub/debug_text/alice_*.txt".to_string() };
    assert_eq!(plan.data.sources, [expected]);
    assert_eq!(plan.name, "mine");
}

/// Only what was written is a pattern.
#[test]
fn folders_with_glob_characters_are_taken_literally() {
    let text = shipped("debug_moe").unwrap();
    let plan = parse(text, Path::new("/my [old] runs/mine.toml"), &[], &defaults()).unwrap();
    let expected = "/my [[]old] runs/debug_text/alice_*.txt".to_string();
    assert_eq!(plan.data.sources, [Source::Text { path: expected }]);
}

#[test]
fn a_preset_gives_the_model_and_nothing_else() {
    let text = "
        [model]
        preset = \"deepseek_v3\"
        layers = 4
        mtp_layers = 0
        [tokenizer]
        kind = \"byte\"
        [batch]
        sequence_length = 128
        micro_batch = 1
        global_batch = 8
        [schedule]
        total_tokens = 1e6
        peak_lr = 1e-4";
    let plan = plan_of(text, &["model.experts=64"]);
    let published = shipped_plan("deepseek_v3");
    assert_eq!((plan.model.layers, plan.model.mtp_layers), (4, 0));
    assert_eq!(plan.model.attention, published.model.attention);
    assert_eq!(plan.model.moe.unwrap().experts, 64);
    assert_eq!(plan.model.max_positions, 128);
    assert_eq!(plan.parallel.data, 1);
    assert_eq!(plan.device, Device::Cpu);
}

#[test]
fn a_preset_may_have_a_preset() {
    let plan = with_sets(&["model.preset=debug_moe_noqlora", "model.hidden=32"]);
    assert_eq!(plan.model.hidden, 32);
    let text = shipped("debug_moe_noqlora").unwrap();
    let twice =
        text.replace("preset = \"debug_moe\"\nq_rank = 0", "preset = \"debug_moe_noqlora\"");
    assert_eq!(plan_of(&twice, &[]).model, shipped_plan("debug_moe_noqlora").model);
}

#[test]
fn gates_follow_from_architecture_and_groups() {
    let gate =
        |name: &str, sets: &[&str]| plan_of(shipped(name).unwrap(), sets).model.moe.unwrap().gate;
    assert_eq!(gate("deepseek_v3", &[]), Gate::SigmoidBias);
    assert_eq!(gate("deepseek_v2", &[]), Gate::SoftmaxGroupLimited);
    assert_eq!(gate("deepseek_v2_lite", &[]), Gate::SoftmaxGreedy);
    assert_eq!(gate("deepseek_moe_16b", &[]), Gate::SoftmaxGreedy);
    assert_eq!(gate("deepseek_v2_lite", &["model.gate=sigmoid_bias"]), Gate::SigmoidBias);
}

#[test]
fn attention_follows_from_architecture() {
    let attention = |name: &str| shipped_plan(name).model.attention;
    let llama = Attention::Gqa { heads: 64, kv_heads: 8, head_dim: 128 };
    assert_eq!(attention("deepseek_llm_67b"), llama);
    assert!(!shipped_plan("deepseek_llm_67b").model.rope.interleaved);
    assert!(shipped_plan("deepseek_v3").model.rope.interleaved);
    assert!(matches!(attention("debug_moe_noqlora"), Attention::Mla { q_rank: None, .. }));
}

/// `canonical` is the default where it is possible; where not, the report says so.
#[test]
fn reduction_follows_from_the_layout() {
    let sets = ["parallel.data=3", "batch.micro_batch=1", "batch.global_batch=12"];
    let plan = with_sets(&sets);
    assert_eq!(plan.batch.reduction, Reduction::Fast);
    let notes = lampyris_plan::report::Report::new(&plan).notes;
    assert_eq!(notes, ["reduction is fast, because 3 data-parallel ranks do not divide 4 leaves"]);
    assert_eq!(with_sets(&["parallel.data=2"]).batch.reduction, Reduction::Canonical);
}

#[test]
fn a_plan_survives_its_own_toml() {
    for (name, _) in lampyris_recipes::SHIPPED {
        let plan = shipped_plan(name);
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(toml::from_str::<TrainPlan>(&text).unwrap(), plan, "{name}\n{text}");
    }
}

#[test]
fn files_are_read_from_disk() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plan = load(&folder.join("debug_llama.toml"), &[], &defaults()).unwrap();
    let Source::Text { path } = &plan.data.sources[0] else { panic!("{:?}", plan.data.sources) };
    let text = folder.join("debug_text");
    assert_eq!(Path::new(path).parent(), Some(text.as_path()));
    assert_eq!(std::fs::read_dir(text).unwrap().count(), 12, "the chapters of the debug text");
}
