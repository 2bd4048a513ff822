//! One line of a JSONL file: a JSON object of which a single string field is wanted.
//!
//! JSON can spell half of a UTF-16 surrogate pair (`"\ud83d"`), which is no character. Programs that cut strings between
//! UTF-16 units write such lines, so they are read with U+FFFD in that place, and reported.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// Why a line gives no document.
pub(super) enum LineError {
    /// Not a JSON object.
    Json(String),
    /// The field is missing or no string.
    NoField,
}

/// The string in `field` of the object in `line`, and whether half a surrogate pair was replaced in the line; other fields
/// are parsed over, not kept.
pub(super) fn text_field(line: &str, field: &str) -> Result<(String, bool), LineError> {
    match parse(line, field) {
        Err(LineError::Json(message)) => match without_half_pairs(line) {
            Some(whole) => parse(&whole, field).map(|text| (text, true)),
            None => Err(LineError::Json(message)),
        },
        parsed => parsed.map(|text| (text, false)),
    }
}

fn parse(line: &str, field: &str) -> Result<String, LineError> {
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let value = Field(field)
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|e| LineError::Json(e.to_string()))?;
    match value {
        Some(serde_json::Value::String(text)) => Ok(text),
        _ => Err(LineError::NoField),
    }
}

/// The line with `\ufffd` for every escape that is half of a surrogate pair without its other half; none if there is none.
fn without_half_pairs(line: &str) -> Option<String> {
    let mut whole = String::new();
    let mut copied = 0;
    let mut at = 0;
    // Outside strings JSON has no backslash, so every one begins an escape.
    while let Some(found) = line[at..].find('\\') {
        let start = at + found;
        let half = unicode_escape(line, start).filter(|unit| (0xD800..0xE000).contains(unit));
        let Some(unit) = half else {
            at = line.ceil_char_boundary(start + 2);
            continue;
        };
        let low = unicode_escape(line, start + 6).filter(|unit| (0xDC00..0xE000).contains(unit));
        if unit < 0xDC00 && low.is_some() {
            at = start + 12;
            continue;
        }
        whole.push_str(&line[copied..start]);
        whole.push_str("\\ufffd");
        at = start + 6;
        copied = at;
    }
    if copied == 0 {
        return None;
    }
    whole.push_str(&line[copied..]);
    Some(whole)
}

/// The UTF-16 unit of an escape (`\u` and four digits) that begins at byte `at`.
fn unicode_escape(line: &str, at: usize) -> Option<u32> {
    let digits = line.get(at..at + 6)?.strip_prefix("\\u")?;
    // from_str_radix would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
}

struct Field<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<serde_json::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<serde_json::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_field_is_taken() {
        let line = r#"{"id": 3, "text": "a\nbé\u00e9", "meta": {"text": "no"}}"#;
        assert_eq!(text_field(line, "text").ok(), Some(("a\nbéé".to_owned(), false)));
    }

    #[test]
    fn half_a_surrogate_pair_is_read_as_the_replacement_character() {
        for (line, text, mended) in [
            (r#"{"text": "a\ud83d"}"#, "a\u{fffd}", true),
            (r#"{"text": "\udc00\ud83db"}"#, "\u{fffd}\u{fffd}b", true),
            (r#"{"text": "\ud83d\ud83d\ude00é"}"#, "\u{fffd}😀é", true),
            (r#"{"text": "\\ud83d \ud83d\n"}"#, "\\ud83d \u{fffd}\n", true),
            (r#"{"\ud83d": 1, "text": "a"}"#, "a", true),
            (r#"{"other": "\ud83d", "text": "a"}"#, "a", false),
            (r#"{"text": "\ud83d\ude00"}"#, "😀", false),
        ] {
            let read = text_field(line, "text").ok();
            assert_eq!(read, Some((text.to_owned(), mended)), "{line}");
        }
        for line in [r#"{"text": "\ud83d"#, r#"{"text": "\ud83"}"#, r#"{"text": "\ud83d\é"}"#] {
            assert!(matches!(text_field(line, "text"), Err(LineError::Json(_))), "{line}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [r#"{"id": 3}"#, r#"{"text": 3}"#, r#"{"text": null}"#] {
            assert!(matches!(text_field(line, "text"), Err(LineError::NoField)), "{line}");
        }
        for line in ["", "[1]", "\"text\"", r#"{"text": "a"} x"#, r#"{"text": "a"#] {
            assert!(matches!(text_field(line, "text"), Err(LineError::Json(_))), "{line}");
        }
    }
}
