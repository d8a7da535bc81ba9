//! Removes a message's data from errors: these go to the log, and Typst quotes values in some of them, as any
//! template may with `panic` and `assert`.

use serde_json::Value;

/// The shortest text or number that is removed. Shorter ones are words like "EUR", which say little of anybody.
const MIN_CHARACTERS: usize = 4;

/// A message's data, parsed once to be removed from any number of texts.
pub struct Redaction(Value);

impl Redaction {
    /// Parses a message's data. Data that are not JSON have no values.
    #[must_use]
    pub fn new(data: &[u8]) -> Self {
        Self(serde_json::from_slice(data).unwrap_or_default())
    }

    /// Replaces each value of the data that occurs in a text by its JSON pointer. Values that a template has
    /// changed are not found.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let mut values = Values { text, found: Vec::new() };
        values.search(&self.0, "");
        // A long value may contain a short one.
        values.found.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        let replaced = |text: String, (value, pointer): &(String, String)| {
            text.replace(value.as_str(), &format!("<value of {pointer}>"))
        };
        values.found.iter().fold(text.to_owned(), replaced)
    }
}

struct Values<'a> {
    text: &'a str,
    /// The values that occur in the text, with their pointers.
    found: Vec<(String, String)>,
}

impl Values<'_> {
    fn search(&mut self, value: &Value, pointer: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    self.search(value, &format!("{pointer}/{name}"));
                }
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    self.search(value, &format!("{pointer}/{index}"));
                }
            }
            Value::String(string) => {
                self.note(string, pointer);
                // Typst escapes a string in quotes as JSON does.
                let quoted = value.to_string();
                self.note(&quoted[1..quoted.len() - 1], pointer);
            }
            Value::Number(number) => self.note(&number.to_string(), pointer),
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn note(&mut self, value: &str, pointer: &str) {
        let is_known = |(known, _): &(String, String)| known == value;
        if value.chars().count() >= MIN_CHARACTERS && self.text.contains(value) && !self.found.iter().any(is_known) {
            self.found.push((value.to_owned(), if pointer.is_empty() { "/" } else { pointer }.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_replaced_by_its_place() {
        let data = br#"{"name": "Ada \"A\" Byron", "lines": [{"a/b": "Ada"}, {"price": 1234.5}], "of": "name"}"#;
        let said = |text| Redaction::new(data).redact(text);
        assert_eq!(said(r#"panicked with: "Ada \"A\" Byron""#), r#"panicked with: "<value of /name>""#);
        assert_eq!(said(r#"no Ada "A" Byron at 1234.5"#), "no <value of /name> at <value of /lines/1/price>");
        assert_eq!(said("expected string, found Ada"), "expected string, found Ada");
        assert_eq!(Redaction::new(br#""secret""#).redact("secret"), "<value of />");
        assert_eq!(Redaction::new(b"not JSON").redact("anything"), "anything");
    }
}
