//! The message contract: what the body of an SQS message has to say, and what it may not. A
//! [`RenderRequest`] exists only if it is valid.
//!
//! Imports [`crate::render`] for the versions of templates, [`crate::json`], [`crate::json_error`] and
//! [`crate::text`].

mod key;
mod other_body;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::json::{self, Misreading, MisreadingKind};
use crate::json_error;
use crate::render::TemplateVersions;
use crate::text::{self, Quoted};
use key::{MAX_KEY_BYTES, check_object_key, check_pdf_key};

pub use key::{KeyProblem, TIMINGS_SUFFIX, check_key};
pub use other_body::OtherBody;

/// S3's limit for user-defined metadata, in bytes of names and values together.
/// Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>.
const MAX_METADATA_BYTES: usize = 2048;
/// The usual limit of file systems for a name, in bytes.
const MAX_FILENAME_BYTES: usize = 255;
/// The most files that a message may name.
const MAX_FILES: usize = 16;
/// The longest name of a message's file, in bytes.
const MAX_FILE_NAME_BYTES: usize = 64;
/// Stands for the page count when the size of the metadata is checked, with as many digits as that may
/// have.
const PAGES_PLACEHOLDER: &str = "1000000";
/// The name of the metadata with the level of the e-invoice, if the PDF is one.
pub const E_INVOICE: &str = "e-invoice";
/// Stands for the level when the size of the metadata is checked: no level has a longer name.
const E_INVOICE_PLACEHOLDER: &str = "XRECHNUNG";
/// The name of the metadata with the time at which the message was sent, if that is known.
pub const SENT_TIMESTAMP: &str = "sent-timestamp";
/// Stands for that time when the size of the metadata is checked, with as many digits as it has until 2286.
const SENT_TIMESTAMP_PLACEHOLDER: &str = "1782988200000";
/// The most bytes of a list of templates in an error.
const MAX_LIST_BYTES: usize = 1000;
/// The class names that Extended Client Libraries write before a pointer: that of today, and that of Java's up to
/// version 1.0 and of several ports. Java's of today reads both.
const POINTER_CLASSES: [&str; 2] =
    ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"];
/// A document that a valid message asks for.
///
/// ```
/// use pressrun::message::{ParseContext, RenderRequest};
/// use pressrun::render::{TemplateVersion, TemplateVersions};
///
/// let version = TemplateVersion { version: "1.0.0".to_owned(), digest: "5f3a".to_owned(), part_size: None };
/// let templates = TemplateVersions::from([("letter".to_owned(), version)]);
/// let context = ParseContext { templates: &templates, output_prefix: "pdf/" };
///
/// let message = r#"{"template": "letter", "data": {"to": "Ada"}, "filename": "Ada.pdf"}"#;
/// let request = RenderRequest::parse(message, "message-1", context)?;
/// assert_eq!(request.key, "pdf/letter/message-1.pdf");
///
/// let error = RenderRequest::parse(r#"{"template": "lettre", "data": {}}"#, "message-2", context).unwrap_err();
/// assert_eq!(error.to_string(), "there is no template \"lettre\"; there are: letter");
/// # Ok::<_, pressrun::message::MessageError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RenderRequest {
    pub template: String,
    /// The JSON of the field `data`, exactly as it came.
    pub data: Bytes,
    /// The files that the template finds in its folder `files`: their names, and their keys in the input
    /// bucket.
    pub files: BTreeMap<String, String>,
    /// The S3 key of the PDF, including the prefix.
    pub key: String,
    /// The value of `Content-Disposition`, if the message gives a filename.
    pub content_disposition: Option<String>,
    pub if_exists: IfExists,
    /// What the sender of a direct call wants to be answered with, if the message says so.
    pub respond: Option<Respond>,
    /// The object's metadata, the message's and pressrun's own, without the page count, an e-invoice's level
    /// and the time at which the message was sent.
    pub metadata: BTreeMap<String, String>,
    /// When the message was sent, in milliseconds since 1970, if that is known.
    pub sent_timestamp_ms: Option<i64>,
}

