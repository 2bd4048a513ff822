//! What names, paths and tokens may look like: one rule for whoever sends them and whoever takes them in.

/// Longest name (of a job, user, group, node, zone, switch) in bytes.
pub const MAX_WORD_BYTES: usize = 128;

/// Longest path in bytes: PATH_MAX of Linux, less room for the names of files below it.
pub const MAX_PATH_BYTES: usize = 4096 - 256;

/// Shortest token in bytes: 16 random hexadecimal digits are 64 bits, beyond guessing over a network.
pub const MIN_TOKEN_BYTES: usize = 16;

/// Longest token in bytes: with it the header of a call stays far below the 16 KiB of HTTP/2.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// What is wrong with a name, if anything: it is printed on terminals and compared by people, so that nothing in it may
/// be invisible or reorder what stands around it.
pub fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_WORD_BYTES {
        return Some("must be 1 to 128 bytes");
    }
    text_problem(name)
}

/// What is wrong with a piece of a line of any length, if anything.
pub fn text_problem(text: &str) -> Option<&'static str> {
    if text.contains(char::is_control) {
        return Some("must not have control characters");
    }
    text.contains(is_invisible)
        .then_some("must not have invisible characters or ones that turn the direction of text")
}

/// What is wrong with the path of a folder, if anything: two spellings of one folder would count as two.
pub fn path_problem(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        return Some("must be an absolute path");
    }
    if path.len() > MAX_PATH_BYTES {
        return Some("must be at most 3840 bytes");
    }
    if path.contains(char::is_control) {
        return Some("must not have control characters");
    }
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    (path != "/" && path.split('/').skip(1).any(odd))
        .then_some("must be normalised: without `.`, `..`, `//` and a `/` at its end")
}

/// What is wrong with a bearer token, if anything.
pub fn token_problem(token: &str) -> Option<&'static str> {
    if token.len() < MIN_TOKEN_BYTES {
        return Some("a token has at least 16 bytes: `openssl rand -hex 32` makes one");
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Some("a token has at most 1024 bytes");
    }
    let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    (!plain).then_some("a token has no blanks, control characters or letters beyond ASCII")
}

/// The front of a text, of at most `bytes` bytes, cut between characters.
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Characters that show nothing, or that turn the direction of what follows.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{ffa0}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_as_they_are() {
        for good in ["a", "node-1.rack 7", "Zürich", "名前", &"x".repeat(128)] {
            assert_eq!(name_problem(good), None, "{good}");
        }
        let long = "x".repeat(129);
        let bad = ["", &long, "a\nb", "a\u{1b}[31m", "a\u{9b}", "\0", "a\u{202e}b", "a\u{200b}b"];
        for bad in bad.into_iter().chain(["\u{feff}a", "a\u{2066}", "a\u{ad}", "\u{e0041}"]) {
            assert!(name_problem(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_folder_has_one_spelling() {
        for good in ["/", "/a", "/a/b c/d", "/a/..b", "/a/.b"] {
            assert_eq!(path_problem(good), None, "{good}");
        }
        let long = format!("/{}", "x".repeat(MAX_PATH_BYTES));
        for bad in [
            "",
            "a",
            "/a/",
            "//a",
            "/a//b",
            "/a/./b",
            "/x/../../etc",
            "/a/..",
            "/a\0b",
            "/\x1b",
            &long,
        ] {
            assert!(path_problem(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn tokens_are_long_and_plain() {
        assert_eq!(token_problem("0123456789abcdef"), None);
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for bad in [
            "",
            "0123456789abcde",
            "0123456789 abcdef",
            "0123456789\tabcdef",
            "0123456789äbcdef",
            &long,
        ] {
            assert!(token_problem(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_cut_falls_between_characters() {
        assert_eq!((cut("aä", 2), cut("aä", 3), cut("", 5)), ("a", "aä", ""));
    }
}
