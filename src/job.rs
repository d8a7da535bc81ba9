//! The message contract: what a record's body has to say, and what it may not. A [`Job`] exists
//! only if it is valid.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::json_error;
use crate::typeset::TemplateVersions;

/// S3's limit. Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>.
const MOST_KEY_BYTES: usize = 1024;
/// S3's limit of user-defined metadata, names and values together.
/// Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>.
const MOST_METADATA_BYTES: usize = 2048;
/// A file system's usual limit for a name.
const MOST_FILENAME_BYTES: usize = 255;
/// More files than these no document needs from its message.
const MOST_FILES: usize = 16;
const MOST_FILE_NAME_BYTES: usize = 64;
/// As many digits as a page count may have.
const PAGES_PLACEHOLDER: &str = "1000000";
/// The metadata that says which level of e-invoice a PDF is, if it is one.
pub const E_INVOICE: &str = "e-invoice";
/// As many letters as the name of a level may have.
const E_INVOICE_PLACEHOLDER: &str = "XRECHNUNG";
/// What comes after a PDF's key in that of its trace. No PDF has such a key.
pub const TRACE_SUFFIX: &str = ".trace.json.gz";
/// The class name that the Amazon SQS Extended Client Library puts before a pointer.
const POINTER_CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";

/// What a valid message asks for.
#[derive(Clone, Debug)]
pub struct Job {
    pub template: String,
    /// The JSON of `data`, exactly as it came.
    pub data: Bytes,
    /// The S3 objects that the template finds in its folder `files`: names, and keys in the input
    /// bucket.
    pub files: BTreeMap<String, String>,
    /// The whole S3 key, prefix included.
    pub key: String,
    /// The value of `Content-Disposition`, if the message names a file.
    pub content_disposition: Option<String>,
    pub if_exists: IfExists,
    /// The object's metadata but for the page count and an e-invoice's level: the message's and ours.
    pub metadata: BTreeMap<String, String>,
}

/// What is to be done when another message has stored an object under the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    #[default]
    Replace,
    Fail,
}

/// A body: the message itself, or where it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Body<'a> {
    Message(&'a str),
    Pointer(Pointer),
}

/// Where the Extended Client Library has put a large message.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    #[serde(rename = "s3BucketName")]
    pub bucket: String,
    #[serde(rename = "s3Key")]
    pub key: String,
}

/// Why a message is refused. A retry would be refused too.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("the message is not the JSON it should be: {}", json_error::without_value(.0))]
    Malformed(serde_json::Error),
    #[error(
        "the body is a JSON array, but not a pointer as the SQS Extended Client Library writes it, \
         [\"{POINTER_CLASS}\", {{\"s3BucketName\": …, \"s3Key\": …}}]"
    )]
    NotAPointer,
    #[error("there is no template {name:?}; there are: {known}")]
    UnknownTemplate { name: String, known: String },
    #[error("key {key:?} {problem}")]
    Key { key: String, problem: KeyProblem },
    #[error("files has {found} entries, and a message may have {MOST_FILES}")]
    TooManyFiles { found: usize },
    #[error(
        "files {name:?}: a name has 1 to {MOST_FILE_NAME_BYTES} letters, digits, dots, dashes and underscores, \
         and begins with a letter or digit"
    )]
    FileName { name: String },
    #[error("files {name:?}: the key {key:?} {problem}")]
    FileKey { name: String, key: String, problem: KeyProblem },
    #[error("filename has to be 1 to {MOST_FILENAME_BYTES} bytes without /, \\ and control characters")]
    Filename,
    #[error(
        "metadata {name:?}: {problem}; S3 takes names of letters, digits, - and _, and values of printable ASCII \
         that neither begin nor end with a space"
    )]
    Metadata { name: String, problem: &'static str },
    #[error(
        "metadata has {bytes} bytes with what pressrun adds itself, and S3 takes {MOST_METADATA_BYTES}; \
         {surplus} have to go", surplus = bytes - MOST_METADATA_BYTES
    )]
    MetadataTooLarge { bytes: usize },
}

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("is empty")]
    Empty,
    #[error("begins with /, where a key relative to the bucket is expected")]
    Absolute,
    #[error("is longer than S3's {MOST_KEY_BYTES} bytes")]
    TooLong,
    #[error("has a .. between slashes, which tools resolve to other places")]
    Parent,
    #[error("has a control character")]
    Control,
    #[error("ends with /, which names a folder and no object")]
    Folder,
    #[error("ends with {TRACE_SUFFIX}, as only the traces beside PDFs do")]
    Trace,
}