/// What to do when another message has stored an object under the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    #[default]
    Replace,
    Fail,
}

/// What a direct call is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Respond {
    /// With the PDF itself, which is not stored.
    Inline,
}

/// The body of an SQS message: the message itself, or a pointer to it.
#[derive(Debug, PartialEq, Eq)]
pub enum Body<'a> {
    Message(&'a str),
    Pointer(Pointer),
}

/// Where the Extended Client Library has stored a large message.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    #[serde(rename = "s3BucketName")]
    pub bucket: String,
    #[serde(rename = "s3Key")]
    pub key: String,
}

/// Why a message is refused, for good.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("the message does not match the contract: {}", json_error::redacted(.0))]
    Malformed(serde_json::Error),
    #[error("{0}")]
    OtherBody(OtherBody),
    #[error(
        "the body is a JSON array, but not a pointer as the SQS Extended Client Library writes it, \
         [\"{class}\", {{\"s3BucketName\": …, \"s3Key\": …}}]", class = POINTER_CLASSES[0]
    )]
    NotAPointer,
    #[error("the message at {}: {}", .0.place, .0.kind)]
    Misread(Misreading),
    /// The place is in the data.
    #[error("the data cannot be used: {place}: {kind}")]
    MisreadData { place: String, kind: MisreadingKind },
    #[error(
        "respond is for direct calls alone: nobody waits for the answer to a message of a queue, so leave it out and \
         find the PDF in S3"
    )]
    RespondFromAQueue,
    #[error("there is no template {}; there are: {}", Quoted(.name), text::shortened(.known, MAX_LIST_BYTES))]
    UnknownTemplate { name: String, known: String },
    #[error("key {} {problem}", Quoted(.key))]
    Key { key: String, problem: KeyProblem },
    #[error("files has {found} entries, and a message may have {MAX_FILES}")]
    TooManyFiles { found: usize },
    #[error(
        "files {}: a name has 1 to {MAX_FILE_NAME_BYTES} letters, digits, dots, dashes and underscores, \
         and begins with a letter or digit", Quoted(.name)
    )]
    FileName { name: String },
    #[error("files {}: the key {} {problem}", Quoted(.name), Quoted(.key))]
    FileKey { name: String, key: String, problem: KeyProblem },
    #[error(
        "filename has to be 1 to {MAX_FILENAME_BYTES} bytes without /, \\, control characters and those that change the \
         direction of text, and not of dots and spaces alone"
    )]
    Filename,
    #[error(
        "metadata {}: {problem}; S3 takes names of letters, digits, - and _, and values of printable ASCII \
         that neither begin nor end with a space", Quoted(.name)
    )]
    Metadata { name: String, problem: &'static str },
    #[error(
        "metadata has {bytes} bytes with what pressrun adds itself, and S3 takes {MAX_METADATA_BYTES}; \
         {surplus} have to go", surplus = bytes - MAX_METADATA_BYTES
    )]
    MetadataTooLarge { bytes: usize },
}

/// What parsing needs to know of the deployment.
#[derive(Clone, Copy, Debug)]
pub struct ParseContext<'a> {
    pub templates: &'a TemplateVersions,
    /// What comes before every key.
    pub output_prefix: &'a str,
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
    respond: Option<Respond>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl<'a> Body<'a> {
    /// Tells a message from a pointer.
    ///
    /// # Errors
    /// When the body is a JSON array but not a pointer, or points to what cannot be an object.
    pub fn parse(body: &'a str) -> Result<Self, MessageError> {
        let body = json::without_byte_order_mark(body);
        if !body.trim_start().starts_with('[') {
            return Ok(Self::Message(body));
        }
        match serde_json::from_str::<(String, Pointer)>(body) {
            Ok((class, pointer)) if POINTER_CLASSES.contains(&class.as_str()) => {
                // The SDK panics at a key that makes a URL of more than 64 KiB.
                let problem = match pointer.key.len() {
                    0 => KeyProblem::Empty,
                    1..=MAX_KEY_BYTES => return Ok(Self::Pointer(pointer)),
                    _ => KeyProblem::TooLong,
                };
                Err(MessageError::Key { key: pointer.key, problem })
            }
            _ => Err(MessageError::NotAPointer),
        }
    }
}

