//! Typst's diagnostics of a document, as data that can be sent to the function and as the text that Typst's
//! command line prints.

use std::fmt;

use serde::{Deserialize, Serialize};
use typst::diag::{Severity, SourceDiagnostic};
use typst::ecow::{EcoString, EcoVec};
use typst::syntax::{DiagSpan, Spanned};
use typst::{World, WorldExt};
use typst_kit::diagnostics::termcolor::NoColor;
use typst_kit::diagnostics::{DiagnosticFormat, DiagnosticWorld, emit};

use super::world::DocumentWorld;

/// The most diagnostics that are described: they have to fit into one frame.
const MAX_DIAGNOSTICS: usize = 10;
/// The most hints of a diagnostic.
const MAX_HINTS: usize = 5;
/// The longest text of a diagnostic, in bytes.
const MAX_TEXT_BYTES: usize = 1500;
/// The longest message or hint, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 500;

/// Options of Typst's command line. Hints that name them do not help here.
const ONLY_FOR_A_COMMAND_LINE: [&str; 2] = ["--root", "--features"];

/// An error or a warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub is_error: bool,
    pub message: String,
    /// The file, if Typst knows it: the template's folder and the file in it, as in `invoice/main.typ`.
    pub file: Option<String>,
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// The column in characters, counted from 0, as Typst's compiler prints it.
    pub column: Option<usize>,
    pub hints: Vec<String>,
    /// The whole diagnostic as Typst's compiler prints it, with the source line and a caret.
    pub text: String,
}

impl Diagnostic {
    /// An error in the data, or in a file that comes with them.
    pub(crate) fn in_data(message: &str, file: Option<&str>) -> Self {
        let message = shortened(message, MAX_MESSAGE_BYTES);
        let place = file.map(|file| format!("{file}: ")).unwrap_or_default();
        let text = format!("error: {place}{message}");
        let file = file.map(str::to_owned);
        Self { is_error: true, message, file, line: None, column: None, hints: Vec::new(), text }
    }

    /// A diagnostic of what is done to a PDF, which has no place in a file.
    pub(super) fn plain(diagnostic: &SourceDiagnostic) -> Self {
        let is_error = diagnostic.severity == Severity::Error;
        let message = shortened(&diagnostic.message, MAX_MESSAGE_BYTES);
        let text = format!("{}: {message}", if is_error { "error" } else { "warning" });
        Self { is_error, message, file: None, line: None, column: None, hints: Vec::new(), text }
    }
}

impl fmt::Display for Diagnostic {
    /// Formats place, message and hints in one line.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let (Some(file), Some(line), Some(column)) = (&self.file, self.line, self.column) {
            write!(f, "{file}:{line}:{column}: ")?;
        }
        write!(f, "{}: {}", if self.is_error { "error" } else { "warning" }, self.message)?;
        self.hints.iter().try_for_each(|hint| write!(f, " (hint: {hint})"))
    }
}

/// Describes the first few diagnostics, errors before warnings.
pub(super) fn describe(world: &DocumentWorld, mut diagnostics: Vec<SourceDiagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort_by_key(|diagnostic| diagnostic.severity != Severity::Error);
    diagnostics.truncate(MAX_DIAGNOSTICS);
    if diagnostics.is_empty() {
        return Vec::new();
    }
    diagnostics.into_iter().map(|diagnostic| describe_one(world, diagnostic)).collect()
}

/// Takes the message's values out of what Typst says. To be done before anything is added to it that is not
/// Typst's.
pub(super) fn redact(world: &DocumentWorld, diagnostics: &mut EcoVec<SourceDiagnostic>) {
    if diagnostics.is_empty() {
        return;
    }
    let Some(redaction) = world.redaction() else { return };
    // Errors come before warnings, and so many are described at most.
    diagnostics.truncate(MAX_DIAGNOSTICS);
    for diagnostic in diagnostics.make_mut() {
        diagnostic.message = redaction.redact(&diagnostic.message).into();
        for hint in diagnostic.hints.make_mut() {
            hint.v = redaction.redact(&hint.v).into();
        }
    }
}

fn describe_one(world: &DocumentWorld, mut diagnostic: SourceDiagnostic) -> Diagnostic {
    // A place in what a message brings would be quoted with the hint.
    let is_quoted = |hint: &Spanned<EcoString, DiagSpan>| hint.span.id().is_some_and(|id| world.is_of_message(id));
    diagnostic
        .hints
        .retain(|hint| !is_quoted(hint) && !ONLY_FOR_A_COMMAND_LINE.iter().any(|option| hint.v.contains(option)));
    let place = diagnostic.span.id().zip(world.range(diagnostic.span));
    let (line, column) = place
        .as_ref()
        .and_then(|(id, range)| world.file(*id).ok()?.lines().ok()?.byte_to_line_column(range.start))
        .unzip();
    Diagnostic {
        is_error: diagnostic.severity == Severity::Error,
        message: shortened(&diagnostic.message, MAX_MESSAGE_BYTES),
        file: place.map(|(id, _)| world.name(id)),
        line: line.map(|line| line + 1),
        column,
        hints: diagnostic.hints.iter().take(MAX_HINTS).map(|hint| shortened(&hint.v, MAX_MESSAGE_BYTES)).collect(),
        text: shortened(&as_typst_prints_it(world, &diagnostic), MAX_TEXT_BYTES),
    }
}

fn as_typst_prints_it(world: &DocumentWorld, diagnostic: &SourceDiagnostic) -> String {
    // An excerpt of what a message brings would put a customer's data into the log.
    let is_of_message = diagnostic.span.id().is_some_and(|id| world.is_of_message(id));
    let format = if is_of_message { DiagnosticFormat::Short } else { DiagnosticFormat::Human };
    let mut text = NoColor::new(Vec::new());
    if emit(&mut text, world, [diagnostic], format).is_err() {
        return diagnostic.message.to_string();
    }
    String::from_utf8_lossy(&text.into_inner()).trim_end().to_owned()
}

/// Shortens a list to so many bytes of JSON, which may be six for one byte of text. The first diagnostic stays
/// in any case, if need be with nothing but its message.
pub fn truncate(diagnostics: &mut Vec<Diagnostic>, max_json_bytes: usize) {
    let mut json_bytes = 2;
    let fitting = diagnostics.iter().take_while(|diagnostic| {
        json_bytes += 1 + serde_json::to_vec(diagnostic).map_or(usize::MAX / 2, |json| json.len());
        json_bytes <= max_json_bytes
    });
    let count = fitting.count();
    diagnostics.truncate(count.max(1));
    if count == 0
        && let Some(first) = diagnostics.first_mut()
    {
        truncate_text(&mut first.message, MAX_MESSAGE_BYTES);
        first.text = first.message.clone();
        first.hints = Vec::new();
        first.file = None;
    }
}

/// Shortens a text to so many bytes and an ellipsis.
pub fn truncate_text(text: &mut String, max_bytes: usize) {
    *text = shortened(text, max_bytes);
}

fn shortened(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max_bytes)])
}
