//! Reads typed values out of a JSON object; every error names the file, the key and the value.
//!
//! A key that is `null` counts as absent, and an integer-valued number is accepted wherever a number is meant
//! (`"factor": 40`, `4096.0`): Hugging Face writes both.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The largest size: beyond those of all models, and the product of two fits into 64 bits.
const MAX_COUNT: f64 = (1u32 << 31) as f64;

/// A JSON object of a file.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
    /// Put before keys in messages, e.g. `rope_scaling.`.
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Keys<'a> {
        Keys { file, map, prefix: "" }
    }

    /// The object under `key`, if there is one; `prefix` must be `key` and a dot.
    pub(super) fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Keys<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { file: self.file, map, prefix })),
            Some(_) => Err(self.refuse(key, "it must be an object")),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a String> {
        self.map.keys()
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, "it must be a number")),
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(number) = self.float(key)? else { return Ok(None) };
        if number.fract() != 0.0 || number < 0.0 {
            return Err(self.refuse(key, "it must be a whole number, not negative"));
        }
        if number > MAX_COUNT {
            return Err(self.refuse(key, &format!("it is larger than {MAX_COUNT}")));
        }
        Ok(Some(number as usize))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.refuse(key, "it must be true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(key, "it must be a string")),
        }
    }

    /// A size that must be there and not be zero.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let size = self.required(key, "a positive whole number", self.count(key)?)?;
        if size == 0 { Err(self.refuse(key, "it must be positive")) } else { Ok(size) }
    }

    pub(super) fn required<T>(
        &self,
        key: &str,
        wanted: &'static str,
        value: Option<T>,
    ) -> Result<T> {
        value.ok_or_else(|| Error::MissingKey {
            file: self.file.to_path_buf(),
            key: format!("{}{key}", self.prefix),
            wanted,
        })
    }

    /// Refuses a flag that is not `wanted`; an absent one is fine.
    pub(super) fn only_flag(&self, key: &str, wanted: bool, reason: &str) -> Result<()> {
        if self.flag(key, wanted)? == wanted { Ok(()) } else { Err(self.refuse(key, reason)) }
    }

    /// Refuses a string that is not `wanted`; an absent one is fine.
    pub(super) fn only_text(&self, key: &str, wanted: &str) -> Result<()> {
        match self.text(key)? {
            Some(found) if found != wanted => {
                Err(self.refuse(key, &format!("only \"{wanted}\" is")))
            }
            _ => Ok(()),
        }
    }

    /// The error that names `key` and its value.
    pub(super) fn refuse(&self, key: &str, reason: &str) -> Error {
        Error::Unsupported {
            file: self.file.to_path_buf(),
            key: format!("{}{key}", self.prefix),
            value: self.map.get(key).map_or_else(|| "absent".to_string(), Value::to_string),
            reason: reason.to_string(),
        }
    }
}