/// Returns the template that a message names, even if the message is refused.
pub fn template_named_in(message: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        template: String,
    }
    serde_json::from_str(json::without_byte_order_mark(message)).ok().map(|named: Named| named.template)
}

impl RenderRequest {
    /// Parses a message, and checks all that can be checked before its document is rendered.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(message: &str, message_id: &str, context: ParseContext) -> Result<Self, MessageError> {
        let text = json::without_byte_order_mark(message);
        let message_digest = digest(text);
        let message: Message = serde_json::from_str(text)
            .map_err(|error| OtherBody::of(text).map_or(MessageError::Malformed(error), MessageError::OtherBody))?;
        let ParseContext { templates, output_prefix } = context;
        let Some(version) = templates.get(&message.template) else {
            let known: Vec<_> = templates.keys().map(String::as_str).collect();
            return Err(MessageError::UnknownTemplate { name: message.template, known: known.join(", ") });
        };
        check_reading(text)?;
        check_files(&message.files)?;
        let name = message.key.unwrap_or_else(|| format!("{}/{message_id}.pdf", message.template));
        check_key(&name).map_err(|problem| MessageError::Key { key: name.clone(), problem })?;
        let key = format!("{output_prefix}{name}");
        check_pdf_key(&key).map_err(|problem| MessageError::Key { key: key.clone(), problem })?;
        let ours = [
            ("message-id", message_id),
            ("message-digest", &message_digest),
            ("template", &message.template),
            ("template-version", &version.version),
            ("template-digest", &version.digest),
            ("pages", PAGES_PLACEHOLDER),
            (E_INVOICE, E_INVOICE_PLACEHOLDER),
            (SENT_TIMESTAMP, SENT_TIMESTAMP_PLACEHOLDER),
        ];
        let mut metadata = checked_metadata(message.metadata, ours)?;
        metadata.remove("pages");
        metadata.remove(E_INVOICE);
        metadata.remove(SENT_TIMESTAMP);
        Ok(Self {
            data: Bytes::copy_from_slice(message.data.get().as_bytes()),
            template: message.template,
            files: message.files,
            key,
            if_exists: message.if_exists,
            respond: message.respond,
            content_disposition: message.filename.as_deref().map(content_disposition).transpose()?,
            metadata,
            sent_timestamp_ms: None,
        })
    }

    /// Returns the same request of a message that was sent at this time.
    #[must_use]
    pub fn with_sent_timestamp(self, sent_timestamp_ms: Option<i64>) -> Self {
        Self { sent_timestamp_ms, ..self }
    }

    /// Whether the object of a message that was sent at this time is to stay where this one would replace it.
    #[must_use]
    pub fn is_superseded_by(&self, sent_timestamp_ms: Option<i64>) -> bool {
        let is_earlier = self.sent_timestamp_ms.zip(sent_timestamp_ms).is_some_and(|(own, other)| own < other);
        is_earlier && self.if_exists == IfExists::Replace
    }

    /// The key of the document's timings, beside the PDF's.
    #[must_use]
    pub fn timings_key(&self) -> String {
        format!("{}{TIMINGS_SUFFIX}", self.key)
    }

    /// Whether an object with this metadata was made from this very message, or from one that says the same by
    /// this very template: a message that was moved back from a dead-letter queue has another id.
    pub fn has_made(&self, metadata: &HashMap<String, String>) -> bool {
        self.agrees_with(metadata, &["message-id", "message-digest"])
            || self.agrees_with(metadata, &["message-digest", "template", "template-digest"])
    }

    /// Whether an object with this metadata was made from this very message by this very template, and so
    /// is what would be made again.
    pub fn would_make(&self, metadata: &HashMap<String, String>) -> bool {
        self.agrees_with(metadata, &["message-id", "message-digest", "template", "template-digest"])
    }

    fn agrees_with(&self, metadata: &HashMap<String, String>, names: &[&str]) -> bool {
        names.iter().all(|name| metadata.get(*name) == self.metadata.get(*name))
    }
}

