//! A template: a folder that is an ordinary Typst project with a manifest, `typst.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
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
use super::manifest::{self, MANIFEST_FILE, Manifest, SCHEMA_FILE};
use super::schema::Schema;
use super::spaces;
use super::template_error::TemplateError;
use crate::json;

/// The file that a document's data are served as. `sys.inputs.data` is its name: an absolute one, since the
/// template may read it from any of its folders, and hidden, since no hidden file is a template's.
const DATA_FILE: &str = "/.pressrun/data.json";
/// The files that say which part of a document is rendered, and where its pages stand, for templates with `parts`.
const PART_FILE: &str = "/.pressrun/part.json";
const PAGES_FILE: &str = "/.pressrun/pages.json";
const SAMPLE_FILE: &str = "sample.json";
/// The folders beside the templates that are not templates.
const NOT_TEMPLATES: [&str; 2] = ["fonts", "packages"];
/// What other programs leave beside templates: npm, and macOS in archives.
const OF_OTHERS: [&str; 2] = ["node_modules", "__MACOSX"];
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
    /// The same for documents with characters that mean a space and are none.
    pub library_with_spaces: LazyHash<Library>,
    pub main: FileId,
    pub data: FileId,
    pub part: FileId,
    pub pages: FileId,
    pub files: FileStore<Files>,
    /// The fonts of all templates and those in the template's own folder.
    pub fonts: Arc<FontStore>,
    pub named_fonts: NamedFonts,
    pub sample: bytes::Bytes,
    /// The files that come with the sample, as others come with a message.
    pub sample_files: BTreeMap<String, bytes::Bytes>,
    /// The fonts in the template's folder that Typst does not read, and why.
    pub unread_fonts: Vec<String>,
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

/// The folders beside each other that are templates, and those that are not.
#[derive(Default)]
pub(super) struct Folders {
    pub templates: BTreeMap<String, PathBuf>,
    /// Each with the reason why it is skipped.
    pub skipped: Vec<String>,
}

/// Finds the folders below `dir` that are templates, by name.
pub(super) fn find(dir: &Path) -> Result<Folders, TemplateError> {
    let mut found = Folders::default();
    for entry in fs::read_dir(dir).map_err(|error| TemplateError::read(dir, error))? {
        let path = entry.map_err(|error| TemplateError::read(dir, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(TemplateError::new(&path, "a template's name has to be UTF-8"));
        };
        if !path.is_dir() || name.starts_with('.') || NOT_TEMPLATES.contains(&name) {
            continue;
        }
        if OF_OTHERS.contains(&name) {
            found.skipped.push(format!("{}: skipped, it is another program's", path.display()));
        } else if path.join(MANIFEST_FILE).exists() || first_typst_file(&path).is_some() {
            found.templates.insert(name.to_owned(), path);
        } else {
            let why = "skipped, it is no template: it has neither a typst.toml nor a .typ file";
            found.skipped.push(format!("{}: {why}", path.display()));
        }
    }
    found.skipped.sort();
    if found.templates.is_empty() {
        let expected = "holds no template: a folder with a main.typ and a sample.json is expected";
        return Err(TemplateError::new(dir, [&[expected.to_owned()], &found.skipped[..]].concat().join("; ")));
    }
    Ok(found)
}

/// Finds a Typst file below `dir`, one in the folder itself before those in others.
fn first_typst_file(dir: &Path) -> Option<PathBuf> {
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let paths = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| !is_hidden(path) && !path.is_symlink()).collect();
    paths.sort_by_key(|path| (path.is_dir(), path.clone()));
    paths.into_iter().find_map(|path| match path.extension() {
        _ if path.is_dir() => first_typst_file(&path),
        Some(extension) if extension == "typ" => Some(path),
        _ => None,
    })
}

/// Loads the template in the folder `dir`. `common` is the digest of what all templates share.
pub(super) fn load(name: &str, dir: &Path, fonts: &CommonFonts, common: u128) -> Result<Template, TemplateError> {
    let manifest = manifest::load(name, dir)?;
    let main = main_file(dir, &manifest)?;
    let schema = load_schema(dir, &manifest)?;
    let sample = load_sample(dir)?;
    let files = files::load_project(dir)?;
    let fonts = fonts.with(&fonts::of_template(dir, &files)?);
    let unread_fonts = files.iter().map(|(path, _)| dir.join(path)).filter_map(|path| fonts::why_not_read(&path));
    let unread_fonts = unread_fonts.collect();
    let own_file = |path| file_id(path).expect("a plain name is a path");
    Ok(Template {
        name: name.to_owned(),
        digest: digest::of_template(&files, common),
        schema,
        library: LazyHash::new(library(&manifest)),
        library_with_spaces: LazyHash::new(spaces::with_spaces(library(&manifest))),
        manifest,
        main,
        data: own_file(DATA_FILE),
        part: own_file(PART_FILE),
        pages: own_file(PAGES_FILE),
        named_fonts: NamedFonts::find(fonts.book(), texts(&files)),
        fonts,
        sample,
        sample_files: sample_files(&files),
        unread_fonts,
        files: FileStore::new(files),
    })
}

fn main_file(dir: &Path, manifest: &Manifest) -> Result<FileId, TemplateError> {
    let path = dir.join(&manifest.entrypoint);
    let id = file_id(&manifest.entrypoint).ok_or("lies outside of the template's folder, where it is expected");
    let id = id.map_err(|problem| TemplateError::new(&path, format!("the entrypoint {problem}")))?;
    if path.is_file() {
        return Ok(id);
    }
    let other = first_typst_file(dir).and_then(|file| Some(file.strip_prefix(dir).ok()?.display().to_string()));
    let other = other.unwrap_or_else(|| "main.typ".to_owned());
    let problem = if dir.join(MANIFEST_FILE).is_file() {
        "the entrypoint that typst.toml names is not there; write it, or name another under [package]"
    } else {
        "is not there; write it, or a typst.toml that names the file to compile under [package]"
    };
    Err(TemplateError::new(&path, format!("{problem}, as entrypoint = \"{other}\"")))
}

/// Reads the sample's data, without the mark that some editors put before text.
fn load_sample(dir: &Path) -> Result<bytes::Bytes, TemplateError> {
    let path = dir.join(SAMPLE_FILE);
    match fs::read(&path) {
        Ok(sample) => Ok(bytes::Bytes::copy_from_slice(json::bytes_without_byte_order_mark(&sample))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(TemplateError::new(
            &path,
            "is not there; write data such as a message brings, as {\"name\": \"Ada\"}: they are rendered at init, \
             so that the first message finds everything warm",
        )),
        Err(error) => Err(TemplateError::read(&path, error)),
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

/// Returns a library that is the same for every document of a template, since it is part of the key of what Typst
/// memoizes.
fn library(manifest: &Manifest) -> Library {
    let mut inputs = Dict::new();
    inputs.insert("data".into(), DATA_FILE.into_value());
    if manifest.parts.is_some() {
        inputs.insert("part".into(), PART_FILE.into_value());
        inputs.insert("pages".into(), PAGES_FILE.into_value());
    }
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

    /// The texts of the template's own Typst files.
    pub(super) fn sources(&self) -> impl Iterator<Item = &str> {
        self.files.loader().sources()
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