/// What the parser has to know of the deployment and of the record.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    pub templates: &'a TemplateVersions,
    pub output_prefix: &'a str,
    pub message_id: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Message<'a> {
    template: String,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default)]
    files: BTreeMap<String, String>,
    key: Option<String>,
    filename: Option<String>,
    #[serde(default)]
    if_exists: IfExists,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl<'a> Body<'a> {
    /// Tells a message from a pointer.
    ///
    /// # Errors
    /// When the body is a JSON array but no pointer.
    pub fn parse(body: &'a str) -> Result<Self, JobError> {
        if !body.trim_start().starts_with('[') {
            return Ok(Self::Message(body));
        }
        match serde_json::from_str::<(String, Pointer)>(body) {
            Ok((class, pointer)) if class == POINTER_CLASS => Ok(Self::Pointer(pointer)),
            _ => Err(JobError::NotAPointer),
        }
    }
}

/// The template that a message names, even if it is refused for another reason.
pub fn template_named_in(message: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        template: String,
    }
    serde_json::from_str(message).ok().map(|named: Named| named.template)
}

impl Job {
    /// Parses a message and checks all that can be known before it is set.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn parse(message: &str, surroundings: Surroundings) -> Result<Self, JobError> {
        let message_digest = digest(message);
        let message: Message = serde_json::from_str(message).map_err(JobError::Malformed)?;
        let Surroundings { templates, output_prefix, message_id } = surroundings;
        let Some(edition) = templates.get(&message.template) else {
            let known: Vec<_> = templates.keys().map(String::as_str).collect();
            return Err(JobError::UnknownTemplate { name: message.template, known: known.join(", ") });
        };
        check_files(&message.files)?;
        let name = message.key.unwrap_or_else(|| format!("{}/{message_id}.pdf", message.template));
        check_key(&name).map_err(|problem| JobError::Key { key: name.clone(), problem })?;
        let key = format!("{output_prefix}{name}");
        check_pdf_key(&key).map_err(|problem| JobError::Key { key: key.clone(), problem })?;
        let ours = [
            ("message-id", message_id),
            ("message-digest", &message_digest),
            ("template", &message.template),
            ("template-version", &edition.version),
            ("template-digest", &edition.digest),
            ("pages", PAGES_PLACEHOLDER),
            (E_INVOICE, E_INVOICE_PLACEHOLDER),
        ];
        let mut metadata = checked_metadata(message.metadata, ours)?;
        metadata.remove("pages");
        metadata.remove(E_INVOICE);
        Ok(Self {
            data: Bytes::copy_from_slice(message.data.get().as_bytes()),
            template: message.template,
            files: message.files,
            key,
            if_exists: message.if_exists,
            content_disposition: message.filename.as_deref().map(content_disposition).transpose()?,
            metadata,
        })
    }

    /// The key of the PDF's trace, beside it.
    #[must_use]
    pub fn trace_key(&self) -> String {
        format!("{}{TRACE_SUFFIX}", self.key)
    }

    /// Whether an object with this metadata was made from this very message.
    pub fn has_made(&self, metadata: &HashMap<String, String>) -> bool {
        self.agrees_with(metadata, &["message-id", "message-digest"])
    }

    /// Whether an object with this metadata is what this job would make.
    pub fn would_make(&self, metadata: &HashMap<String, String>) -> bool {
        self.agrees_with(metadata, &["message-id", "message-digest", "template", "template-digest"])
    }

    fn agrees_with(&self, metadata: &HashMap<String, String>, names: &[&str]) -> bool {
        names.iter().all(|name| metadata.get(*name) == self.metadata.get(*name))
    }
}

/// Half of SHA-256, as text: enough to tell messages apart, and metadata is scarce.
fn digest(message: &str) -> String {
    use std::fmt::Write;
    Sha256::digest(message).iter().take(16).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written to");
        text
    })
}

/// Checks what becomes a key or a part of one.
///
/// # Errors
/// When it is empty, absolute or too long, or holds `..` or control characters.
pub fn check_key(key: &str) -> Result<(), KeyProblem> {
    if key.is_empty() {
        Err(KeyProblem::Empty)
    } else if key.starts_with('/') {
        Err(KeyProblem::Absolute)
    } else if key.len() > MOST_KEY_BYTES {
        Err(KeyProblem::TooLong)
    } else if key.split('/').any(|part| part == "..") {
        Err(KeyProblem::Parent)
    } else if key.chars().any(char::is_control) {
        Err(KeyProblem::Control)
    } else {
        Ok(())
    }
}

fn check_files(files: &BTreeMap<String, String>) -> Result<(), JobError> {
    if files.len() > MOST_FILES {
        return Err(JobError::TooManyFiles { found: files.len() });
    }
    for (name, key) in files {
        if !is_plain(name) {
            return Err(JobError::FileName { name: name.clone() });
        }
        check_object_key(key).map_err(|problem| JobError::FileKey { name: name.clone(), key: key.clone(), problem })?;
    }
    Ok(())
}

