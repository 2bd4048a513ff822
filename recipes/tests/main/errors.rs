//! The exact text of every kind of error, in `testdata/errors.txt`.

use crate::{defaults, golden};
use lampyris_recipes::{RecipeError, load, parse, shipped};
use std::fmt::Write as _;
use std::path::Path;

/// A wrong recipe: `debug_moe` with text replaced and `--set` values.
struct Case {
    about: &'static str,
    edits: &'static [(&'static str, &'static str)],
    sets: &'static [&'static str],
}

const fn edit(about: &'static str, edits: &'static [(&'static str, &'static str)]) -> Case {
    Case { about, edits, sets: &[] }
}

const fn set(about: &'static str, sets: &'static [&'static str]) -> Case {
    Case { about, edits: &[], sets }
}

const CASES: &[Case] = &[
    edit("a key with a typo", &[("micro_batch = 2", "mirco_batch = 2")]),
    edit("a key of another section", &[("hidden = 64", "hidden = 64\npeak_lr = 1e-3")]),
    edit("a key like nothing known", &[("leaves = 4", "leaves = 4\nzebra = 1")]),
    edit(
        "a key with an escape sequence and a line break",
        &[("leaves = 4", "leaves = 4\n\"a\\u001b[2J\\nerror: forged\" = 1")],
    ),
    edit("a path with a line break", &[("\"debug_text/alice_*.txt\"", "\"debug\\ntouch PWNED\"")]),
    edit("a section with a typo", &[("[schedule]", "[shedule]")]),
    edit("a key at the top", &[("seed = 1", "sed = 1")]),
    edit("a section missing", &[("[tokenizer]\nkind = \"byte\"", "")]),
    edit("a string for a number", &[("hidden = 64", "hidden = \"64\"")]),
    edit("a fraction for a whole number", &[("heads = 4", "heads = 4.5")]),
    edit("a negative number", &[("experts = 8", "experts = -8")]),
    edit("a number beyond 64 bits", &[("seed = 1", "seed = 18446744073709551615")]),
    edit("a number for a string", &[("kind = \"byte\"", "kind = 1")]),
    edit("not a number", &[("peak_lr = 3e-3", "peak_lr = nan")]),
    edit("a section for a number", &[("heads = 4", "heads = { query = 4 }")]),
    edit(
        "a value for a section",
        &[("[checkpoint]\nevery_s = 0", ""), ("seed = 1", "checkpoint = true")],
    ),
    edit("an unknown choice", &[("\"deepseek_v3\"", "\"deepseek_v4\"")]),
    edit("a choice like nothing known", &[("kind = \"byte\"", "kind = \"sentencepiece\"")]),
    edit("no TOML", &[("heads = 4", "heads 4")]),
    edit("a key twice", &[("heads = 4", "heads = 4\nheads = 8")]),
    edit("an unknown preset", &[("architecture =", "preset = \"deepseek-v3\"\narchitecture =")]),
    edit("a key without meaning here", &[("v_dim = 16", "v_dim = 16\nkv_heads = 2")]),
    edit("a key without meaning for the tokenizer", &[("\"byte\"", "\"byte\"\nvocab_size = 4096")]),
    edit(
        "a key without meaning for the decay",
        &[("\"cosine\"", "\"constant\"\nfinal_ratio = 0.1")],
    ),
    edit("a key the kind needs", &[("kv_rank = 32\n", "")]),
    edit("a key the tokenizer needs", &[("\"byte\"", "\"file\"")]),
    edit(
        "a source without path",
        &[("path = \"debug_text/alice_*.txt\"", "sources = [{ kind = \"jsonl\" }]")],
    ),
    edit("path and sources", &[("[data]", "[data]\nsources = []")]),
    edit("micro-batches that do not fill the leaves", &[("global_batch = 8", "global_batch = 12")]),
    edit("a default that clashes", &[("leaves = 4\n", "")]),
    edit("groups that do not divide the experts", &[("groups = 4", "groups = 3")]),
    edit(
        "more experts than the groups hold",
        &[("experts_per_token = 2", "experts_per_token = 5")],
    ),
    edit("warm-up longer than training", &[("warmup_tokens = 5_120", "warmup_tokens = 1e6")]),
    edit(
        "a broken list entry",
        &[(
            "decay = \"cosine\"",
            "decay = \"multi_step\"\nmilestones = [\n  { fraction = 0.9, ratio = 0.3 },\n  { fraction = 0.8, ratio = 0.1 },\n]",
        )],
    ),
    edit(
        "three at once",
        &[
            ("hidden = 64", "hiden = 64"),
            ("leaves = 4", "leaves = \"four\""),
            ("\"byte\"", "\"bytes\""),
        ],
    ),
    set("--set: a home folder", &["data.path=~/texts/*.txt"]),
    set("--set: a number for a string", &["name=7"]),
    set("--set: unknown key", &["batch.leafs=2"]),
    set("--set: wrong type", &["batch.leaves=two"]),
    set("--set: too many parts", &["a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q=1"]),
    set("--set: a clash", &["batch.global_batch=10"]),
    set("--set: no value", &["batch.leaves"]),
    set("--set: no key", &["=4"]),
    set("--set: below a value", &["batch.leaves.x=1"]),
    set("--set: preset key without meaning", &["model.preset=deepseek_llm_67b"]),
];

#[test]
fn messages_are_as_printed_before() {
    let base = shipped("debug_moe").unwrap();
    let mut out = String::new();
    for case in CASES {
        let mut text = base.to_string();
        for (from, to) in case.edits {
            assert!(text.contains(from), "{}: nothing to edit: {from}", case.about);
            text = text.replacen(from, to, 1);
        }
        let sets: Vec<String> = case.sets.iter().map(|set| set.to_string()).collect();
        let error = parse(&text, Path::new("run.toml"), &sets, &defaults())
            .expect_err(&format!("{} is accepted", case.about));
        writeln!(out, "== {}\n{error}\n", case.about).unwrap();
    }
    golden::compare("errors.txt", &out);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("no/such.toml"), &[], &defaults()).unwrap_err();
    assert!(matches!(error, RecipeError::Read { .. }));
    assert!(error.to_string().contains("no/such.toml"), "{error}");
}

