//! What the first bytes of a file say about its form: byte-order marks, and forms that hold text but are not text.

use crate::error::Error;
use std::path::Path;

/// The byte-order mark in UTF-8: no part of the text.
const MARK: &[u8] = b"\xEF\xBB\xBF";

/// A form of files that is not read.
struct Form {
    /// First bytes that no text in UTF-8 begins with: there is a control character or a byte that UTF-8 lacks among them.
    begins: &'static [u8],
    /// Its name, as in "the file is ...".
    name: &'static str,
    /// What makes text of FILE.
    advice: &'static str,
}

const fn form(begins: &'static [u8], name: &'static str, advice: &'static str) -> Form {
    Form { begins, name, advice }
}

const TO_JSONL: &str = "write its rows as JSON lines (python3 -c 'import pandas; pandas.read_parquet(\"FILE\").to_json(\"FILE.jsonl\", orient=\"records\", lines=True)')";
const FROM_UTF16: &str = "convert it (iconv -f UTF-16 -t UTF-8 FILE > FILE.utf8)";
const FROM_UTF32: &str = "convert it (iconv -f UTF-32 -t UTF-8 FILE > FILE.utf8)";

/// The longer of two that begin alike comes first.
const FORMS: [Form; 12] = [
    form(b"\x1f\x8b", "compressed with gzip", "unpack it (gunzip --keep FILE)"),
    form(b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it (unzstd FILE)"),
    form(b"\xfd7zXZ\0", "compressed with xz", "unpack it (unxz --keep FILE)"),
    form(b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it (unlz4 FILE)"),
    form(b"PK\x03\x04", "a zip archive", "unpack it (unzip FILE)"),
    form(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (7z x FILE)"),
    form(b"PAR1\x15", "a Parquet file", TO_JSONL),
    form(b"ARROW1\0\0", "an Arrow file", "write its rows as JSON lines (with pyarrow or polars)"),
    form(b"\xff\xfe\0\0", "text in UTF-32", FROM_UTF32),
    form(b"\0\0\xfe\xff", "text in UTF-32", FROM_UTF32),
    form(b"\xff\xfe", "text in UTF-16", FROM_UTF16),
    form(b"\xfe\xff", "text in UTF-16", FROM_UTF16),
];

/// A bzip2 file: `BZh`, a digit, and the first digits of pi in hexadecimal.
const BZIP2: Form = form(b"1AY&SY", "compressed with bzip2", "unpack it (bunzip2 --keep FILE)");

/// The bytes of a file, or of its first line, without a byte-order mark.
///
/// # Errors
/// [`Error::OtherForm`] if they are not text.
pub(super) fn text(mut bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>, Error> {
    if let Some(form) = form_of(&bytes) {
        return Err(Error::OtherForm {
            path: path.to_owned(),
            form: form.name,
            advice: form.advice.replace("FILE", &path.display().to_string()),
        });
    }
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    Ok(bytes)
}

fn form_of(bytes: &[u8]) -> Option<&'static Form> {
    if let [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] = bytes
        && rest.starts_with(BZIP2.begins)
    {
        return Some(&BZIP2);
    }
    FORMS.iter().find(|form| bytes.starts_with(form.begins))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        text(bytes.to_vec(), Path::new("d/x")).unwrap_err().to_string()
    }

    #[test]
    fn a_mark_is_taken_off_once() {
        let bare = |bytes: &[u8]| text(bytes.to_vec(), Path::new("x")).unwrap();
        assert_eq!(bare(b"\xEF\xBB\xBFtext"), b"text");
        assert_eq!(bare(b"\xEF\xBB\xBF\xEF\xBB\xBF"), MARK);
        assert_eq!(bare(b"text\xEF\xBB\xBF"), b"text\xEF\xBB\xBF");
        assert_eq!(bare(b""), b"");
    }

    #[test]
    fn other_forms_are_named_with_the_command_that_unpacks_them() {
        for (bytes, name, command) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip", "gunzip --keep d/x"),
            (b"BZh91AY&SY\0", "bzip2", "bunzip2 --keep d/x"),
            (b"\x28\xb5\x2f\xfd\x24", "zstd", "unzstd d/x"),
            (b"\xfd7zXZ\0\0\x04", "xz", "unxz --keep d/x"),
            (b"PAR1\x15\x04\x15", "Parquet", "pandas.read_parquet(\"d/x\").to_json(\"d/x.jsonl\""),
            (b"\xff\xfea\0", "UTF-16", "iconv -f UTF-16 -t UTF-8 d/x > d/x.utf8"),
            (b"\xfe\xff\0a", "UTF-16", "iconv -f UTF-16"),
            (b"\xff\xfe\0\0a\0\0\0", "UTF-32", "iconv -f UTF-32"),
        ] {
            let message = refusal(bytes);
            assert!(message.starts_with("d/x is "), "{message}");
            assert!(message.contains(name) && message.contains(command), "{message}");
        }
    }

    /// Text that only looks like it stays text.
    #[test]
    fn every_signature_is_no_utf8_text() {
        for form in &FORMS {
            let control = form.begins.iter().any(|b| *b < 0x20);
            assert!(control || std::str::from_utf8(form.begins).is_err(), "{}", form.name);
        }
        for bytes in [&b"BZh9 is a name"[..], b"PAR1 par excellence", b"PK zip", b"7zip"] {
            assert_eq!(text(bytes.to_vec(), Path::new("x")).unwrap(), bytes);
        }
    }
}