/// Whether it can be nothing but the name of a file.
fn is_plain(name: &str) -> bool {
    let is_plain_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= MOST_FILE_NAME_BYTES
        && name.bytes().all(is_plain_byte)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn check_object_key(key: &str) -> Result<(), KeyProblem> {
    check_key(key)?;
    if key.ends_with('/') { Err(KeyProblem::Folder) } else { Ok(()) }
}

/// A PDF never lies where another's trace would replace it.
fn check_pdf_key(key: &str) -> Result<(), KeyProblem> {
    check_object_key(key)?;
    if key.ends_with(TRACE_SUFFIX) { Err(KeyProblem::Trace) } else { Ok(()) }
}

/// The message's metadata and ours, if S3 takes them.
fn checked_metadata(
    given: BTreeMap<String, String>,
    ours: [(&str, &str); 7],
) -> Result<BTreeMap<String, String>, JobError> {
    let mut metadata: BTreeMap<String, String> =
        ours.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for (name, value) in given {
        // S3 gives names back in lower case: two that differ in case only would be one.
        let lower = name.to_ascii_lowercase();
        if let Some(problem) = metadata_problem(&lower, &value, &metadata) {
            return Err(JobError::Metadata { name, problem });
        }
        metadata.insert(lower, value);
    }
    if let Some((name, value)) = metadata.iter().find(|(_, value)| !is_printable_ascii(value)) {
        debug_assert!(!value.is_empty());
        return Err(JobError::Metadata { name: name.clone(), problem: "the value is not printable ASCII" });
    }
    let bytes = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MOST_METADATA_BYTES { Err(JobError::MetadataTooLarge { bytes }) } else { Ok(metadata) }
}

fn metadata_problem(name: &str, value: &str, taken: &BTreeMap<String, String>) -> Option<&'static str> {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name_byte) {
        Some("the name has other characters")
    } else if taken.contains_key(name) {
        Some("the name is taken, by pressrun or in another case")
    } else if !is_printable_ascii(value) || value.trim() != value {
        Some("the value has other characters")
    } else {
        None
    }
}

