//! One line of a JSONL file: a JSON object of which a single string field is wanted.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// Why a line gives no document.
pub(super) enum LineError {
    /// Not a JSON object.
    Json(String),
    /// The field is missing or no string.
    NoField,
}

/// The string in `field` of the object in `line`; other fields are parsed over, not kept.
pub(super) fn text_field(line: &str, field: &str) -> Result<String, LineError> {
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
        assert_eq!(text_field(line, "text").ok().as_deref(), Some("a\nbéé"));
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
