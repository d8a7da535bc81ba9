//! Modules of `src/` import only what docs/architecture.md allows them to, which is never what stands above.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::beside_others;

type Imports = BTreeMap<String, BTreeSet<String>>;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads the table with the header `| module | may import |`.
fn allowed_imports() -> Imports {
    let page = fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let rows = page.lines().skip_while(|line| !line.starts_with("| module | may import |")).skip(2);
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    rows.take_while(|line| line.starts_with('|'))
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            (names(cells[0]).pop_first().unwrap(), names(cells[1]))
        })
        .collect()
}

/// Finds what the files of each top-level module import from others.
fn imports() -> Imports {
    let mut imports = Imports::new();
    for entry in fs::read_dir(repository().join("src")).unwrap().flatten() {
        let name = entry.path().file_stem().unwrap().to_str().unwrap().to_owned();
        if !["main", "lib"].contains(&name.as_str()) {
            let mut found = BTreeSet::new();
            search(&entry.path(), &mut found);
            found.remove(&name);
            imports.insert(name, found);
        }
    }
    imports
}

fn search(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().flatten().for_each(|entry| search(&entry.path(), found));
        return;
    }
    let source = fs::read_to_string(path).unwrap_or_default();
    for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for import in line.split("crate::").skip(1) {
            let end = import.find(|character: char| !character.is_alphanumeric() && character != '_');
            found.insert(import[..end.unwrap_or(import.len())].to_owned());
        }
    }
}

#[test]
fn every_module_imports_what_the_architecture_allows_and_nothing_else() {
    let _beside_others = beside_others();
    assert_eq!(imports(), allowed_imports(), "left: src/, right: docs/architecture.md");
}

#[test]
fn no_module_imports_what_stands_above_it() {
    let _beside_others = beside_others();
    let mut rest = allowed_imports();
    while !rest.is_empty() {
        let lowest: Vec<String> =
            rest.iter().filter(|(_, imports)| imports.is_empty()).map(|(name, _)| name.clone()).collect();
        assert!(!lowest.is_empty(), "these import each other: {rest:?}");
        rest.retain(|name, _| !lowest.contains(name));
        for imports in rest.values_mut() {
            imports.retain(|name| !lowest.contains(name));
        }
    }
}
