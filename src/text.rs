//! Texts of others, which are bounded before an error or the log quotes them: CloudWatch drops a line that is
//! too long, and with it what was wrong.

use std::borrow::Cow;
use std::fmt;

/// The longest part of a value that an error quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 200;

/// A value in quotes, of which only the beginning is shown if it is long.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self(value) = self;
        let start = &value[..value.floor_char_boundary(MAX_QUOTED_BYTES)];
        if start.len() == value.len() {
            write!(f, "{value:?}")
        } else {
            write!(f, "{start:?}… (of {} bytes)", value.len())
        }
    }
}

/// Returns a text of at most so many bytes and a remark: if it is longer, its middle is left out, because
/// errors name the value at their beginning and say at their end what to do.
#[must_use]
pub fn shortened(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let start = &text[..text.floor_char_boundary(max_bytes / 2)];
    let end = &text[text.ceil_char_boundary(text.len() - max_bytes / 2)..];
    Cow::Owned(format!("{start}…({} bytes left out)…{end}", text.len() - start.len() - end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_quoted_by_its_beginning() {
        assert_eq!(Quoted("a\"b").to_string(), "\"a\\\"b\"");
        let quoted = Quoted(&"ä".repeat(450_000)).to_string();
        assert!(quoted.starts_with("\"ää") && quoted.ends_with("ä\"… (of 900000 bytes)") && quoted.len() < 300);
    }

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        assert_eq!(shortened("abc", 3), "abc");
        let text = format!("begin {} end", "ä".repeat(1000));
        let short = shortened(&text, 100);
        assert!(short.starts_with("begin ä") && short.ends_with("ä end") && short.len() < 140, "{short}");
    }
}
