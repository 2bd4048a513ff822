//! The text of a recipe as a tree of values that remember where they were written: a line of the recipe, a line of a
//! preset, or a `--set`.

use crate::error::{Problems, nearest_help};
use crate::shipped::SHIPPED;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line (1-based) of the recipe.
    Recipe(usize),
    /// A line (1-based) of a shipped recipe used as a preset; the first number is its index in `SHIPPED`.
    Preset(usize, usize),
    /// The n-th `--set` (0-based).
    Set(usize),
    /// A default of this crate.
    Default,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

pub(crate) type Table = BTreeMap<String, Node>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    String(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
}

impl Value {
    /// The value in the words of an error message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::String(text) => format!("the string {text:?}"),
            Value::Integer(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number:?}"),
            Value::Bool(value) => format!("{value}"),
            Value::Datetime => "a date".to_string(),
            Value::Array(_) => "a list".to_string(),
            Value::Table(_) => "a section".to_string(),
        }
    }
}

/// Longer lines are cut in messages.
const MAX_SHOWN_CHARACTERS: usize = 400;

/// The texts that places point into.
#[derive(Debug)]
pub(crate) struct Sources {
    origin: PathBuf,
    text: String,
    sets: Vec<String>,
}

impl Sources {
    pub(crate) fn new(origin: &Path, text: &str, sets: &[String]) -> Sources {
        let text = text.to_string();
        Sources { origin: origin.to_path_buf(), text, sets: sets.to_vec() }
    }

    pub(crate) fn origin(&self) -> &Path {
        &self.origin
    }

    /// `file:line` of a place, and its text.
    pub(crate) fn show(&self, place: Place) -> (String, Option<(usize, &str)>) {
        match place {
            Place::Recipe(line) => {
                let name = format!("{}:{line}", self.origin.display());
                (name, self.text.lines().nth(line - 1).map(|text| (line, text)))
            }
            Place::Preset(index, line) => {
                let (name, text) = SHIPPED[index];
                let shown = format!("preset {name}:{line}");
                (shown, text.lines().nth(line - 1).map(|text| (line, text)))
            }
            Place::Set(index) => (format!("--set {}", shortened(&self.sets[index])), None),
            Place::Default => (self.origin.display().to_string(), None),
        }
    }
}

/// The beginning of a text that may be long.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_string(),
    }
}

/// The tree of the recipe: preset below, the file over it, `--set` values on top.
pub(crate) fn merge(sources: &Sources, problems: &mut Problems) -> Option<Node> {
    let mut tree = parse_text(&sources.text, &Place::Recipe, problems)?;
    for (index, set) in sources.sets.iter().enumerate() {
        apply_set(&mut tree, set, Place::Set(index), problems);
    }
    if let Some(model) = tree.get_mut("model") {
        lay_over_preset(model, problems);
    }
    Some(Node { value: Value::Table(tree), place: Place::Recipe(1) })
}

fn parse_text(
    text: &str,
    place_of_line: &dyn Fn(usize) -> Place,
    problems: &mut Problems,
) -> Option<Table> {
    let line_ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line_at = |byte: usize| place_of_line(line_ends.partition_point(|&end| end < byte) + 1);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = line_at(error.span().map_or(0, |span| span.start.min(text.len())));
        let help = "see https://toml.io for the syntax: key = value lines under [section] headings";
        problems.at(place, format!("not TOML: {}", error.message()), help);
    }
    errors.is_empty().then(|| from_table(table.into_inner(), &line_at))
}

fn from_table(table: DeTable<'_>, line_at: &dyn Fn(usize) -> Place) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let place = line_at(key.span().start);
            let node = Node { value: from_value(value.into_inner(), line_at), place };
            (key.into_inner().into_owned(), node)
        })
        .collect()
}

fn from_value(value: DeValue<'_>, line_at: &dyn Fn(usize) -> Place) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(
            // TOML allows 64 bits; longer text is out of every range, which the reader says.
            i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX),
        ),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::Array(
            items
                .into_iter()
                .map(|item| {
                    let place = line_at(item.span().start);
                    Node { value: from_value(item.into_inner(), line_at), place }
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(from_table(table, line_at)),
    }
}

/// A value written as TOML; `None` if it is not.
pub(crate) fn parse_value(text: &str, place: Place) -> Option<Node> {
    let value = DeValue::parse(text).ok()?;
    Some(Node { value: from_value(value.into_inner(), &|_| place), place })
}

/// No key of a recipe has more parts than this.
const MAX_PARTS: usize = 16;

/// Lays `a.b=value` over the tree. A value that is not TOML is taken as a string.
fn apply_set(tree: &mut Table, set: &str, place: Place, problems: &mut Problems) {
    let form = "write --set key=value, e.g. --set batch.micro_batch=4";
    let Some((path, text)) = set.split_once('=') else {
        problems.at(place, format!("`{set}` has no `=`"), form);
        return;
    };
    let mut names: Vec<&str> = path.split('.').take(MAX_PARTS + 1).map(str::trim).collect();
    if names.len() > MAX_PARTS {
        let message = format!("a key of --set has more than {MAX_PARTS} parts");
        problems.at(place, message, form);
        return;
    }
    if names.iter().any(|name| name.is_empty()) {
        problems.at(place, format!("`{path}` is not a key"), form);
        return;
    }
    let last = names.pop().expect("split yields at least one part");
    let mut table = tree;
    for name in names {
        let empty = || Node { value: Value::Table(Table::new()), place };
        let node = table.entry(name.to_string()).or_insert_with(empty);
        match &mut node.value {
            Value::Table(inner) => table = inner,
            other => {
                let message = format!("`{name}` in `{path}` is {}", other.describe());
                problems.at(place, message, "set the whole value instead of a part of it");
                return;
            }
        }
    }
    let node = parse_value(text.trim(), place)
        .unwrap_or_else(|| Node { value: Value::String(text.trim().to_string()), place });
    table.insert(last.to_string(), node);
}

/// Puts the `[model]` section of the shipped recipe named by `model.preset` under the one given, and under that the
/// section of its own preset.
fn lay_over_preset(model: &mut Node, problems: &mut Problems) {
    let Value::Table(given) = &mut model.value else { return };
    let mut next = given.get("preset").cloned();
    // A chain longer than the list would go round in a circle.
    for _ in 0..SHIPPED.len() {
        let Some(Node { value: Value::String(name), place }) = next else { return };
        let Some(index) = SHIPPED.iter().position(|(shipped, _)| *shipped == name) else {
            let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
            let message = format!("model.preset = {name:?} is not a shipped recipe");
            problems.at(place, message, nearest_help(&name, &names));
            return;
        };
        let at_line = |line| Place::Preset(index, line);
        let Some(mut tree) = parse_text(SHIPPED[index].1, &at_line, problems) else { return };
        let Some(Node { value: Value::Table(mut below), .. }) = tree.remove("model") else {
            return;
        };
        next = below.remove("preset");
        for (key, node) in below {
            given.entry(key).or_insert(node);
        }
    }
}
