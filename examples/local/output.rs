//! The folder that stands for the output bucket: every key has a file of its own, whatever S3 allows in keys and a
//! file system does not.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use crate::embedded::s3::EmbeddedS3;

/// The most bytes that a file's name may have on Linux.
const MAX_NAME_BYTES: usize = 255;
/// What is added to a name that a folder has already, or to a folder's that a file has.
const OTHER: char = '~';

/// The file of each key that has been written, or why there is none.
pub type Written = BTreeMap<String, Result<PathBuf, String>>;

/// Moves a bucket's objects to a folder.
pub fn collect(s3: &EmbeddedS3, bucket: &str, folder: &Path) -> Written {
    let mut written = Written::new();
    for key in s3.keys(bucket) {
        let body = s3.object(bucket, &key).map(|object| object.body).unwrap_or_default();
        let path = file_of(folder, &key);
        let result = write_whole(&path, &body).map_err(|error| format!("{}: {error}", path.display()));
        written.insert(key, result.map(|()| path));
    }
    s3.clear(bucket);
    written
}

/// Writes a file so that whoever looks at it sees the old one or the new one, and no half.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let unfinished = folder.join(format!(".unfinished-{}", std::process::id()));
    fs::write(&unfinished, content).and_then(|()| fs::rename(&unfinished, path))
}

/// Removes the file that an earlier run of this program has left for a key.
pub fn remove_earlier(folder: &Path, key: &str) {
    // Usually there is nothing to remove.
    let _ = fs::remove_file(file_of(folder, key));
}

/// Returns the file for a key: the key itself, where the file system allows it.
fn file_of(folder: &Path, key: &str) -> PathBuf {
    let segments: Vec<String> = key.split('/').map(name_of).collect();
    let mut path = folder.to_owned();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let mut name = segment.clone();
        // The keys `a` and `a/b.pdf` want a file and a folder of the same name.
        while path.join(&name).exists() && path.join(&name).is_dir() == is_last {
            name.push(OTHER);
        }
        path.push(name);
    }
    path
}

/// Returns a file's or folder's name for a segment of a key.
fn name_of(segment: &str) -> String {
    match segment {
        "" => "%".to_owned(),
        "." => "%2E".to_owned(),
        // These would be taken for the others.
        "%" | "%2E" => segment.replace('%', "%25"),
        long if long.len() > MAX_NAME_BYTES - 8 => {
            let beginning = &long[..long.floor_char_boundary(MAX_NAME_BYTES - 32)];
            let mut hasher = DefaultHasher::new();
            long.hash(&mut hasher);
            format!("{beginning}{OTHER}{:016x}", hasher.finish())
        }
        plain => plain.to_owned(),
    }
}
