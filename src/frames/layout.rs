//! The files of a frame set: their names, its summary and its journal.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::{DropCounts, InputRecord};
use super::shard::shard_name;
use crate::error::{Error, Result};

/// Settings and totals of a set; says whether it is complete.
pub(super) const SUMMARY: &str = "frames.json";
/// A row per frame.
pub(super) const FRAME_TABLE: &str = "frames.parquet";
/// A row per input.
pub(super) const INPUT_TABLE: &str = "inputs.parquet";
/// What is done: a line per input, and one per commit.
pub(super) const JOURNAL: &str = "journal.jsonl";
/// Version of the layout that is written here.
pub(super) const FORMAT_VERSION: u32 = 2;

/// What a frame set holds; also the content of its `frames.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameSetSummary {
    /// Version of the layout.
    pub format_version: u32,
    /// Whether all inputs that were named are in it.
    pub complete: bool,
    /// Frames in all shards.
    pub frames: u64,
    /// Tar files.
    pub shards: u64,
    /// Bytes in all shards.
    pub bytes: u64,
    /// Input files, skipped ones included.
    pub inputs: u64,
    /// Input files of which nothing was used.
    pub skipped: u64,
    /// Frames that filters left out.
    pub dropped: DropCounts,
    /// How the set was made, as the program that made it says.
    pub settings: Value,
}

impl FrameSetSummary {
    /// Whether the set is complete and this is all that its journal says: there is more in it when an interruption came
    /// while inputs were added to a complete set.
    pub(super) fn is_complete_with(&self, inputs: &[InputRecord], shards: u64) -> bool {
        self.complete && self.inputs == inputs.len() as u64 && self.shards == shards
    }
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum JournalLine {
    Input(Box<InputRecord>),
    Commit { shards: u64 },
}

/// The settings that differ, as `key: old -> new`.
pub(super) fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differ("", old, new, &mut found);
    found
}

fn differ(key: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for name in names {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let missing = &Value::Null;
            differ(&key, a.get(name).unwrap_or(missing), b.get(name).unwrap_or(missing), found);
        }
    } else if old != new {
        let shown = |value: &Value| match value {
            Value::Null => "none".to_string(),
            value => value.to_string(),
        };
        found.push(format!("{key}: {} -> {}", shown(old), shown(new)));
    }
}

/// The summary of the set in a folder.
pub(super) fn read_summary(folder: &Path) -> Result<FrameSetSummary> {
    let path = folder.join(SUMMARY);
    let text = fs::read(&path).map_err(Error::io(&path, "read"))?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::bad_file(&path, format!("is not the summary of a frame set: {e}")))?;
    match value["format_version"].as_u64() {
        Some(version) if version != u64::from(FORMAT_VERSION) => {
            let problem = format!("the frame set has layout {version}, this program knows {FORMAT_VERSION}");
            Err(Error::bad_file(folder, format!("{problem}; sample again with --overwrite")))
        }
        _ => serde_json::from_value(value)
            .map_err(|e| Error::bad_file(&path, format!("is not the summary of a frame set: {e}"))),
    }
}

/// The inputs of a set that are committed, how many shards they fill, and where in the journal that ends.
///
/// # Errors
/// If the journal is damaged, or missing although there are shards.
pub(super) fn read_journal(folder: &Path) -> Result<(Vec<InputRecord>, u64, u64)> {
    let path = &folder.join(JOURNAL);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !folder.join(shard_name(0)).exists() => {
            return Ok((Vec::new(), 0, 0));
        }
        Err(e) => return Err(Error::io(path, "read")(e)),
    };
    let (mut inputs, mut pending, mut shards, mut end, mut position) = (Vec::new(), Vec::new(), 0, 0, 0);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        position += reader.read_until(b'\n', &mut line).map_err(Error::io(path, "read"))? as u64;
        // A line that a crash tore is the last and has no end, and nothing after the last commit counts.
        match serde_json::from_slice(&line) {
            Ok(JournalLine::Input(input)) => pending.push(*input),
            Ok(JournalLine::Commit { shards: count }) if line.ends_with(b"\n") => {
                inputs.append(&mut pending);
                (shards, end) = (count, position);
            }
            Err(e) if line.ends_with(b"\n") => {
                let problem = format!("is damaged before byte {position}: {e}; --overwrite replaces the set");
                return Err(Error::bad_file(path, problem));
            }
            _ => return Ok((inputs, shards, end)),
        }
    }
}

/// The files of a frame set in a folder, whole or not, but no other files.
pub(super) fn set_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.strip_suffix(".tmp").unwrap_or(&name);
        if shard_number(name).is_some() || [SUMMARY, JOURNAL, FRAME_TABLE, INPUT_TABLE].contains(&name) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The number in the name of a shard or of its statistics.
fn shard_number(name: &str) -> Option<u64> {
    let rest = name.strip_prefix("frames-")?;
    let number = rest.strip_suffix(".tar").or_else(|| rest.strip_suffix("_stats.json"))?;
    (number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit())).then(|| number.parse().ok())?
}

/// Removes what an interruption left: shards from number `shards` on and everything unfinished.
pub(super) fn remove_beyond(folder: &Path, shards: u64) -> Result<()> {
    for path in set_files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".tmp") || shard_number(&name).is_some_and(|number| number >= shards) {
            fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io(path, "write")(e)
    })
}
