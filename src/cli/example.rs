//! The example: a network that has seen drawn videos only, and other drawn frames to look at with it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use flate2::read::GzDecoder;

use super::{Cli, Global};

/// Made by `scripts/make_example`: `run/`, a run folder with its last checkpoint; `frames/`, a frame set; `labels.jsonl`, what is in it;
/// `face.png`, one of its frames.
const ARCHIVE: &[u8] = include_bytes!("../../docs/example.tar.gz");

/// What anyone would do with a run, in order; `@` stands for the folder.
const STEPS: [&str; 7] = [
    "evaluate @/run --labels @/labels.jsonl --pictures @/frames --concept face",
    "evaluate @/run --labels @/labels.jsonl --pictures @/frames --concept cat",
    "visualize @/run --frames @/frames",
    "tuning @/run --stage 1",
    "map @/run --frames @/frames",
    "explain @/run @/face.png --frames @/frames --detector face",
    "neighbours @/run @/face.png --frames @/frames",
];

/// Unpacks the example into `folder` and does with it all that a report shows; gives the run. What an interrupted try has done is kept.
pub fn make(folder: &Path, global: Global) -> anyhow::Result<PathBuf> {
    let run = folder.join("run");
    let is_ours = run.join("config.toml").is_file() && folder.join("labels.jsonl").is_file();
    if folder.exists() && !is_ours {
        anyhow::bail!("{}: is there already and is no example; name another folder", folder.display());
    }
    if !is_ours {
        // It has its name once it is complete.
        let mut partial = folder.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let unpack = || {
            if partial.exists() {
                std::fs::remove_dir_all(&partial)?;
            }
            std::fs::create_dir_all(&partial)?;
            tar::Archive::new(GzDecoder::new(ARCHIVE)).unpack(&partial)?;
            std::fs::rename(&partial, folder)
        };
        unpack().with_context(|| format!("{}: cannot unpack the example", folder.display()))?;
    }
    for step in STEPS {
        let words = step.split(' ').map(|word| match word.strip_prefix('@') {
            Some(rest) => {
                let mut path = folder.as_os_str().to_owned();
                path.push(rest);
                path
            }
            None => OsString::from(word),
        });
        if !global.quiet {
            say!("striate {}", step.replace('@', &folder.display().to_string()));
        }
        let cli = Cli::parse_from(std::iter::once(OsString::from("striate")).chain(words));
        super::run(Cli { global: Global { silent: true, json: false, ..global }, ..cli })?;
    }
    Ok(run)
}
