//! What a person sees when a recipe is wrong: every problem with its place, the line as written and what to do.

use crate::tree::{Node, Place, Sources, Value, shortened};
use lampyris_plan::visible;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use thiserror::Error;

/// Why a recipe gives no plan.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error(
        "cannot read the recipe {}: {source}; give the path of a recipe, e.g. recipes/quickstart.toml",
        path.display()
    )]
    Read {
        /// Path as given.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A folder's name cannot be written into a plan.
    #[error("the folder {} is not UTF-8, which a plan has to be: rename it", path.display())]
    NotUtf8 {
        /// The folder.
        path: PathBuf,
    },
    /// The text is wrong.
    #[error("{}", Listing(problems, *more))]
    Invalid {
        /// What was found, in the order of the recipe's sections.
        problems: Vec<Problem>,
        /// How many more were found.
        more: usize,
    },
}

/// One thing that is wrong in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, with the key.
    pub message: String,
    /// `file:line`, `preset name:line` or `--set key=value`.
    pub place: String,
    /// The line as written.
    pub line: Option<(usize, String)>,
    /// What to do.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = self.line.as_ref().map_or(0, |(number, _)| number.to_string().len());
        // Keys, values and names of files are the recipe's: none of them makes a line of its own here.
        writeln!(f, "error: {}", visible::line(&self.message))?;
        writeln!(f, "{:gutter$}--> {}", "", visible::line(&self.place))?;
        if let Some((number, text)) = &self.line {
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{number} | {}", visible::prose(text.trim_end()))?;
            writeln!(f, "{:gutter$} |", "")?;
        }
        write!(f, "{:gutter$} = help: {}", "", visible::line(&self.help))
    }
}

/// At most this many problems are shown: nobody reads further, and a file that is no recipe has one in every line.
const MAX_SHOWN: usize = 20;

struct Listing<'a>(&'a [Problem], usize);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let gap = if i == 0 { "" } else { "\n\n" };
            write!(f, "{gap}{problem}")?;
        }
        match (self.0.len(), self.1) {
            (0 | 1, 0) => Ok(()),
            (shown, 0) => write!(f, "\n\n{shown} errors in the recipe"),
            (shown, more) => write!(f, "\n\n{shown} errors in the recipe, and {more} more"),
        }
    }
}

/// Collects problems while a recipe is read.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    /// At most `MAX_SHOWN`.
    found: Vec<Found>,
    /// How many more there were.
    more: usize,
    places: BTreeMap<String, Place>,
    /// Keys that an unknown key was probably meant to be: not reported as missing again.
    meant: BTreeSet<String>,
}

#[derive(Debug)]
struct Found {
    place: Place,
    message: String,
    help: String,
}

impl Problems {
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether further problems are only counted: nobody needs to word them.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() == MAX_SHOWN
    }

    /// A problem that is not worded, because no further one is shown.
    pub(crate) fn count_one(&mut self) {
        self.more += 1;
    }

    pub(crate) fn at(&mut self, place: Place, message: String, help: impl Into<String>) {
        if self.is_full() {
            return self.count_one();
        }
        self.found.push(Found { place, message, help: help.into() });
    }

    /// A problem with the key at `path`, shown where it is written, else where its section is.
    pub(crate) fn at_key(&mut self, path: &str, message: String, help: impl Into<String>) {
        let mut help = help.into();
        let place = match self.places.get(path) {
            Some(&place) => place,
            None => {
                help += &format!(" ({path} is not in the recipe: this is its default)");
                let section = path.rsplit_once('.').map_or("", |(section, _)| section);
                self.places.get(section).copied().unwrap_or(Place::Default)
            }
        };
        self.at(place, message, help);
    }

    /// An unknown key, which was probably meant to be `meant`.
    pub(crate) fn unknown(&mut self, place: Place, path: &str, meant: Option<&str>, help: String) {
        self.meant.extend(meant.map(str::to_string));
        self.at(place, format!("unknown key `{path}`"), help);
    }

    /// A required key that is not there.
    pub(crate) fn missing(&mut self, section: Place, path: &str, expects: &str) {
        let heading = path.split_once('.').map_or(path, |(heading, _)| heading);
        if !self.meant.contains(path) && !self.meant.contains(heading) {
            let help = format!("it has no default: give {expects}");
            self.at(section, format!("{path} is missing"), help);
        }
    }

    /// A problem with a section, shown at its heading.
    pub(crate) fn at_section(&mut self, path: &str, message: String, help: impl Into<String>) {
        let place = self.places.get(path).copied().unwrap_or(Place::Default);
        self.at(place, message, help);
    }

    /// Keeps the place of every key of `tree`.
    pub(crate) fn remember_places(&mut self, tree: &Node) {
        self.remember("", tree);
    }

    fn remember(&mut self, path: &str, node: &Node) {
        if !path.is_empty() {
            self.places.insert(path.to_string(), node.place);
        }
        match &node.value {
            Value::Table(table) => {
                for (key, node) in table {
                    self.remember(&join(path, key), node);
                }
            }
            Value::Array(items) => {
                for (i, node) in items.iter().enumerate() {
                    self.remember(&format!("{path}[{i}]"), node);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn into_error(self, sources: &Sources) -> RecipeError {
        let show = |found: Found| {
            let (place, line) = sources.show(found.place);
            let line = line.map(|(number, text)| (number, shortened(text)));
            Problem { message: found.message, place, line, help: found.help }
        };
        let problems = self.found.into_iter().map(show).collect();
        RecipeError::Invalid { problems, more: self.more }
    }
}

/// `section.key`, or `key` at the top.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// The name among `known` that looks most like `name`, if any looks like it.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |other: &&str| strsim::damerau_levenshtein(name, other);
    let best = known.iter().min_by_key(|other| distance(other))?;
    // A third of the letters may differ, and at least two.
    (distance(best) <= (name.chars().count() / 3).max(2)).then_some(*best)
}

/// "did you mean ...?", or the whole list.
pub(crate) fn nearest_help(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(best) => format!("did you mean `{best}`?"),
        None => format!("known: {}", known.join(", ")),
    }
}
