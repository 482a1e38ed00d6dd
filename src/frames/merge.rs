//! Joins frame sets that several machines made of one collection.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::layout::{FrameSetSummary, differences, read_journal, read_summary};
use super::shard::{read_records, shard_name};
use super::writer::{FrameWriter, WriterOptions};
use crate::error::{Error, Result};
use crate::rng::stable_hash;

/// Joins complete sets with the same settings (but for `shard`, which part of the collection they are) into a new one
/// in `out`, in the order given. Shards are linked where the file system allows it, or else copied.
///
/// # Errors
/// If a set is missing, incomplete, made otherwise than the first, or holds an input or a key that another holds; or
/// if `out` cannot be written.
pub fn merge(sets: &[PathBuf], out: &Path, options: WriterOptions) -> Result<FrameSetSummary> {
    let mut settings = None;
    for set in sets {
        let summary = read_summary(set)?;
        let (inputs, shards, _) = read_journal(set)?;
        if !summary.is_complete_with(&inputs, shards) {
            return Err(Error::bad_file(set, "the frame set is not complete; sample it to its end first"));
        }
        let mut own = summary.settings;
        if let Some(own) = own.as_object_mut() {
            own.remove("shard");
        }
        let first = settings.get_or_insert_with(|| own.clone());
        let differing = differences(first, &own);
        if !differing.is_empty() {
            let problem = format!("was made otherwise than {} ({})", sets[0].display(), differing.join(", "));
            return Err(Error::bad_file(set, problem));
        }
    }
    let settings = settings.ok_or_else(|| Error::bad_file(out, "no frame sets to merge"))?;
    let all = check_disjoint(sets)?;
    let belongs = |path: &str| all.contains(&stable_hash(path.as_bytes()));
    let mut writer = FrameWriter::open_for(out, &settings, options, |_| {}, belongs)?;
    let mut done = 0;
    for set in sets {
        let (inputs, ..) = read_journal(set)?;
        // Sets are committed whole, so one that was merged before an interruption is there with all its inputs.
        if !inputs.is_empty() && inputs.iter().all(|input| writer.is_done(&input.absolute_path)) {
            done += inputs.len() as u64;
        }
    }
    if writer.was_complete() || writer.summary().inputs != done {
        return Err(Error::bad_file(out, "already holds a frame set; --overwrite replaces it"));
    }
    for set in sets {
        let (inputs, shards, _) = read_journal(set)?;
        if !inputs.is_empty() && inputs.iter().all(|input| writer.is_done(&input.absolute_path)) {
            continue;
        }
        for number in 0..shards {
            let path = set.join(shard_name(number));
            let (records, bytes) = read_records(&path)?;
            writer.adopt(&path, records, bytes)?;
        }
        writer.commit_inputs(inputs)?;
    }
    writer.finish()
}

/// Refuses sets that have an input or a key in common; gives the hashes of all inputs' absolute paths.
fn check_disjoint(sets: &[PathBuf]) -> Result<HashSet<u64>> {
    let (mut paths, mut keys) = (HashSet::new(), HashSet::new());
    for set in sets {
        for input in read_journal(set)?.0 {
            if !paths.insert(stable_hash(input.absolute_path.as_bytes())) {
                return Err(Error::bad_file(set, format!("{} is in another set too", input.absolute_path)));
            }
            if !keys.insert(input.key) {
                let problem =
                    format!("{} has the name `{}` that an input of another set has", input.path, input.name);
                return Err(Error::bad_file(set, problem));
            }
        }
    }
    Ok(paths)
}