/// A file that is no recipe has a problem in every line: the first are shown, all are counted, and it takes no time.
#[test]
fn many_problems_are_counted_and_few_are_shown() {
    let mut text = shipped("debug_moe").unwrap().to_string();
    (0..40_000).for_each(|i| writeln!(text, "[zebra_{i}]\nstripes = {i}").unwrap());
    let began = std::time::Instant::now();
    let error = parse(&text, Path::new("run.toml"), &[], &defaults()).unwrap_err();
    let RecipeError::Invalid { problems, more } = &error else { panic!("{error}") };
    assert_eq!((problems.len(), *more), (20, 39_980));
    assert!(error.to_string().ends_with("20 errors in the recipe, and 39980 more"));
    // Quadratic reading took 12 s.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn deep_keys_do_not_overflow_the_stack() {
    let deep = vec!["a"; 60_000].join(".");
    let set = format!("{deep}=1");
    let base = shipped("debug_moe").unwrap();
    let error = parse(base, Path::new("run.toml"), &[set], &defaults()).unwrap_err().to_string();
    assert!(error.contains("more than 16 parts") && error.len() < 1000, "{error}");
    let text = format!("{base}\n{deep} = 1\n");
    let error = parse(&text, Path::new("run.toml"), &[], &defaults()).unwrap_err().to_string();
    assert!(error.contains("run.toml:") && error.len() < 1000, "{error}");
}

#[test]
fn a_file_larger_than_any_recipe_is_not_read_whole() {
    let error = load(Path::new("/dev/zero"), &[], &defaults()).unwrap_err();
    assert!(error.to_string().contains("more than 16 MiB"), "{error}");
}
