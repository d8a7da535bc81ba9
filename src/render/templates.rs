//! A template: a folder that is an ordinary Typst project with a manifest, `typst.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use typst::Library;
use typst::LibraryExt;
use typst::foundations::{Dict, IntoValue};
use typst::syntax::{FileId, RootedPath, VirtualPath, VirtualRoot};
use typst::text::Font;
use typst::utils::LazyHash;
use typst_kit::files::FileStore;
use typst_kit::fonts::FontStore;

use super::digest;
use super::files::{self, Files};
use super::font_coverage::NamedFonts;
use super::fonts;
use super::manifest::{self, Manifest};
use super::schema::Schema;
use super::template_error::TemplateError;
use crate::json;

/// The file, at the template's root, that a document's data are served as. `sys.inputs.data` is its name.
const DATA_FILE: &str = "data.json";
/// The usual name of a schema's file.
const SCHEMA_FILE: &str = "schema.json";
const SAMPLE_FILE: &str = "sample.json";
/// The folders beside the templates that are not templates.
const NOT_TEMPLATES: [&str; 2] = ["fonts", "packages"];
/// The extensions of files that may name a font.
const TEXT_FILES: [&str; 5] = ["typ", "json", "toml", "yaml", "yml"];

/// A template that has been loaded.
pub(super) struct Template {
    pub name: String,
    pub manifest: Manifest,
    /// The digest of everything that its documents are made from beside their data.
    pub digest: String,
    pub schema: Option<Schema>,
    pub library: LazyHash<Library>,
    pub main: FileId,
    pub data: FileId,
    pub files: FileStore<Files>,
    /// The fonts of all templates and those in the template's own folder.
    pub fonts: Arc<FontStore>,
    pub named_fonts: NamedFonts,
    pub sample: bytes::Bytes,
    /// The files that come with the sample, as others come with a message.
    pub sample_files: BTreeMap<String, bytes::Bytes>,
}

/// The fonts of all templates.
pub(super) struct CommonFonts {
    fonts: Vec<Font>,
    store: Arc<FontStore>,
}

impl CommonFonts {
    pub fn new(fonts: Vec<Font>) -> Self {
        Self { store: Arc::new(fonts::store(&fonts)), fonts }
    }

    /// Returns these fonts and others.
    fn with(&self, others: &[Font]) -> Arc<FontStore> {
        if others.is_empty() { self.store.clone() } else { Arc::new(fonts::store(self.fonts.iter().chain(others))) }
    }
}

/// Finds the folders below `dir` that are templates, by name.
pub(super) fn find(dir: &Path) -> Result<BTreeMap<String, PathBuf>, TemplateError> {
    let mut templates = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|error| TemplateError::read(dir, error))? {
        let path = entry.map_err(|error| TemplateError::read(dir, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(TemplateError::new(&path, "a template's name has to be UTF-8"));
        };
        if path.is_dir() && !name.starts_with('.') && !NOT_TEMPLATES.contains(&name) {
            templates.insert(name.to_owned(), path);
        }
    }
    if templates.is_empty() {
        return Err(TemplateError::new(dir, "holds no template: a folder with a typst.toml is expected"));
    }
    Ok(templates)
}

/// Loads the template in the folder `dir`. `common` is the digest of what all templates share.
pub(super) fn load(name: &str, dir: &Path, fonts: &CommonFonts, common: u128) -> Result<Template, TemplateError> {
    let manifest = manifest::load(dir)?;
    let main = main_file(dir, &manifest)?;
    let schema = load_schema(dir, &manifest)?;
    let sample_path = dir.join(SAMPLE_FILE);
    let sample = fs::read(&sample_path).map_err(|error| TemplateError::read(&sample_path, error))?;
    let sample = json::bytes_without_byte_order_mark(&sample).to_vec();
    let files = files::load_project(dir)?;
    let fonts = fonts.with(&fonts::of_template(dir, &files)?);
    Ok(Template {
        name: name.to_owned(),
        manifest,
        digest: digest::of_template(&files, common),
        schema,
        library: LazyHash::new(library()),
        main,
        data: file_id(DATA_FILE).expect("a plain name is a path"),
        named_fonts: NamedFonts::find(fonts.book(), texts(&files)),
        fonts,
        sample: sample.into(),
        sample_files: sample_files(&files),
        files: FileStore::new(files),
    })
}

fn main_file(dir: &Path, manifest: &Manifest) -> Result<FileId, TemplateError> {
    let path = dir.join(&manifest.entrypoint);
    let id = file_id(&manifest.entrypoint).ok_or("lies outside of the template's folder, where it is expected");
    let id = id.map_err(|problem| TemplateError::new(&path, format!("the entrypoint {problem}")))?;
    if path.is_file() {
        Ok(id)
    } else {
        Err(TemplateError::new(&path, "the entrypoint that typst.toml names is not there"))
    }
}

fn load_schema(dir: &Path, manifest: &Manifest) -> Result<Option<Schema>, TemplateError> {
    let unused = dir.join(SCHEMA_FILE);
    match &manifest.schema {
        Some(path) if file_id(path).is_none() => {
            let problem = "lies outside of the template's folder, where the schema is expected";
            Err(TemplateError::new(&dir.join(path), problem))
        }
        Some(path) => Schema::load(&dir.join(path)).map(Some),
        // The section's name may be misspelt, and everything in it would be ignored.
        None if unused.is_file() => Err(TemplateError::new(
            &unused,
            "is not used: typst.toml has to name it, with schema = \"schema.json\" under [tool.pressrun]",
        )),
        None => Ok(None),
    }
}

fn texts(files: &Files) -> impl Iterator<Item = &str> {
    let is_text = |path: &str| {
        Path::new(path).extension().is_some_and(|extension| TEXT_FILES.iter().any(|text| extension == *text))
    };
    files.iter().filter(move |(path, _)| is_text(path)).filter_map(|(_, content)| content.as_str().ok())
}

fn sample_files(files: &Files) -> BTreeMap<String, bytes::Bytes> {
    let named = files.iter().filter_map(|(path, content)| Some((files::file_of_message(path)?, content)));
    named.map(|(name, content)| (name.to_owned(), bytes::Bytes::from_owner(content.clone()))).collect()
}

/// Returns a library that is the same for every document of every template, since it is part of the key of what
/// Typst memoizes.
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
    /// Returns a file's name in diagnostics: its path below the templates folder, as its author knows it.
    pub(super) fn file_name(&self, id: FileId) -> String {
        let path = id.vpath().get_without_slash();
        match id.root() {
            VirtualRoot::Project => format!("{}/{path}", self.name),
            VirtualRoot::Package(package) => format!("{package}/{path}"),
        }
    }

    /// Returns the name of the sample's data in diagnostics.
    pub(super) fn sample_name(&self) -> String {
        format!("{}/{SAMPLE_FILE}", self.name)
    }

    /// Returns the name in diagnostics of a file that comes with the sample.
    pub(super) fn sample_file(&self, name: &str) -> String {
        format!("{}/{}", self.name, files::path_of_file(name))
    }
}
