//! Errors of `serde_json` without the values that they quote: these are a customer's data, and errors go to
//! the log.
//!
//! Imports [`crate::text`].

use crate::text;

/// The longest error that is told whole, in bytes. A longer one names a field of the message that is long
/// itself.
const MAX_ERROR_BYTES: usize = 600;

/// Describes an error as `serde_json` does, but names only the kind of a value that is of the wrong kind.
#[must_use]
pub fn redacted(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // As in: invalid type: string "secret", expected a map at line 1 column 20
    let quoting = ["invalid type: ", "invalid value: "].into_iter().find(|start| text.starts_with(start));
    let Some((start, expected)) = quoting.zip(text.rfind(", expected ")) else {
        return text::shortened(&text, MAX_ERROR_BYTES).into_owned();
    };
    let found = &text[start.len()..expected];
    let kind = found.find(['"', '`']).map_or(found, |quote| found[..quote].trim_end());
    format!("{start}{kind}{}", &text[expected..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_kind_of_a_value_is_told_and_never_the_value() {
        let said = |json: &str| redacted(&serde_json::from_str::<BTreeMap<String, bool>>(json).unwrap_err());
        assert_eq!(said(r#""it, \"expected this""#), "invalid type: string, expected a map at line 1 column 21");
        assert_eq!(said(r#"{"a": 47.11}"#), "invalid type: floating point, expected a boolean at line 1 column 11");
        assert_eq!(said(r#"{"a": [1]}"#), "invalid type: sequence, expected a boolean at line 1 column 6");
        assert_eq!(said("{"), "EOF while parsing an object at line 1 column 1");
    }
}
