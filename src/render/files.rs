//! The files that documents may read. All are loaded at init; no file is opened afterwards.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use typst::diag::{FileError, FileResult, PackageError};
use typst::ecow::eco_format;
use typst::foundations::Bytes;
use typst::syntax::package::PackageSpec;
use typst::syntax::{FileId, RootedPath, VirtualPath, VirtualRoot};
use typst::utils::hash128;
use typst_kit::files::FileLoader;

use super::template_error::TemplateError;

/// The folder, at a template's root, in which a template finds the files of a message. The files that lie there
/// in the template itself come with its sample.
const FILES_FOLDER: &str = "files/";

/// Files in memory. Typst's own `FileStore` around it keeps what it has parsed.
pub(super) struct Files {
    contents: HashMap<FileId, Bytes>,
    /// The folder that packages were loaded from.
    packages_dir: PathBuf,
}

impl FileLoader for Files {
    fn load(&self, id: FileId) -> FileResult<Bytes> {
        self.contents.get(&id).cloned().ok_or_else(|| match id.root() {
            VirtualRoot::Project => FileError::NotFound(id.vpath().get_without_slash().into()),
            VirtualRoot::Package(package) if self.has_package(package) => {
                FileError::NotFound(format!("{package}/{}", id.vpath().get_without_slash()).into())
            }
            VirtualRoot::Package(package) => FileError::Package(self.no_package(package)),
        })
    }
}

impl Files {
    fn new(packages_dir: PathBuf) -> Self {
        Self { contents: HashMap::new(), packages_dir }
    }

    fn has_package(&self, package: &PackageSpec) -> bool {
        self.contents.keys().any(|id| matches!(id.root(), VirtualRoot::Package(other) if other == package))
    }

    fn no_package(&self, package: &PackageSpec) -> PackageError {
        let PackageSpec { namespace, name, version } = package;
        let dir = self.packages_dir.join(namespace.as_str()).join(name.as_str()).join(version.to_string());
        PackageError::Other(Some(eco_format!("{package} is not there: it was looked for in {}", dir.display())))
    }

    /// The digest of the names and contents of all files.
    pub fn digest(&self) -> u128 {
        let mut files: Vec<_> = self.contents.iter().map(|(id, content)| (hash128(id.get()), content)).collect();
        files.sort_unstable_by_key(|(name, _)| *name);
        hash128(&files)
    }

    /// The texts of Typst's files.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        let is_source = |id: &FileId| id.vpath().extension() == Some("typ");
        let sources = self.contents.iter().filter(move |(id, _)| is_source(id));
        sources.filter_map(|(_, content)| content.as_str().ok())
    }

    /// The files in the order of their paths, which have no leading slash.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let mut files: Vec<_> =
            self.contents.iter().map(|(id, content)| (id.vpath().get_without_slash(), content)).collect();
        files.sort_unstable_by_key(|(path, _)| *path);
        files.into_iter()
    }
}

/// Returns the name of the message's file that a path in the template stands for, if it does.
pub(super) fn file_of_message(path: &str) -> Option<&str> {
    path.strip_prefix(FILES_FOLDER)
}

/// Returns the path in the template that stands for a message's file.
pub(super) fn path_of_file(name: &str) -> String {
    format!("{FILES_FOLDER}{name}")
}

/// Loads a template's own files.
pub(super) fn load_project(dir: &Path) -> Result<Files, TemplateError> {
    let mut files = Files::new(PathBuf::new());
    read_folder(&mut files, &VirtualRoot::Project, dir, dir)?;
    Ok(files)
}

/// Loads the packages in a folder of Typst's own layout, `<namespace>/<name>/<version>/`, if it exists.
pub(super) fn load_packages(dir: &Path) -> Result<Files, TemplateError> {
    let mut files = Files::new(dir.to_owned());
    if dir.is_dir() {
        for namespace in entries(dir)? {
            for name in entries(&namespace)? {
                for version in entries(&name)? {
                    let package = package_spec(&namespace, &name, &version)?;
                    read_folder(&mut files, &VirtualRoot::Package(package), &version, &version)?;
                }
            }
        }
    }
    Ok(files)
}

fn package_spec(namespace: &Path, name: &Path, version: &Path) -> Result<PackageSpec, TemplateError> {
    let part = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("@{}/{}:{}", part(namespace), part(name), part(version)).parse().map_err(|error| {
        let expected = "packages lie in <namespace>/<name>/<version>";
        TemplateError::new(version, format!("is not a package's folder: {error}; {expected}"))
    })
}

fn read_folder(files: &mut Files, root: &VirtualRoot, root_dir: &Path, dir: &Path) -> Result<(), TemplateError> {
    for path in entries(dir)? {
        if fs::canonicalize(&path)
            .and_then(|path| Ok(path.starts_with(fs::canonicalize(root_dir)?)))
            .is_ok_and(|is| !is)
        {
            return Err(TemplateError::new(&path, "is a link that leads out of its folder"));
        }
        if path.is_dir() {
            read_folder(files, root, root_dir, &path)?;
            continue;
        }
        let virtual_path = VirtualPath::virtualize(root_dir, &path)
            .map_err(|error| TemplateError::new(&path, format!("cannot be named in Typst: {error}")))?;
        let content = fs::read(&path).map_err(|error| TemplateError::read(&path, error))?;
        files.contents.insert(RootedPath::new(root.clone(), virtual_path).intern(), Bytes::new(content));
    }
    Ok(())
}

/// Lists a folder's entries without the hidden ones, in the order of their names.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| TemplateError::read(dir, error))? {
        let path = entry.map_err(|error| TemplateError::read(dir, error))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !is_hidden {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries)
}
