//! What is wrong with a template, its fonts or its packages.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong with a template. It is found at init, and so when a function is deployed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct TemplateError {
    path: PathBuf,
    problem: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl TemplateError {
    pub(super) fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self { path: path.to_owned(), problem: problem.into(), source: None }
    }

    pub(super) fn read(path: &Path, error: io::Error) -> Self {
        Self { path: path.to_owned(), problem: format!("cannot be read: {error}"), source: Some(error.into()) }
    }
}

/// All that is wrong with the templates of a folder.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct TemplateErrors(pub Vec<TemplateError>);
