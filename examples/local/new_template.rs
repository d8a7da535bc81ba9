//! `new NAME`: makes a template's folder that works, to begin with.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

const SKELETON: [(&str, &str); 4] = [
    ("typst.toml", include_str!("skeleton/typst.toml")),
    ("main.typ", include_str!("skeleton/main.typ")),
    ("schema.json", include_str!("skeleton/schema.json")),
    ("sample.json", include_str!("skeleton/sample.json")),
];
/// What stands in the skeleton for the template's name.
const NAME: &str = "skeleton";

/// Writes a new template into `templates_dir`.
pub fn new_template(templates_dir: &Path, name: &str) -> Result<ExitCode, Box<dyn Error>> {
    if !is_package_name(name) || ["fonts", "packages"].contains(&name) {
        return Err(format!(
            "{name:?} cannot be a template's name: small letters, digits and dashes are expected, \
             a letter first, and neither fonts nor packages"
        )
        .into());
    }
    let dir = templates_dir.join(name);
    if dir.exists() {
        return Err(format!("{} is there already; choose a name that is not taken", dir.display()).into());
    }
    fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    for (file, content) in SKELETON {
        let path = dir.join(file);
        fs::write(&path, content.replace(NAME, name)).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("wrote {}", path.display());
    }
    println!("now: change main.typ, and see what becomes of it with `check {name}`");
    Ok(ExitCode::SUCCESS)
}

/// As Typst wants the names of packages.
fn is_package_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
