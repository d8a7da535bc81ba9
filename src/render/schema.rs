//! The JSON Schema of a template's data, and the places where data violate it.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jsonschema::Validator;
use jsonschema::error::{ValidationError, ValidationErrorKind};
use serde_json::{Value, json};

use super::template_error::TemplateError;
use crate::json;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// The most violations that are reported.
const MAX_VIOLATIONS: usize = 20;
/// The most alternatives that are explained if all have failed.
const MAX_ALTERNATIVES: usize = 3;

/// A JSON Schema of draft 2020-12 that has been compiled. Formats are asserted.
pub(super) struct Schema(Validator);

/// The meta-schema of JSON Schema 2020-12, which takes unknown keywords for annotations, extended so that they are
/// errors: otherwise a misspelt keyword would be ignored.
static STRICT_META_SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let meta_schema = json!({
        "$schema": DIALECT,
        "$id": "urn:pressrun:strict-schema",
        "$dynamicAnchor": "meta",
        "$ref": DIALECT,
        "unevaluatedProperties": false,
    });
    jsonschema::draft202012::options().build(&meta_schema).expect("the schema of schemas is one")
});

impl Schema {
    /// Loads a schema, and checks that it is valid and that no keyword in it is misspelt.
    pub fn load(path: &Path) -> Result<Self, TemplateError> {
        let text = fs::read(path).map_err(|error| TemplateError::read(path, error))?;
        Self::parse(&text).map_err(|problem| TemplateError::new(path, problem))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let schema: Value = serde_json::from_slice(json::bytes_without_byte_order_mark(text))
            .map_err(|error| format!("is not JSON: {error}"))?;
        check_dialect(&schema)?;
        // The strict meta-schema would report a wrong value as a keyword that is not allowed.
        jsonschema::draft202012::meta::validate(&schema).map_err(|error| {
            format!("is not a JSON Schema of 2020-12: {}: {error}{}", place(&error), alternatives(&error))
        })?;
        check_keywords(&schema)?;
        jsonschema::draft202012::options()
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .build(&schema)
            .map(Self)
            .map_err(|error| unusable(&error))
    }

    /// Returns the first [`MAX_VIOLATIONS`] places where data violate the schema. They say where and of what kind
    /// a value is, never what it is.
    pub fn violations(&self, data: &[u8]) -> Vec<String> {
        match serde_json::from_slice::<Value>(data) {
            Ok(data) => self.0.iter_errors(&data).take(MAX_VIOLATIONS).map(|error| describe(&error)).collect(),
            Err(error) => vec![format!("the data are not JSON that can be read: {error}")],
        }
    }
}

fn check_dialect(schema: &Value) -> Result<(), String> {
    match schema.get("$schema") {
        Some(dialect) if dialect != DIALECT => {
            Err(format!("has the \"$schema\" {dialect}; expected is \"{DIALECT}\" or none"))
        }
        _ => Ok(()),
    }
}

fn check_keywords(schema: &Value) -> Result<(), String> {
    // The schemas around a misspelt keyword are invalid too, so the innermost place counts.
    let depth = |error: &ValidationError| error.instance_path().as_str().matches('/').count();
    let Some(error) = STRICT_META_SCHEMA.iter_errors(schema).max_by_key(depth) else { return Ok(()) };
    let ValidationErrorKind::UnevaluatedProperties { unexpected } = error.kind() else {
        return Err(format!("is not a JSON Schema of 2020-12: {}: {error}", place(&error)));
    };
    Err(format!("has at {} what is no keyword of JSON Schema 2020-12: {}", pointer(&error), unexpected.join(", ")))
}

/// Says why a well-formed schema cannot be compiled, without the library's advice, which is for programmers.
fn unusable(error: &ValidationError) -> String {
    let text = error.to_string();
    match error.kind() {
        ValidationErrorKind::Referencing(_) => {
            format!("has a \"$ref\" that cannot be followed; it has to stay within the file: {text}")
        }
        _ => format!("cannot be used as a schema: {}", text.split(". Adjust").next().unwrap_or_default()),
    }
}

/// Describes a violation, as in `/lines/3/price: value is not of type "string"; found a number`.
fn describe(error: &ValidationError) -> String {
    let found = kind_of(error.instance());
    format!("{}: {}{}; found {found}", place(error), error.masked(), alternatives(error))
}

/// Says what is wrong with each of the alternatives that a schema offers.
fn alternatives(error: &ValidationError) -> String {
    let (ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context }) = error.kind() else {
        return String::new();
    };
    let first_errors = context.iter().filter_map(|errors| errors.first()).take(MAX_ALTERNATIVES);
    let explained: Vec<String> = first_errors.map(|error| format!("{}: {}", place(error), error.masked())).collect();
    if explained.is_empty() { String::new() } else { format!(" ({})", explained.join("; or ")) }
}

/// Returns the JSON pointer of a violation, which is empty for the whole data.
fn place(error: &ValidationError) -> String {
    let pointer = error.instance_path().as_str();
    if pointer.is_empty() { "at the top".to_owned() } else { pointer.to_owned() }
}

