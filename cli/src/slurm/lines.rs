//! The one place where a value becomes part of a batch script. A script is lines of a template and values; a value is
//! quoted for what reads it, the shell or sbatch, and what no quotes can hold is refused: a character that cannot be seen
//! would be a line of its own or deceive whoever reads the script.

use crate::error::CliError;
use lampyris_plan::visible::{self, quoted};
use std::path::Path;

/// A batch script that grows by lines.
#[derive(Debug, Default)]
pub(super) struct Script {
    text: String,
}

impl Script {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Lines of ours, written here and not made from values.
    pub(super) fn template(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// A line of an sbatch option without a value.
    pub(super) fn flag(&mut self, name: &str) {
        self.text.push_str(&format!("#SBATCH --{name}\n"));
    }

    /// A line of an sbatch option with its value.
    pub(super) fn option(&mut self, name: &str, value: &str) -> Result<(), CliError> {
        self.words(name, &[format!("--{name}={value}")])
    }

    /// A line of sbatch's words, each quoted; `key` names them in an error.
    pub(super) fn words(&mut self, key: &str, words: &[String]) -> Result<(), CliError> {
        for word in words {
            refuse_hidden(key, word)?;
        }
        let words: Vec<String> = words.iter().map(|word| sbatch_word(word)).collect();
        self.text.push_str(&format!("#SBATCH {}\n", words.join(" ")));
        Ok(())
    }

    /// A line that gives a shell variable its value.
    pub(super) fn variable(&mut self, name: &str, value: &str) -> Result<(), CliError> {
        refuse_hidden(name, value)?;
        self.text.push_str(&format!("{name}={}\n", quoted(value)));
        Ok(())
    }

    /// A line that puts values into a shell array.
    pub(super) fn array(&mut self, name: &str, values: &[String]) -> Result<(), CliError> {
        for value in values {
            refuse_hidden(name, value)?;
        }
        let words: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        self.text.push_str(&format!("{name}=({})\n", words.join(" ")));
        Ok(())
    }
}

/// A path as the text of a script.
pub(super) fn text_of(key: &'static str, path: &Path) -> Result<String, CliError> {
    let unusable = || CliError::SlurmSetting {
        key: key.into(),
        value: path.to_string_lossy().into_owned(),
        what: "a path in UTF-8".into(),
    };
    path.to_str().map(str::to_string).ok_or_else(unusable)
}

fn refuse_hidden(key: &str, value: &str) -> Result<(), CliError> {
    if !value.contains(visible::is_hidden) {
        return Ok(());
    }
    Err(CliError::SlurmSetting {
        key: key.into(),
        value: value.into(),
        what: "text without control characters and others that cannot be seen".into(),
    })
}

/// One word of an #SBATCH line, which sbatch splits at blanks outside quotes and ends at `#`.
fn sbatch_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    // Only the value between quotes, as people write it.
    let (name, value) = match text.split_once('=') {
        Some((name, value)) if name.chars().all(plain) => (format!("{name}="), value),
        _ => (String::new(), text),
    };
    format!("{name}\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The words of an #SBATCH line as sbatch reads it (`_get_argument` in its opt.c): blanks part words, quotes of both kinds
/// hold them together, a backslash takes the next character as it is, `#` ends the line.
pub(super) fn sbatch_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\\', _) => word.get_or_insert_default().extend(characters.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) => break,
            (c, None) if c.is_ascii_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_sbatch_are_read_as_they_were_meant() {
        for text in [
            "",
            "a b",
            "it's",
            "\"",
            "\\",
            "a\\\" 'b",
            "#x",
            "--x=#1 \"2\"",
            "%j $(id) `id`",
            "é 界",
        ] {
            let line = sbatch_word(text);
            assert_eq!(sbatch_words(&line), [text], "{line}");
        }
        assert_eq!(sbatch_words("-C ib  --x='a b' # more"), ["-C", "ib", "--x=a b"]);
    }

    #[test]
    fn plain_words_stay_as_they_are() {
        assert_eq!(sbatch_word("--output=/a b/c"), "--output=\"/a b/c\"");
    }

    #[test]
    fn what_cannot_be_seen_enters_no_line() {
        let mut script = Script::default();
        for value in ["a\nb", "\u{1b}[0m", "\r", "\0", "\u{202e}", "\u{2028}"] {
            assert!(script.option("output", value).is_err(), "{value:?}");
            assert!(script.variable("run", value).is_err(), "{value:?}");
            assert!(script.array("worker", &[value.into()]).is_err(), "{value:?}");
        }
        let error = script.variable("run", "a\nb").unwrap_err().to_string();
        assert!(error.starts_with("run = \"a\\nb\" cannot stand in a batch script"), "{error}");
        assert_eq!(script.into_text(), "");
    }
}
