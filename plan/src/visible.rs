//! Text of others made safe to show: what a terminal would obey instead of showing (escape sequences, a line break in a
//! name, characters without width, overrides of the writing direction) is written as `\n`, `\t` or `\u{1b}`. Everything
//! that is printed passes through here, at the last place before the terminal. Files stay as they are.

use std::borrow::Cow;

/// Whether a terminal or an editor does something with `c` other than show it: C0 and C1 controls, DEL, characters
/// without width, line and paragraph separators, marks and overrides of the writing direction, tags.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// For one line or one cell of a table: every hidden character escaped, line breaks included.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, &[])
}

/// For several lines that are laid out here: line breaks stay. Values of others in it have passed through [`line()`].
pub fn block(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n'])
}

/// For prose, such as the text of a model or a log: line breaks and tabs stay.
pub fn prose(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n', '\t'])
}

/// The same JSON with every hidden character as `\u001b`. In JSON they stand inside strings only, so its value stays.
pub fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| is_hidden(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && c != '\n' {
            let mut units = [0; 2];
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// One word of the shell, whatever is in it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The same for a command that a person is told to type: quotes only where they are needed.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_./-+:@%,".contains(c);
    let bare = !text.is_empty() && !text.starts_with('-') && text.chars().all(plain);
    if bare { text.into() } else { quoted(text) }
}

fn escaped<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let escape = |c: char| is_hidden(c) && !kept.contains(&c);
    if !text.contains(escape) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !escape(c) {
            out.push(c);
        } else if c.is_ascii() {
            out.extend(c.escape_default());
        } else {
            out.extend(c.escape_unicode());
        }
    }
    Cow::Owned(out)
}

/// Bytes that come in pieces, such as a log: the same as [`prose`], with a character that is cut between two pieces kept
/// until its rest has come.
#[derive(Debug, Default)]
pub struct Stream {
    cut: Vec<u8>,
}

impl Stream {
    /// What can be shown after `piece`. Bytes that are not UTF-8 become U+FFFD.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.cut.extend_from_slice(piece);
        let whole = self.cut.len() - cut_bytes(&self.cut);
        let rest = self.cut.split_off(whole);
        let bytes = std::mem::replace(&mut self.cut, rest);
        prose(&String::from_utf8_lossy(&bytes)).into_owned()
    }

    /// What was cut at the end of everything.
    pub fn finish(&mut self) -> String {
        let bytes = std::mem::take(&mut self.cut);
        prose(&String::from_utf8_lossy(&bytes)).into_owned()
    }
}

/// Bytes at the end that may be the beginning of a character.
fn cut_bytes(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(4)..];
    match tail.utf8_chunks().last() {
        Some(chunk) if is_beginning(chunk.invalid()) => chunk.invalid().len(),
        _ => 0,
    }
}

/// Whether bytes can be made a character by more of them.
fn is_beginning(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_out() {
        let nasty =
            "a\u{1b}]0;x\u{7}\nb\tc\u{9b}31m\u{202e}d\u{200b}\u{2028}\u{e0041}\u{7f}é界🦀e\u{301}";
        let shown = "a\\u{1b}]0;x\\u{7}\\nb\\tc\\u{9b}31m\\u{202e}d\\u{200b}\\u{2028}\\u{e0041}\\u{7f}é界🦀e\u{301}";
        assert_eq!(line(nasty), shown);
        assert_eq!(block(nasty), shown.replace("\\n", "\n"));
        assert_eq!(prose(nasty), shown.replace("\\n", "\n").replace("\\t", "\t"));
        assert!(matches!(line("plain \\n text"), Cow::Borrowed(_)));
    }

    #[test]
    fn no_function_lets_a_hidden_character_through() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = format!("x{c}y");
            assert!(!line(&text).contains(is_hidden), "{c:?}");
            assert_eq!(line(&text) == text, !is_hidden(c), "{c:?}");
            assert!(!block(&text).contains(|c| is_hidden(c) && c != '\n'), "{c:?}");
            assert!(!json(&text).contains(|c| is_hidden(c) && c != '\n'), "{c:?}");
        }
    }

    #[test]
    fn a_word_of_the_shell_has_quotes_only_where_it_needs_them() {
        assert_eq!(shell_word("/runs/first-1"), "/runs/first-1");
        assert_eq!(shell_word("-x"), "'-x'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
        assert_eq!(shell_word("$(x)"), "'$(x)'");
    }

    #[test]
    fn pieces_give_the_text_of_the_whole() {
        let whole = "é界\u{1b}🦀\n\u{9b}".as_bytes();
        let bytes = [whole, &[0xff, 0x9b, b'a', 0xf0, 0x9f]].concat();
        let expected = prose(&String::from_utf8_lossy(&bytes)).into_owned();
        for size in 1..bytes.len() {
            let mut stream = Stream::default();
            let mut shown: String = bytes.chunks(size).map(|piece| stream.push(piece)).collect();
            shown += &stream.finish();
            assert_eq!(shown, expected, "pieces of {size}");
        }
        assert_eq!(Stream::default().push("done\n".as_bytes()), "done\n");
    }

    #[test]
    fn json_keeps_its_value() {
        assert_eq!(json("{\"a\": \"\u{9b}\u{e0041}\"}\n"), "{\"a\": \"\\u009b\\udb40\\udc41\"}\n");
    }
}