fn pointer(error: &ValidationError) -> String {
    let pointer = error.instance_path().as_str();
    if pointer.is_empty() { "its top".to_owned() } else { pointer.to_owned() }
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(text) => format!("a string of length {}", text.chars().count()),
        Value::Array(items) => format!("an array of length {}", items.len()),
        Value::Object(members) => format!("an object with {} members", members.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(schema: &Value, data: &Value) -> Vec<String> {
        let schema = Schema::parse(schema.to_string().as_bytes()).unwrap();
        schema.violations(data.to_string().as_bytes())
    }

    fn refused(schema: &Value) -> String {
        Schema::parse(schema.to_string().as_bytes()).err().unwrap()
    }

    #[test]
    fn every_violation_says_where_what_was_expected_and_what_was_found() {
        let schema = json!({
            "required": ["name"],
            "additionalProperties": false,
            "properties": {
                "name": {"type": "string"},
                "day": {"type": "string", "format": "date"},
                "lines": {"maxItems": 2, "items": {"required": ["price"], "properties": {"price": {"type": "string"}}}},
                "to": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["street"]}]},
            },
        });
        let data = json!({
            "day": "2026-02-30",
            "lines": [{"price": 1}, {}, {"price": "1"}],
            "nmae": "secret",
            "to": {"secret": 1},
        });
        let mut found = violations(&schema, &data);
        found.sort();
        assert_eq!(
            found,
            [
                "/day: value is not a \"date\"; found a string of length 10",
                "/lines/0/price: value is not of type \"string\"; found a number",
                "/lines/1: \"price\" is a required property; found an object with 0 members",
                "/lines: value has more than 2 items; found an array of length 3",
                "/to: value is not valid under any of the schemas listed in the 'anyOf' keyword \
                 (/to: value is not of type \"null\"; or /to: \"street\" is a required property); \
                 found an object with 1 members",
                "at the top: \"name\" is a required property; found an object with 4 members",
                "at the top: Additional properties are not allowed ('nmae' was unexpected); \
                 found an object with 4 members",
            ]
        );
        assert!(violations(&schema, &json!({"name": "", "day": "2026-02-28", "to": null})).is_empty());
    }

    #[test]
    fn the_number_of_violations_is_limited() {
        let schema = json!({"items": {"type": "string"}});
        assert_eq!(violations(&schema, &Value::from(vec![0; 10_000])).len(), MAX_VIOLATIONS);
    }

    #[test]
    fn a_violation_never_quotes_the_value() {
        let schemas = [
            json!({"type": "number"}),
            json!({"const": 1}),
            json!({"enum": [1]}),
            json!({"pattern": "^x"}),
            json!({"maxLength": 3}),
            json!({"format": "email"}),
            json!({"not": {"type": "string"}}),
            json!({"oneOf": [{"type": "null"}, {"maxLength": 1}]}),
            json!(false),
        ];
        for schema in schemas {
            let told = violations(&schema, &json!("my secret")).join("");
            assert!(!told.is_empty() && !told.contains("secret"), "{schema}: {told}");
        }
    }

    #[test]
    fn a_misspelt_keyword_is_an_error_wherever_it_stands() {
        for (schema, place, keyword) in [
            (json!({"maxLenght": 3}), "its top", "maxLenght"),
            (json!({"properties": {"a": {"items": {"requierd": ["b"]}}}}), "/properties/a/items", "requierd"),
            (json!({"$defs": {"a": {"anyOf": [{"typ": "string"}]}}, "type": "object"}), "/$defs/a/anyOf/0", "typ"),
            (json!({"additionalProperties": {"minimun": 1}, "required": []}), "/additionalProperties", "minimun"),
        ] {
            let problem = refused(&schema);
            let expected = format!("has at {place} what is no keyword of JSON Schema 2020-12: {keyword}");
            assert_eq!(problem, expected);
        }
    }

    #[test]
    fn an_invalid_schema_is_an_error() {
        for (schema, expected) in [
            (json!({"type": "text"}), "is not a JSON Schema of 2020-12: /type"),
            (json!({"maxItems": -1}), "is not a JSON Schema of 2020-12: /maxItems"),
            (json!({"format": "dat"}), "cannot be used as a schema: Unknown format: 'dat'"),
            (json!({"pattern": "("}), "\"(\" is not a \"regex\""),
            (json!({"$ref": "#/$defs/missing"}), "missing"),
            (json!({"$ref": "https://example.org/other.json"}), "example.org"),
            (json!({"$ref": "other.json"}), "has a \"$ref\" that cannot be followed; it has to stay within the file"),
            (
                json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
                "expected is \"https://json-schema.org/draft/2020-12/schema\"",
            ),
            (json!([]), "is not a JSON Schema"),
        ] {
            let problem = refused(&schema);
            assert!(problem.contains(expected), "{schema}: {problem}");
        }
    }
}
