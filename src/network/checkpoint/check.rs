//! Whether a checkpoint is whole: its files as they were written, its tensors all there and numbers.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::read::{Files, Found, read_whitening};
use super::{SUMS, dtype_of, hex, shape_in_files};
use crate::config::RunConfig;
use crate::error::{Error, Result};

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// A file, or a tensor.
    pub name: String,
    /// What was looked at: the hash of a file, or a tensor's shape and values.
    pub what: String,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

impl Check {
    fn new(name: &str, what: &str, outcome: Result<()>) -> Check {
        Check { name: name.into(), what: what.into(), problem: outcome.err().map(|e| e.to_string()) }
    }
}

/// Looks at all of the checkpoint in `folder`, a part at a time, so that it may be larger than memory.
///
/// # Errors
/// It cannot be told what the checkpoint should hold: there is no model, or its settings cannot be read.
pub fn check(folder: &Path) -> Result<Vec<Check>> {
    let files = Files::open(folder, "model")?;
    let parsed = files.parsed()?;
    let config = parsed[0].header.config.clone().checked();
    let config = config.map_err(|e| Error::bad_file(folder, format!("not a whole checkpoint: {e}")))?;
    let mut checks = hashes(folder)?;
    // A file without a hash could hold anything.
    let models = files.maps.iter().filter_map(|(path, _)| path.file_name()?.to_str());
    let optimiser = config.training.optimiser.remembers().then(|| Files::open(folder, "optimiser"));
    let sums = optimiser.iter().flatten().flat_map(|files| &files.maps);
    let sums = sums.filter_map(|(path, _)| path.file_name()?.to_str());
    for name in models.chain(sums).chain(["state.json"]) {
        if !checks.iter().any(|check| check.name == name) {
            let outcome = Err(Error::bad_file(folder.join(SUMS), format!("has no hash of {name}")));
            checks.push(Check::new(name, "SHA-256", outcome));
        }
    }
    checks.extend(tensors(&config, &files, ""));
    checks.push(Check::new("whitening", "values", read_whitening(&config, &parsed, folder).map(|_| ())));
    match optimiser {
        Some(Ok(files)) => checks.extend(tensors(&config, &files, "optimiser ")),
        Some(Err(error)) => checks.push(Check::new("optimiser", "values", Err(error))),
        None => {}
    }
    Ok(checks)
}

/// Every file against its hash.
fn hashes(folder: &Path) -> Result<Vec<Check>> {
    let path = folder.join(SUMS);
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let check = |line: &str| {
        let Some((wanted, name)) = line.split_once("  ") else {
            let problem = format!("`{line}` is no hash and name of a file");
            return Check::new(SUMS, "hashes", Err(Error::bad_file(&path, problem)));
        };
        let path = folder.join(name);
        let hash = || {
            let mut hash = Sha256::new();
            io::copy(&mut File::open(&path)?, &mut hash).map(|_| hex(&hash.finalize()))
        };
        let outcome = hash().map_err(Error::io(&path, "read")).and_then(|seen| match seen == wanted {
            true => Ok(()),
            false => Err(Error::bad_file(&path, format!("its SHA-256 is {seen}, {SUMS} has {wanted}"))),
        });
        Check::new(name, "SHA-256", outcome)
    };
    Ok(text.lines().map(check).collect())
}

/// The weights of every stage, or what the optimiser remembers of them.
fn tensors(config: &RunConfig, files: &Files, whose: &str) -> Vec<Check> {
    let parsed = match files.parsed() {
        Ok(parsed) => parsed,
        Err(error) => return vec![Check::new(&format!("{whose}tensors"), "values", Err(error))],
    };
    let (dtype, mut checks) = (dtype_of(config.training.precision), Vec::new());
    for (number, (shape, stage)) in (1..).zip(config.shapes().into_iter().zip(&config.stages)) {
        let arrays: &[&str] = if stage.tied { &["W1"] } else { &["W1", "W2"] };
        for array in arrays {
            let (name, size) = (format!("stage{number}.{array}"), shape_in_files(&shape));
            let (count, row) = (size.iter().product(), size[1..].iter().product());
            let rows: Vec<_> = (0..count).step_by(row).map(|first| first..first + row).collect();
            let outcome =
                Found::new(&parsed, &files.folder, &name, dtype, &size).and_then(|found| {
                    match found.for_each(&rows, |_, values| values.for_each(drop)) {
                        true => Ok(()),
                        false => {
                            Err(Error::bad_file(&files.folder, format!("`{name}` holds what is no number")))
                        }
                    }
                });
            checks.push(Check::new(&format!("{whose}{name}"), &format!("{size:?}"), outcome));
        }
    }
    checks
}