fn is_printable_ascii(value: &str) -> bool {
    value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// `attachment` with the file's name as RFC 6266 and RFC 8187 spell it.
fn content_disposition(filename: &str) -> Result<String, JobError> {
    let is_bad = |character: char| character.is_control() || character == '/' || character == '\\';
    if filename.is_empty() || filename.len() > MOST_FILENAME_BYTES || filename.contains(is_bad) {
        return Err(JobError::Filename);
    }
    let encoded = percent_encoding::utf8_percent_encode(filename, NOT_ATTR_CHAR);
    Ok(format!("attachment; filename*=UTF-8''{encoded}"))
}

/// All but RFC 8187's `attr-char`.
const NOT_ATTR_CHAR: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(message: &str) -> Result<Job, JobError> {
        let edition = crate::typeset::TemplateVersion { version: "1.2.3".to_owned(), digest: "0".repeat(32) };
        let templates = BTreeMap::from([("invoice".to_owned(), edition)]);
        Job::parse(message, Surroundings { templates: &templates, output_prefix: "pdf/", message_id: "m-1" })
    }

    fn refused(message: &str) -> String {
        parse(message).unwrap_err().to_string()
    }

    #[test]
    fn a_template_and_data_are_enough() {
        let job = parse(r#"{"template": "invoice", "data": {"a": 1.10}}"#).unwrap();
        assert_eq!(job.key, "pdf/invoice/m-1.pdf");
        assert_eq!(&job.data[..], br#"{"a": 1.10}"#);
        assert_eq!(job.content_disposition, None);
        assert_eq!(job.metadata["message-id"], "m-1");
        assert_eq!(job.metadata["template-version"], "1.2.3");
    }

    #[test]
    fn a_typo_in_a_field_is_refused() {
        assert!(refused(r#"{"template": "invoice", "data": 1, "filname": "a"}"#).contains("filname"));
        assert!(refused(r#"{"template": "invoice"}"#).contains("data"));
        assert!(refused("hello").contains("expected value"));
    }

    #[test]
    fn an_unknown_template_is_refused_with_those_there_are() {
        assert_eq!(
            refused(r#"{"template": "invoise", "data": 1}"#),
            "there is no template \"invoise\"; there are: invoice"
        );
    }

    #[test]
    fn a_key_that_could_lead_elsewhere_is_refused() {
        let long = "x".repeat(1025);
        let trace = "a.pdf.trace.json.gz";
        for key in ["", "/a.pdf", "../a.pdf", "a/../b.pdf", "a/..", "a\\u0000.pdf", "a\\nb", "a/", &long, trace] {
            let message = format!(r#"{{"template": "invoice", "data": 1, "key": "{key}"}}"#);
            assert!(matches!(parse(&message).unwrap_err(), JobError::Key { .. }), "{key}");
        }
        for key in ["a..b.pdf", "2026/ä ö.pdf", "..."] {
            let message = format!(r#"{{"template": "invoice", "data": 1, "key": "{key}"}}"#);
            assert_eq!(parse(&message).unwrap().key, format!("pdf/{key}"));
        }
    }

    #[test]
    fn a_files_name_is_plain_and_its_key_a_key() {
        let with = |files: &str| parse(&format!(r#"{{"template": "invoice", "data": 1, "files": {files}}}"#));
        let job = with(r#"{"logo.png": "customers/42/logo.png", "7_a-B.svg": "x"}"#).unwrap();
        assert_eq!(job.files["logo.png"], "customers/42/logo.png");
        let long = format!(r#"{{"{}": "x"}}"#, "a".repeat(65));
        for bad in [r#"{"": "x"}"#, r#"{"a/b.png": "x"}"#, r#"{"..": "x"}"#, r#"{".a": "x"}"#, r#"{"ä": "x"}"#, &long]
        {
            assert!(matches!(with(bad).unwrap_err(), JobError::FileName { .. }), "{bad}");
        }
        for bad in ["", "/a", "../a", "a/"] {
            let files = format!(r#"{{"a.png": "{bad}"}}"#);
            assert!(matches!(with(&files).unwrap_err(), JobError::FileKey { .. }), "{bad}");
        }
        let many = |count: usize| {
            let files: BTreeMap<String, &str> = (0..count).map(|number| (format!("{number}.png"), "x")).collect();
            with(&serde_json::to_string(&files).unwrap())
        };
        assert!(many(16).is_ok());
        assert_eq!(many(17).unwrap_err().to_string(), "files has 17 entries, and a message may have 16");
    }

    #[test]
    fn a_filename_is_spelt_as_browsers_read_it() {
        let job = parse(r#"{"template": "invoice", "data": 1, "filename": "Rechnung 7 – Müller.pdf"}"#).unwrap();
        assert_eq!(
            job.content_disposition.unwrap(),
            "attachment; filename*=UTF-8''Rechnung%207%20%E2%80%93%20M%C3%BCller.pdf"
        );
        for bad in ["", "a/b.pdf", "a\\\\b.pdf", "a\\r\\nSet-Cookie: x"] {
            let message = format!(r#"{{"template": "invoice", "data": 1, "filename": "{bad}"}}"#);
            assert!(matches!(parse(&message).unwrap_err(), JobError::Filename), "{bad}");
        }
    }

    #[test]
    fn metadata_that_s3_would_refuse_is_refused_first() {
        let with = |name: &str, value: &str| {
            parse(&format!(r#"{{"template": "invoice", "data": 1, "metadata": {{"{name}": "{value}"}}}}"#))
        };
        assert_eq!(with("Customer", "K-17").unwrap().metadata["customer"], "K-17");
        for (name, value) in [
            ("", "a"),
            ("a b", "a"),
            ("ü", "a"),
            ("a", "ü"),
            ("a", " a"),
            ("a", "a\\n"),
            ("Pages", "3"),
            ("E-Invoice", "BASIC"),
            ("template", "x"),
        ] {
            assert!(matches!(with(name, value).unwrap_err(), JobError::Metadata { .. }), "{name}: {value}");
        }
        let ours = "message-id".len()
            + 3
            + "template".len()
            + 7
            + "template-version".len()
            + 5
            + "pages".len()
            + 7
            + "e-invoice".len()
            + 9
            + "message-digest".len()
            + 32
            + "template-digest".len()
            + 32;
        assert!(with("a", &"x".repeat(2048 - ours - 1)).is_ok());
        assert_eq!(
            with("a", &"x".repeat(2048 - ours)).unwrap_err().to_string(),
            "metadata has 2049 bytes with what pressrun adds itself, and S3 takes 2048; 1 have to go"
        );
    }

    #[test]
    fn a_pointer_is_told_from_a_message() {
        let body = r#"["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"in","s3Key":"k"}]"#;
        assert_eq!(Body::parse(body).unwrap(), Body::Pointer(Pointer { bucket: "in".to_owned(), key: "k".to_owned() }));
        assert_eq!(Body::parse("{}").unwrap(), Body::Message("{}"));
        for body in ["[]", "[1, 2]", r#"["other.Class",{"s3BucketName":"in","s3Key":"k"}]"#] {
            assert!(matches!(Body::parse(body).unwrap_err(), JobError::NotAPointer), "{body}");
        }
    }
}
