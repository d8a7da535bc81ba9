//! The message contract: what the body of an SQS message has to say, and what it may not. A
//! [`RenderRequest`] exists only if it is valid.
//!
//! Imports [`crate::render`] for the versions of templates, [`crate::json`], [`crate::json_error`] and
//! [`crate::text`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::json::{self, Misreading, MisreadingKind};
use crate::json_error;
use crate::render::TemplateVersions;
use crate::text::{self, Quoted};

/// S3's limit for a key, in bytes. Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>.
const MAX_KEY_BYTES: usize = 1024;
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
/// What is appended to a PDF's key for the key of its timings. No PDF may have a key that ends so.
pub const TIMINGS_SUFFIX: &str = ".timings.json.gz";
/// The most bytes of a list of templates in an error.
const MAX_LIST_BYTES: usize = 1000;
/// The class names that Extended Client Libraries write before a pointer: that of today, and that of Java's up to
/// version 1.0 and of several ports. Java's of today reads both.
const POINTER_CLASSES: [&str; 2] =
    ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"];
/// A text of fewer bytes is not taken for base64, since a word may look like it.
const MIN_BASE64_BYTES: usize = 16;
/// How base64 of anything gzipped begins.
const BASE64_OF_GZIP: &str = "H4sI";

/// A document that a valid message asks for.
///
/// ```
/// use pressrun::message::{ParseContext, RenderRequest};
/// use pressrun::render::{TemplateVersion, TemplateVersions};
///
/// let version = TemplateVersion { version: "1.0.0".to_owned(), digest: "5f3a".to_owned() };
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

/// A body that is plainly of another kind than pressrun's, and that somebody has sent in good faith.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherBody {
    SnsEnvelope,
    EventBridgeEvent,
    S3Notification,
    SqsEvent,
    EncodedTwice,
    Base64,
    Base64OfGzip,
}

impl fmt::Display for OtherBody {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::SnsEnvelope => {
                "the body is an SNS envelope around a message: set RawMessageDelivery to true on the topic's \
                 subscription, so that SNS delivers the message alone"
            }
            Self::EventBridgeEvent => {
                "the body is an EventBridge event: give the rule's target the input path $.detail, or an input \
                 transformer, so that EventBridge delivers the message alone"
            }
            Self::S3Notification => {
                "the body is a notification of S3's that an object has changed, which names no template: send a message, \
                 or a pointer to one as the SQS Extended Client Library writes it"
            }
            Self::SqsEvent => {
                "the body is a whole event of SQS's for Lambda: send what stands in the \"body\" of each of its records"
            }
            Self::EncodedTwice => {
                "the body is a JSON string, where a JSON object is expected: the message has been encoded twice, so \
                 encode it once"
            }
            Self::Base64 => "the body is base64, where JSON is expected: send the JSON text itself",
            Self::Base64OfGzip => {
                "the body is gzipped and in base64, where JSON is expected: send the JSON text itself, or what is too \
                 large for SQS with the SQS Extended Client Library"
            }
        })
    }
}

