//! A template: a folder that is an ordinary Typst project, described by its `typst.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use typst::Library;
use typst::LibraryExt;
use typst::foundations::{Dict, IntoValue};
use typst::syntax::package::{PackageManifest, PackageVersion};
use typst::syntax::{FileId, RootedPath, VirtualPath, VirtualRoot};
use typst::utils::LazyHash;
use typst_kit::files::FileStore;
use typst_pdf::{PdfStandard, PdfStandards};

use super::files::{self, Files};
use super::template_error::TemplateError;

/// The file that a document's data are served as, at the template's root. `sys.inputs.data`
/// holds this name.
const DATA_FILE: &str = "data.json";
const MANIFEST_FILE: &str = "typst.toml";
const SAMPLE_FILE: &str = "sample.json";
/// Folders beside the templates that are not templates.
const NOT_TEMPLATES: [&str; 2] = ["fonts", "packages"];

/// A template, loaded.
pub(super) struct Template {
    pub name: String,
    pub version: PackageVersion,
    pub library: LazyHash<Library>,
    pub main: FileId,
    pub data: FileId,
    pub files: FileStore<Files>,
    pub standards: PdfStandards,
    pub tagged: bool,
    pub sample: Vec<u8>,
}

/// The `[tool.pressrun]` section of a manifest.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PressrunSection {
    /// The JSON Schema of the data, a path in the template's folder.
    schema: Option<String>,
    #[serde(default)]
    standards: Vec<PdfStandard>,
    tagged: Option<bool>,
}

/// Loads every template below `dir`.
pub(super) fn load(dir: &Path) -> Result<BTreeMap<String, Template>, TemplateError> {
    let mut templates = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|error| TemplateError::read(dir, error))? {
        let path = entry.map_err(|error| TemplateError::read(dir, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(TemplateError::new(&path, "a template's name has to be UTF-8"));
        };
        if !path.is_dir() || name.starts_with('.') || NOT_TEMPLATES.contains(&name) {
            continue;
        }
        templates.insert(name.to_owned(), load_template(name, &path)?);
    }
    if templates.is_empty() {
        return Err(TemplateError::new(dir, format!("holds no template: a folder with a {MANIFEST_FILE} is expected")));
    }
    Ok(templates)
}

fn load_template(name: &str, dir: &Path) -> Result<Template, TemplateError> {
    let manifest_path = dir.join(MANIFEST_FILE);
    let text = fs::read_to_string(&manifest_path).map_err(|error| TemplateError::read(&manifest_path, error))?;
    let mut manifest: PackageManifest =
        toml::from_str(&text).map_err(|error| TemplateError::new(&manifest_path, error.to_string()))?;
    let section = pressrun_section(&mut manifest)
        .map_err(|error| TemplateError::new(&manifest_path, format!("[tool.pressrun]: {error}")))?;
    if let Some(schema) = &section.schema {
        let schema_path = dir.join(schema);
        fs::metadata(&schema_path).map_err(|error| TemplateError::read(&schema_path, error))?;
    }
    let standards = PdfStandards::new(&section.standards).map_err(|error| {
        TemplateError::new(&manifest_path, format!("[tool.pressrun] standards: {}", error.message()))
    })?;
    let main = file_id(&manifest.package.entrypoint).ok_or_else(|| {
        TemplateError::new(&manifest_path, "entrypoint has to be a path inside the template's folder")
    })?;
    let sample_path = dir.join(SAMPLE_FILE);
    let sample = fs::read(&sample_path).map_err(|error| TemplateError::read(&sample_path, error))?;
    Ok(Template {
        name: name.to_owned(),
        version: manifest.package.version,
        library: LazyHash::new(library()),
        main,
        data: file_id(DATA_FILE).expect("a plain name is a path"),
        files: files::load_project(dir)?,
        standards,
        tagged: section.tagged.unwrap_or(true),
        sample,
    })
}

fn pressrun_section(manifest: &mut PackageManifest) -> Result<PressrunSection, toml::de::Error> {
    manifest
        .tool
        .sections
        .remove("pressrun")
        .map_or_else(|| Ok(PressrunSection::default()), PressrunSection::deserialize)
}

/// The same for every document of every template: it is part of the key of what Typst memoizes.
fn library() -> Library {
    let mut inputs = Dict::new();
    inputs.insert("data".into(), DATA_FILE.into_value());
    Library::builder().with_inputs(inputs).build()
}

fn file_id(path: &str) -> Option<FileId> {
    let path = VirtualPath::new(path).ok()?;
    Some(RootedPath::new(VirtualRoot::Project, path).intern())
}

impl Template {
    /// How a file is called in diagnostics: below the templates folder, as its author knows it.
    pub(super) fn file_name(&self, id: FileId) -> String {
        let path = id.vpath().get_without_slash();
        match id.root() {
            VirtualRoot::Project => format!("{}/{path}", self.name),
            VirtualRoot::Package(package) => format!("{package}/{path}"),
        }
    }
}
