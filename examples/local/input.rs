//! The files that messages bring with their data.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use crate::embedded::s3::EmbeddedS3;

/// Where the files are in the input bucket that lie in a template's own folder.
const TEMPLATE_FILES: &str = "files-of-templates";

/// What lies in a template's folder `files`: names, and keys in the input bucket.
pub fn files_of_template(templates_dir: &Path, template: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(templates_dir.join(template).join("files")).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .map(|name| (name.clone(), format!("{TEMPLATE_FILES}/{template}/{name}")))
        .collect()
}

/// Puts what lies in templates' folders `files` into a bucket.
pub fn put_files_of_templates(s3: &EmbeddedS3, bucket: &str, templates_dir: &Path) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(templates_dir)?.flatten() {
        let Ok(template) = entry.file_name().into_string() else { continue };
        put_folder(s3, bucket, &entry.path().join("files"), &format!("{TEMPLATE_FILES}/{template}/"))?;
    }
    Ok(())
}

/// Puts all files below a folder into a bucket, if there is one.
pub fn put_folder(s3: &EmbeddedS3, bucket: &str, folder: &Path, prefix: &str) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        let key = format!("{prefix}{name}");
        if path.is_dir() {
            put_folder(s3, bucket, &path, &format!("{key}/"))?;
        } else {
            let content = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            s3.put(bucket, &key, content);
        }
    }
    Ok(())
}
