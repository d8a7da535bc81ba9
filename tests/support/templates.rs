//! Templates that a test makes for itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{Failure, Outcome, Stored};
use serde_json::{Value, json};

use super::embedded::s3::EmbeddedS3;
use super::{OUTPUT, Stage, config, record};

pub const MANIFEST: &str = "[package]\nname = \"note\"\nversion = \"1.0.0\"\nentrypoint = \"main.typ\"\n";
const MAIN: &str = "#let data = json(sys.inputs.at(\"data\", default: \"sample.json\"))\n";

/// A folder of templates with one, `note`. It is removed in the end.
pub struct Templates(PathBuf);

impl Drop for Templates {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

impl Templates {
    /// A template that is as it should be, but for `main.typ`: this stands below its first line.
    pub fn with(body: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("templates-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let templates = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        templates.write("note/typst.toml", MANIFEST);
        templates.write("note/main.typ", format!("{MAIN}{body}\n"));
        templates.write("note/sample.json", "{\"text\": \"sample\"}");
        templates
    }

    /// With these lines under `[tool.pressrun]`.
    pub fn and_section(self, section: &str) -> Self {
        self.write("note/typst.toml", format!("{MANIFEST}[tool.pressrun]\n{section}\n"));
        self
    }

    pub fn and(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.write(path, content);
        self
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    pub fn config(&self) -> Config {
        Config { templates_dir: self.0.clone(), ..config(1) }
    }

    /// Why init stops.
    pub async fn refused(&self) -> String {
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        Function::start(self.config(), s3.client()).await.err().expect("init stops").to_string()
    }

    pub async fn stage(&self) -> Stage {
        Stage::with(self.config()).await
    }

    /// What becomes of a message with these data.
    pub async fn set(&self, data: Value) -> Outcome {
        outcome(&mut self.stage().await, record("m-1", "note", data)).await
    }

    pub async fn failure(&self, data: Value) -> Failure {
        match self.set(data).await {
            Outcome::PermanentFailure(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    pub async fn stored(&self, data: Value) -> Stored {
        match self.set(data).await {
            Outcome::Stored(stored) => stored,
            other => panic!("{other:?}"),
        }
    }
}

/// What becomes of a record.
pub async fn outcome(stage: &mut Stage, record: Value) -> Outcome {
    let records = event::parse(json!({"Records": [record]})).unwrap();
    stage.function.process_batch(records, Deadline::NONE).await.remove(0).1
}

/// Data of the template `note`.
pub fn note(text: &str) -> Value {
    json!({"text": text})
}
