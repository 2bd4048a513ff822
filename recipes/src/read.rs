//! From tree to types. `section!` declares a section of a recipe once: field, key, type, default and documentation
//! come from the same line, and `docs/recipes.md` is checked against them.

use crate::error::{Problems, join, nearest};
use crate::tree::{Node, Place, Table, Value};
use lampyris_plan::visible;

/// A recipe key, for documentation.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Name inside its section.
    pub name: &'static str,
    /// What it expects, in words.
    pub expects: &'static str,
    /// Default as TOML, "required", or what decides it.
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Keys below it, if it is a section or a list of sections.
    pub keys: &'static [Key],
}

/// A type that a recipe value can have.
pub(crate) trait Read: Sized {
    /// What is expected, as in "expected ...".
    const EXPECTS: &'static str;
    /// Keys of a section.
    const KEYS: &'static [Key] = &[];

    /// The value at `path`, or a problem.
    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<Self>;
}

/// A path or glob as written; what a relative one is relative to depends on its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathText {
    pub(crate) text: String,
    pub(crate) place: Place,
}

impl Read for PathText {
    const EXPECTS: &'static str = "a path (string)";

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<PathText> {
        let Value::String(text) = &node.value else { return wrong_type(node, path, problems) };
        let (wrong, help) = match text.as_str() {
            "" => ("is empty", "give a path or leave the key out"),
            text if text.starts_with('~') => (
                "starts with `~`, which only a shell expands",
                "write the folder, or $HOME in a shell",
            ),
            text if text.contains(visible::is_hidden) => (
                "has a character that cannot be seen",
                "rename the file or folder: its path stands in scripts and messages",
            ),
            _ => return Some(PathText { text: text.clone(), place: node.place }),
        };
        problems.at(node.place, format!("{path} = {text:?} {wrong}"), help);
        None
    }
}

fn wrong_type<T: Read>(node: &Node, path: &str, problems: &mut Problems) -> Option<T> {
    let message = format!("{path}: expected {}, found {}", T::EXPECTS, node.value.describe());
    problems.at(node.place, message, type_help(T::EXPECTS, &node.value));
    None
}

fn type_help(expects: &str, value: &Value) -> String {
    let number = !expects.contains("string") && !expects.contains("list");
    match value {
        Value::String(text) if number && text.parse::<f64>().is_ok() => {
            format!("write {text} without quotes")
        }
        Value::Integer(number) if *number < 0 => "use 0 or more".to_string(),
        Value::Integer(_) if number => format!("use at most {}", i64::MAX),
        Value::Float(number) if !number.is_finite() => "give a finite number".to_string(),
        Value::Float(number) if expects == u64::EXPECTS && *number >= 0.0 => {
            format!("use {} or {}", number.floor(), number.ceil())
        }
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) if expects.contains("string") => {
            "put it between quotes".to_string()
        }
        _ => format!("give {expects}"),
    }
}

impl Read for u64 {
    const EXPECTS: &'static str = "a whole number";

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<u64> {
        let number = match node.value {
            Value::Integer(number) => u64::try_from(number).ok(),
            // 14.8e12 tokens: exact as long as it is whole and below 2^53.
            Value::Float(number) if number.fract() == 0.0 && (0.0..9.0e15).contains(&number) => {
                Some(number as u64)
            }
            _ => None,
        };
        // TOML has no numbers above i64::MAX; plan.toml must hold this one.
        number.filter(|&n| i64::try_from(n).is_ok()).or_else(|| wrong_type(node, path, problems))
    }
}

impl Read for usize {
    const EXPECTS: &'static str = u64::EXPECTS;

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<usize> {
        u64::read(node, path, problems).map(|number| number as usize)
    }
}

impl Read for f64 {
    const EXPECTS: &'static str = "a number";

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<f64> {
        match node.value {
            Value::Float(number) if number.is_finite() => Some(number),
            Value::Integer(number) => Some(number as f64),
            _ => wrong_type(node, path, problems),
        }
    }
}

impl Read for bool {
    const EXPECTS: &'static str = "true or false";

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<bool> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => wrong_type(node, path, problems),
        }
    }
}

impl Read for String {
    const EXPECTS: &'static str = "a string";

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<String> {
        match &node.value {
            Value::String(text) => Some(text.clone()),
            _ => wrong_type(node, path, problems),
        }
    }
}

impl<T: Read> Read for Vec<T> {
    const EXPECTS: &'static str = "a list";
    const KEYS: &'static [Key] = T::KEYS;

    fn read(node: &Node, path: &str, problems: &mut Problems) -> Option<Vec<T>> {
        let Value::Array(items) = &node.value else { return wrong_type(node, path, problems) };
        // Read every item before giving up, so that all problems are seen.
        let items: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(i, item)| T::read(item, &format!("{path}[{i}]"), problems))
            .collect();
        items.into_iter().collect()
    }
}

/// The table of a section, its unknown keys reported.
pub(crate) fn section_table<'a>(
    node: &'a Node,
    path: &str,
    keys: &[Key],
    problems: &mut Problems,
) -> Option<&'a Table> {
    let Value::Table(table) = &node.value else {
        let found = node.value.describe();
        let message = format!("{path}: expected a section, found {found}");
        problems.at(node.place, message, format!("write [{path}] and its keys below"));
        return None;
    };
    for (name, node) in table.iter().filter(|(name, _)| keys.iter().all(|key| key.name != *name)) {
        if problems.is_full() {
            problems.count_one();
            continue;
        }
        let (meant, help) = unknown_key_help(name, path, keys);
        problems.unknown(node.place, &join(path, name), meant.as_deref(), help);
    }
    Some(table)
}

