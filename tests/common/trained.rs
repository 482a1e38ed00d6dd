//! A small network that was trained a little.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::done;

/// A folder with `run`, trained a little on the frames `f`.
pub fn trained() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml");
    done(folder.path(), "synth --out v --videos 6 --seconds 1 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 10 --grey");
    let settings = "--set training.steps=[60,20] --set training.mode=sync --set training.replicas=1";
    done(folder.path(), &format!("train {config} --frames f --out run {settings}"));
    folder
}

pub fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
