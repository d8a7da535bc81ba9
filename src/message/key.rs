//! What a key in S3 may be.

/// S3's limit for a key, in bytes. Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>.
pub(super) const MAX_KEY_BYTES: usize = 1024;
/// What is appended to a PDF's key for the key of its timings. No PDF may have a key that ends so.
pub const TIMINGS_SUFFIX: &str = ".timings.json.gz";

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

pub(super) fn check_object_key(key: &str) -> Result<(), KeyProblem> {
    check_key(key)?;
    if key.ends_with('/') { Err(KeyProblem::Folder) } else { Ok(()) }
}

/// Checks the key of a PDF, which must not be where the timings of another PDF would replace it.
pub(super) fn check_pdf_key(key: &str) -> Result<(), KeyProblem> {
    check_object_key(key)?;
    if key.ends_with(TIMINGS_SUFFIX) { Err(KeyProblem::Timings) } else { Ok(()) }
}
