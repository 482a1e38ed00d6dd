//! Running the program and looking at what it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn program() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("striate"));
    // A backtrace would show if there was one.
    command.env("RUST_BACKTRACE", "1").env_remove("STRIATE_CPU");
    command
}

/// Runs a line such as `NAME=value train x.toml` in a folder.
pub fn run(folder: &Path, line: &str) -> Output {
    let mut command = program();
    command.current_dir(folder);
    let is_variable = |word: &&str| word.starts_with("STRIATE_");
    let words: Vec<&str> = line.split_whitespace().collect();
    for word in words.iter().take_while(|word| is_variable(word)) {
        let (name, value) = word.split_once('=').unwrap();
        command.env(name, value);
    }
    command.args(words.into_iter().skip_while(is_variable)).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a line that must succeed; returns its stdout.
pub fn done(folder: &Path, line: &str) -> String {
    let output = run(folder, line);
    assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The same with `--json`: stdout is one JSON object and nothing else.
pub fn json(folder: &Path, line: &str) -> serde_json::Value {
    let stdout = done(folder, &format!("{line} --json"));
    let value: serde_json::Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{line}: {e}: {stdout}"));
    assert!(value.is_object() && stdout.lines().count() == 1, "{line}: {stdout}");
    value
}

/// Every file below a folder.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file());
    files.map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap())).collect()
}