impl OtherBody {
    /// Tells what a body is that is no message.
    fn of(body: &str) -> Option<Self> {
        let is_base64_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(&byte);
        let body = body.trim();
        if body.len() >= MIN_BASE64_BYTES && body.bytes().all(is_base64_byte) {
            return Some(if body.starts_with(BASE64_OF_GZIP) { Self::Base64OfGzip } else { Self::Base64 });
        }
        if body.starts_with('"') {
            return serde_json::from_str::<IgnoredAny>(body).is_ok().then_some(Self::EncodedTwice);
        }
        let fields: EnvelopeFields = serde_json::from_str(body).ok()?;
        match fields {
            EnvelopeFields { template: Some(_), .. } => None,
            EnvelopeFields { sns_type: Some(_), topic_arn: Some(_), .. } => Some(Self::SnsEnvelope),
            EnvelopeFields { detail_type: Some(_), detail: Some(_), .. } => Some(Self::EventBridgeEvent),
            EnvelopeFields { service: Some(service), .. } if service == "Amazon S3" => Some(Self::S3Notification),
            EnvelopeFields { records: Some(records), .. } => {
                let source = records.first().and_then(|record| record.event_source.as_deref());
                match source {
                    Some("aws:s3") => Some(Self::S3Notification),
                    Some("aws:sqs") => Some(Self::SqsEvent),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// The fields that envelopes of AWS's services are known by.
#[derive(Deserialize)]
struct EnvelopeFields {
    template: Option<IgnoredAny>,
    #[serde(rename = "Type")]
    sns_type: Option<IgnoredAny>,
    #[serde(rename = "TopicArn")]
    topic_arn: Option<IgnoredAny>,
    #[serde(rename = "detail-type")]
    detail_type: Option<IgnoredAny>,
    detail: Option<IgnoredAny>,
    /// S3 sends a test event when notifications are set up.
    #[serde(rename = "Service")]
    service: Option<String>,
    #[serde(rename = "Records")]
    records: Option<Vec<EnvelopeRecord>>,
}

#[derive(Deserialize)]
struct EnvelopeRecord {
    #[serde(rename = "eventSource")]
    event_source: Option<String>,
}

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("is empty")]
    Empty,
    #[error("begins with /, where a key relative to the bucket is expected")]
    Absolute,
    #[error("is longer than S3's {MAX_KEY_BYTES} bytes")]
    TooLong,
    #[error("has a .. between slashes, which tools resolve to other places")]
    Parent,
    #[error("has a control character")]
    Control,
    #[error("ends with /, which names a folder and no object")]
    Folder,
    #[error("ends with {TIMINGS_SUFFIX}, as only the timings beside PDFs do")]
    Timings,
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

/// Checks what becomes a key or the beginning of one.
///
/// # Errors
/// When it is empty, begins with `/`, is too long, has `..` between slashes, or control characters.
pub fn check_key(key: &str) -> Result<(), KeyProblem> {
    if key.is_empty() {
        Err(KeyProblem::Empty)
    } else if key.starts_with('/') {
        Err(KeyProblem::Absolute)
    } else if key.len() > MAX_KEY_BYTES {
        Err(KeyProblem::TooLong)
    } else if key.split('/').any(|part| part == "..") {
        Err(KeyProblem::Parent)
    } else if key.chars().any(char::is_control) {
        Err(KeyProblem::Control)
    } else {
        Ok(())
    }
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

fn check_object_key(key: &str) -> Result<(), KeyProblem> {
    check_key(key)?;
    if key.ends_with('/') { Err(KeyProblem::Folder) } else { Ok(()) }
}

/// Checks the key of a PDF, which must not be where the timings of another PDF would replace it.
fn check_pdf_key(key: &str) -> Result<(), KeyProblem> {
    check_object_key(key)?;
    if key.ends_with(TIMINGS_SUFFIX) { Err(KeyProblem::Timings) } else { Ok(()) }
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
mod tests {
    use super::*;

    fn parse(message: &str) -> Result<RenderRequest, MessageError> {
        let version = crate::render::TemplateVersion { version: "1.2.3".to_owned(), digest: "0".repeat(32) };
        let templates = BTreeMap::from([("invoice".to_owned(), version)]);
        RenderRequest::parse(message, "m-1", ParseContext { templates: &templates, output_prefix: "pdf/" })
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
        let timings = "a.pdf.timings.json.gz";
        for key in ["", "/a.pdf", "../a.pdf", "a/../b.pdf", "a/..", "a\\u0000.pdf", "a\\nb", "a/", &long, timings] {
            let message = format!(r#"{{"template": "invoice", "data": 1, "key": "{key}"}}"#);
            assert!(matches!(parse(&message).unwrap_err(), MessageError::Key { .. }), "{key}");
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
            assert!(matches!(with(bad).unwrap_err(), MessageError::FileName { .. }), "{bad}");
        }
        for bad in ["", "/a", "../a", "a/"] {
            let files = format!(r#"{{"a.png": "{bad}"}}"#);
            assert!(matches!(with(&files).unwrap_err(), MessageError::FileKey { .. }), "{bad}");
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
        let bad = [
            "",
            ".",
            "..",
            "  ",
            " .",
            "a\u{202e}fdp.exe",
            "a\u{2066}b",
            "a/b.pdf",
            "a\\\\b.pdf",
            "a\\r\\nSet-Cookie: x",
        ];
        for bad in bad {
            let message = format!(r#"{{"template": "invoice", "data": 1, "filename": "{bad}"}}"#);
            assert!(matches!(parse(&message).unwrap_err(), MessageError::Filename), "{bad}");
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
            assert!(matches!(with(name, value).unwrap_err(), MessageError::Metadata { .. }), "{name}: {value}");
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
            + "sent-timestamp".len()
            + 13
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
    fn a_name_that_stands_twice_is_refused_with_its_place() {
        for (message, expected) in [
            (
                r#"{"template": "invoice", "data": {"lines": [{"a": 1, "a": 2}]}}"#,
                "the data cannot be used: /lines/0/a: the name stands twice in its object, and only one of the two would \
                 be read",
            ),
            (
                r#"{"template": "invoice", "data": 1, "metadata": {"a": "1", "a": "2"}}"#,
                "the message at /metadata/a: the name stands twice in its object, and only one of the two would be read",
            ),
            (
                r#"{"template": "invoice", "data": 1, "files": {"a": "1", "\u0061": "2"}}"#,
                "the message at /files/a: the name stands twice in its object, and only one of the two would be read",
            ),
            (
                r#"{"template": "invoice", "data": 1, "data": 2}"#,
                "the message does not match the contract: duplicate field `data` at line 1 column 41",
            ),
        ] {
            assert_eq!(refused(message), expected);
        }
    }

    #[test]
    fn a_whole_number_beyond_64_bits_is_refused_with_its_place() {
        let with = |data: &str| parse(&format!(r#"{{"template": "invoice", "data": {data}}}"#));
        let at = |data: &str| match with(data).unwrap_err() {
            MessageError::MisreadData { place, kind: MisreadingKind::WholeNumberTooLarge } => place,
            other => panic!("{other}"),
        };
        assert_eq!(at(r#"{"id": 12345678901234567890}"#), "/id");
        assert_eq!(at("12345678901234567890"), "at the top");
        assert!(with(r#"{"id": "12345678901234567890", "max": 9223372036854775807, "x": 1.5e30}"#).is_ok());
    }

    #[test]
    fn what_is_plainly_another_kind_of_body_is_named() {
        let sns = r#"{"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:eu-central-1:1:t", "Message": "{}"}"#;
        let event =
            r#"{"version": "0", "id": "e", "detail-type": "Invoice", "source": "shop", "detail": {"template": "x"}}"#;
        let object_created =
            r#"{"Records": [{"eventVersion": "2.1", "eventSource": "aws:s3", "s3": {"object": {"key": "k"}}}]}"#;
        let s3_test = r#"{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}"#;
        let sqs = r#"{"Records": [{"messageId": "m", "body": "{}", "eventSource": "aws:sqs"}]}"#;
        for (body, expected) in [
            (sns, OtherBody::SnsEnvelope),
            (event, OtherBody::EventBridgeEvent),
            (object_created, OtherBody::S3Notification),
            (s3_test, OtherBody::S3Notification),
            (sqs, OtherBody::SqsEvent),
            (r#""{\"template\": \"invoice\"}""#, OtherBody::EncodedTwice),
            ("eyJ0ZW1wbGF0ZSI6ICJpbnZvaWNlIn0=", OtherBody::Base64),
            ("H4sIAAAAAAAAA6tWKkktLlGyUlAqS8wpTVWqBQBBLTSsFAAAAA==", OtherBody::Base64OfGzip),
        ] {
            let error = parse(body).unwrap_err();
            assert!(matches!(error, MessageError::OtherBody(other) if other == expected), "{body}: {error}");
        }
        // And what only resembles them is told as it is.
        for body in
            ["hello", "letter", "{}", r#"{"template": "invoice", "Type": 1, "TopicArn": 2}"#, r#"{"Records": 1}"#]
        {
            assert!(matches!(parse(body).unwrap_err(), MessageError::Malformed(_)), "{body}");
        }
        assert!(refused(sns).contains("RawMessageDelivery"));
    }

    #[test]
    fn a_byte_order_mark_changes_nothing() {
        let message = r#"{"template": "invoice", "data": {"a": 1}}"#;
        let marked = format!("\u{feff}{message}");
        let (plain, marked) = (parse(message).unwrap(), parse(&marked).unwrap());
        assert_eq!((plain.data, plain.metadata), (marked.data, marked.metadata));
        assert_eq!(Body::parse("\u{feff}{}").unwrap(), Body::Message("{}"));
        let pointer =
            "\u{feff}[\"software.amazon.payloadoffloading.PayloadS3Pointer\",{\"s3BucketName\":\"b\",\"s3Key\":\"k\"}]";
        assert!(matches!(Body::parse(pointer).unwrap(), Body::Pointer(_)));
    }

    #[test]
    fn an_error_is_short_however_long_what_it_quotes() {
        let long = "x".repeat(900_000);
        for message in [
            format!(r#"{{"template": "{long}", "data": 1}}"#),
            format!(r#"{{"template": "invoice", "data": 1, "key": "{long}"}}"#),
            format!(r#"{{"template": "invoice", "data": 1, "{long}": 1}}"#),
            format!(r#"{{"template": "invoice", "data": 1, "files": {{"{long}": "k"}}}}"#),
            format!(r#"{{"template": "invoice", "data": 1, "files": {{"a": "{long}"}}}}"#),
            format!(r#"{{"template": "invoice", "data": 1, "metadata": {{"{long} ": "k"}}}}"#),
            format!(r#"{{"template": "invoice", "data": 1, "if_exists": "{long}"}}"#),
            format!(r#"{{"template": "invoice", "data": {{"{long}": 1, "{long}": 1}}}}"#),
        ] {
            assert!(refused(&message).len() < 2000, "{}", &message[..100]);
        }
    }

    #[test]
    fn a_pointer_is_told_from_a_message() {
        let pointer = || Body::Pointer(Pointer { bucket: "in".to_owned(), key: "k".to_owned() });
        for class in POINTER_CLASSES {
            let body = format!(r#"["{class}",{{"s3BucketName":"in","s3Key":"k"}}]"#);
            assert_eq!(Body::parse(&body).unwrap(), pointer());
        }
        assert_eq!(Body::parse("{}").unwrap(), Body::Message("{}"));
        for body in ["[]", "[1, 2]", r#"["other.Class",{"s3BucketName":"in","s3Key":"k"}]"#] {
            assert!(matches!(Body::parse(body).unwrap_err(), MessageError::NotAPointer), "{body}");
        }
    }
}