/// The nearest key of the section, else the same or nearly the same key of another section, else all keys of the
/// section: (the one meant, help).
fn unknown_key_help(name: &str, path: &str, keys: &[Key]) -> (Option<String>, String) {
    let here: Vec<&str> = keys.iter().map(|key| key.name).collect();
    let mut elsewhere = Vec::new();
    all_paths("", crate::recipe_file::keys(), &mut elsewhere);
    let distance = |path: &String| {
        let leaf = path.rsplit_once('.').map_or(path.as_str(), |(_, leaf)| leaf);
        strsim::damerau_levenshtein(name, leaf)
    };
    let meant = match nearest(name, &here) {
        Some(best) => Some(join(path, best)),
        None => elsewhere.into_iter().min_by_key(distance).filter(|best| distance(best) <= 1),
    };
    let help = match &meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if path.is_empty() => format!("known keys and sections: {}", here.join(", ")),
        None => format!("known keys of {path}: {}", here.join(", ")),
    };
    (meant, help)
}

fn all_paths(path: &str, keys: &[Key], out: &mut Vec<String>) {
    for key in keys {
        let path = join(path, key.name);
        all_paths(&path, key.keys, out);
        out.push(path);
    }
}

/// The value of a default written as TOML in `section!`.
pub(crate) fn default_value<T: Read>(text: &str, path: &str, problems: &mut Problems) -> Option<T> {
    let node = crate::tree::parse_value(text, Place::Default).expect("a default is valid TOML");
    T::read(&node, path, problems)
}

/// Declares sections: `key: Type = required;`, `key: Type = default("TOML");` or `key: Type = absent("what decides it");`,
/// the last giving an `Option`.
macro_rules! section {
    ($(
        $(#[doc = $about:literal])+
        struct $section:ident {
            $( $(#[doc = $doc:literal])+ $name:ident: $type:ty = $how:ident $(($text:literal))?; )+
        }
    )+) => { $(
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct $section {
            $( $(#[doc = $doc])+ pub(crate) $name: section!(@type $how $type), )+
        }

        impl $crate::read::Read for $section {
            const EXPECTS: &'static str = "a section";
            const KEYS: &'static [$crate::read::Key] = &[$( $crate::read::Key {
                name: stringify!($name),
                expects: <$type as $crate::read::Read>::EXPECTS,
                default: section!(@text $how $(($text))?),
                doc: concat!($($doc),+),
                keys: <$type as $crate::read::Read>::KEYS,
            } ),+];

            fn read(
                node: &$crate::tree::Node,
                path: &str,
                problems: &mut $crate::error::Problems,
            ) -> Option<Self> {
                let table = $crate::read::section_table(node, path, Self::KEYS, problems)?;
                $( let $name: Option<$type> = {
                    let path = $crate::error::join(path, stringify!($name));
                    match table.get(stringify!($name)) {
                        Some(node) => $crate::read::Read::read(node, &path, problems),
                        None => section!(@absent $how $(($text))? $type, node, &path, problems),
                    }
                }; )+
                Some($section { $( $name: section!(@value $how $name) ),+ })
            }
        }
    )+ };
    (@type absent $type:ty) => { Option<$type> };
    (@type $how:ident $type:ty) => { $type };
    (@text required) => { "required" };
    (@text $how:ident ($text:literal)) => { $text };
    (@absent required $type:ty, $node:expr, $path:expr, $problems:expr) => {
        {
            $problems.missing($node.place, $path, <$type as $crate::read::Read>::EXPECTS);
            None
        }
    };
    (@absent default ($text:literal) $type:ty, $node:expr, $path:expr, $problems:expr) => {
        $crate::read::default_value($text, $path, $problems)
    };
    (@absent absent ($text:literal) $type:ty, $node:expr, $path:expr, $problems:expr) => { None };
    (@value absent $name:ident) => { $name };
    (@value $how:ident $name:ident) => { $name? };
}

/// Lets a recipe name the values of an enum.
macro_rules! choice {
    ($( $type:ty { $first:literal => $first_value:expr $(, $text:literal => $value:expr)* $(,)? } )+) => { $(
        impl $crate::read::Read for $type {
            const EXPECTS: &'static str = concat!("one of ", $first $(, ", ", $text)*);

            fn read(
                node: &$crate::tree::Node,
                path: &str,
                problems: &mut $crate::error::Problems,
            ) -> Option<Self> {
                let names = [$first $(, $text)*];
                match &node.value {
                    $crate::tree::Value::String(text) if text == $first => return Some($first_value),
                    $( $crate::tree::Value::String(text) if text == $text => return Some($value), )*
                    $crate::tree::Value::String(text) => {
                        let message = format!("{path} = {text:?} is not known");
                        let help = $crate::error::nearest_help(text, &names);
                        problems.at(node.place, message, help);
                    }
                    other => {
                        let message = format!("{path}: expected a string, found {}", other.describe());
                        problems.at(node.place, message, format!("give one of {}", names.join(", ")));
                    }
                }
                None
            }
        }
    )+ };
}

pub(crate) use {choice, section};