/// Returns half of a SHA-256 in hexadecimal: enough to tell messages apart, and S3 takes little metadata.
fn digest(message: &str) -> String {
    use std::fmt::Write;
    Sha256::digest(message).iter().take(16).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written to");
        text
    })
}

/// Checks that the message means to serde and to Typst what its author has written.
fn check_reading(message: &str) -> Result<(), MessageError> {
    let Some(misreading) = json::find_misreading(message) else { return Ok(()) };
    match misreading.place.strip_prefix("/data") {
        Some("") => Err(MessageError::MisreadData { place: "at the top".to_owned(), kind: misreading.kind }),
        Some(place) if place.starts_with('/') => {
            Err(MessageError::MisreadData { place: place.to_owned(), kind: misreading.kind })
        }
        _ => Err(MessageError::Misread(misreading)),
    }
}

fn check_files(files: &BTreeMap<String, String>) -> Result<(), MessageError> {
    if files.len() > MAX_FILES {
        return Err(MessageError::TooManyFiles { found: files.len() });
    }
    for (name, key) in files {
        if !is_plain(name) {
            return Err(MessageError::FileName { name: name.clone() });
        }
        check_object_key(key).map_err(|problem| MessageError::FileKey {
            name: name.clone(),
            key: key.clone(),
            problem,
        })?;
    }
    Ok(())
}

/// Whether a name can be nothing but the name of a file.
fn is_plain(name: &str) -> bool {
    let is_plain_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= MAX_FILE_NAME_BYTES
        && name.bytes().all(is_plain_byte)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Returns the message's metadata and pressrun's own, if S3 takes them.
fn checked_metadata(
    given: BTreeMap<String, String>,
    ours: [(&str, &str); 8],
) -> Result<BTreeMap<String, String>, MessageError> {
    let mut metadata: BTreeMap<String, String> =
        ours.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for (name, value) in given {
        // S3 gives names back in lower case: two that differ in case only would be one.
        let lower = name.to_ascii_lowercase();
        if let Some(problem) = metadata_problem(&lower, &value, &metadata) {
            return Err(MessageError::Metadata { name, problem });
        }
        metadata.insert(lower, value);
    }
    if let Some((name, value)) = metadata.iter().find(|(_, value)| !is_printable_ascii(value)) {
        debug_assert!(!value.is_empty());
        return Err(MessageError::Metadata { name: name.clone(), problem: "the value is not printable ASCII" });
    }
    let bytes = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_METADATA_BYTES { Err(MessageError::MetadataTooLarge { bytes }) } else { Ok(metadata) }
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

/// Returns `attachment` with the file's name, as RFC 6266 and RFC 8187 spell it.
fn content_disposition(filename: &str) -> Result<String, MessageError> {
    let is_bad = |character: char| {
        character.is_control() || changes_direction(character) || character == '/' || character == '\\'
    };
    let is_empty = filename.chars().all(|character| character == '.' || character.is_whitespace());
    if is_empty || filename.len() > MAX_FILENAME_BYTES || filename.contains(is_bad) {
        return Err(MessageError::Filename);
    }
    let encoded = percent_encoding::utf8_percent_encode(filename, NOT_ATTR_CHAR);
    Ok(format!("attachment; filename*=UTF-8''{encoded}"))
}

/// Whether a character changes the direction of the text after it, and so can hide what a file's name ends with:
/// Unicode's property `Bidi_Control`.
fn changes_direction(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// All characters but RFC 8187's `attr-char`.
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
mod tests;
