//! Writes a frame set so that it can be killed at any moment and continued.
//!
//! Frames go into tar shards in the order of the inputs. A shard counts once the journal says so: first the tar file
//! gets its name, then the inputs whose frames it completes are written to `journal.jsonl`, closed by a line that
//! says how many shards there are. Whatever lies in the folder beyond that is removed when the set is continued, so
//! what an interruption leaves behind never shows. The tables and the summary are made from the shards and the
//! journal at the end.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::format::PictureFormat;
use super::layout::{
    FORMAT_VERSION, FRAME_TABLE, FrameSetSummary, INPUT_TABLE, JOURNAL, JournalLine, SUMMARY, differences,
    read_journal, read_summary, remove_beyond, set_files, write_json,
};
use super::record::{DropCounts, FRAME_COLUMNS, FrameRecord, INPUT_COLUMNS, InputRecord, Outcome};
use super::shard::{BLOCK, ClosedShard, Shard, link_or_copy, member_size, read_records, shard_name};
use super::spool::Spool;
use super::table::TableWriter;
use crate::error::{Error, Result};
use crate::rng::stable_hash;

/// Where a set grows that will replace another.
const STAGING: &str = ".replacement";
/// Rows of a row group of the table of inputs.
const INPUTS_PER_GROUP: usize = 10_000;

/// How a frame set is divided into files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WriterOptions {
    /// Compression of the pictures; says how their files are called.
    pub format: PictureFormat,
    /// Most frames of a shard.
    pub frames_per_shard: u64,
    /// Most bytes of a shard, unless a single picture is larger.
    pub bytes_per_shard: u64,
    /// Replace a frame set that is there already, once the new one is complete.
    pub overwrite: bool,
}

impl WriterOptions {
    /// Shards of at most 1,000 frames and 256 MiB.
    pub fn new(format: PictureFormat) -> Self {
        WriterOptions { format, frames_per_shard: 1000, bytes_per_shard: 256 << 20, overwrite: false }
    }
}

#[derive(Serialize)]
struct ShardStats<'a> {
    shard: &'a str,
    frames: u64,
    bytes: u64,
}

/// A frame set that is being written.
///
/// Dropped before [`finish`](Self::finish), it leaves what is committed, to be continued by the next
/// [`open`](Self::open) with the same settings; if that is nothing, it leaves nothing.
pub struct FrameWriter {
    folder: PathBuf,
    /// `folder`, or a folder in it where the replacement of its set grows.
    target: PathBuf,
    options: WriterOptions,
    summary: FrameSetSummary,
    /// Held while the writer lives, so that no other process writes here.
    _lock: File,
    journal: File,
    frame_table: TableWriter,
    input_table: TableWriter,
    /// Committed inputs that are not in the table yet.
    input_rows: Vec<InputRecord>,
    /// Hashes of the absolute paths of all inputs, and the keys, that are done.
    done: HashSet<u64>,
    keys: HashSet<String>,
    shard: Option<Shard>,
    /// Full shards that end inside an input.
    closed: Vec<ClosedShard>,
    /// Inputs that are written but not committed.
    pending: Vec<InputRecord>,
    /// Number of the next shard.
    next_shard: u64,
    made_folder: bool,
    was_complete: bool,
    finished: bool,
}

impl FrameWriter {
    /// Opens the frame set in `folder` to be continued, or begins one; `known` sees all frames that are in it.
    ///
    /// # Errors
    /// If the folder cannot be written, is being written by another process, or holds a frame set with other
    /// `settings` and `options.overwrite` is not set.
    pub fn open(
        folder: &Path,
        settings: &Value,
        options: WriterOptions,
        known: impl FnMut(&FrameRecord),
    ) -> Result<FrameWriter> {
        Self::open_for(folder, settings, options, known, |_| true)
    }

    /// As [`open`](Self::open). `belongs` is asked of inputs by their absolute paths: a replacement that was begun with
    /// others is begun anew.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for(
        folder: &Path,
        settings: &Value,
        options: WriterOptions,
        mut known: impl FnMut(&FrameRecord),
        belongs: impl Fn(&str) -> bool,
    ) -> Result<FrameWriter> {
        let made_folder = !folder.exists();
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        match Self::open_in(folder, settings, options, &mut known, &belongs) {
            Ok(mut writer) => {
                writer.made_folder = made_folder;
                Ok(writer)
            }
            Err(e) => {
                if made_folder {
                    // Only an empty one goes.
                    let _ = fs::remove_dir(folder);
                }
                Err(e)
            }
        }
    }

    fn open_in(
        folder: &Path,
        settings: &Value,
        options: WriterOptions,
        known: &mut dyn FnMut(&FrameRecord),
        belongs: &dyn Fn(&str) -> bool,
    ) -> Result<FrameWriter> {
        let lock = File::open(folder).map_err(Error::io(folder, "read"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::bad_file(folder, "another process is writing a frame set there"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(folder, "lock")(e)),
        }
        let staging = folder.join(STAGING);
        if read_summary(&staging).is_ok_and(|summary| summary.complete) {
            replace(folder, &staging)?;
        }
        let unfinished = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tmp");
        let occupied = !set_files(folder)?.iter().all(unfinished);
        let mut target = folder.to_path_buf();
        if occupied && options.overwrite {
            target = staging;
            let same = read_summary(&target).is_ok_and(|summary| summary.settings == *settings)
                && read_journal(&target)
                    .is_ok_and(|(inputs, ..)| inputs.iter().all(|input| belongs(&input.absolute_path)));
            if target.exists() && !same {
                fs::remove_dir_all(&target).map_err(Error::io(&target, "remove"))?;
            }
            fs::create_dir_all(&target).map_err(Error::io(&target, "create"))?;
        } else if occupied {
            check_settings(folder, settings)?;
        }
        let begun = target.join(SUMMARY).exists();
        let mut summary = FrameSetSummary {
            format_version: FORMAT_VERSION,
            complete: false,
            frames: 0,
            shards: 0,
            bytes: 0,
            inputs: 0,
            skipped: 0,
            dropped: DropCounts::default(),
            settings: settings.clone(),
        };
        if !begun {
            write_json(&target.join(SUMMARY), &summary)?;
        }
        let journal_path = target.join(JOURNAL);
        let (inputs, shards, length) = read_journal(&target)?;
        let before = read_summary(&target)?;
        let was_complete = before.is_complete_with(&inputs, shards);
        // What the journal does not know is about to be removed, so it had better be right.
        if before.complete && (before.shards > shards || before.inputs > inputs.len() as u64) {
            let known = format!("{} inputs and {shards} shards", inputs.len());
            let wanted = format!("{} and {}", before.inputs, before.shards);
            let problem = format!("knows {known}, the set has {wanted}; --overwrite replaces the set");
            return Err(Error::bad_file(journal_path, problem));
        }
        let journal = File::options().create(true).append(true).open(&journal_path);
        let journal = journal.and_then(|file| file.set_len(length).map(|()| file));
        let journal = journal.map_err(Error::io(&journal_path, "write"))?;
        remove_beyond(&target, shards)?;

        let mut frame_table = TableWriter::create(&target.join(FRAME_TABLE), FRAME_COLUMNS)?;
        for number in 0..shards {
            let (records, bytes) = read_records(&target.join(shard_name(number)))?;
            records.iter().for_each(&mut *known);
            frame_table.add(&records)?;
            summary.frames += records.len() as u64;
            summary.bytes += bytes;
        }
        summary.shards = shards;
        let mut writer = FrameWriter {
            folder: folder.to_path_buf(),
            input_table: TableWriter::create(&target.join(INPUT_TABLE), INPUT_COLUMNS)?,
            target,
            options,
            summary,
            _lock: lock,
            journal,
            frame_table,
            input_rows: Vec::new(),
            done: HashSet::new(),
            keys: HashSet::new(),
            shard: None,
            closed: Vec::new(),
            pending: Vec::new(),
            next_shard: shards,
            made_folder: false,
            was_complete,
            finished: false,
        };
        for input in inputs {
            writer.count(input)?;
        }
        Ok(writer)
    }

    /// Whether the input with this absolute path is in the set already, be it as skipped.
    pub fn is_done(&self, absolute_path: &str) -> bool {
        self.done.contains(&stable_hash(absolute_path.as_bytes()))
    }

    /// Whether an input with this key is in the set already.
    pub fn has_key(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Where the set lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Totals of what is committed so far.
    pub fn summary(&self) -> &FrameSetSummary {
        &self.summary
    }

    /// Whether the set was complete when it was opened.
    pub fn was_complete(&self) -> bool {
        self.was_complete
    }

    /// Adds an input and those of its frames for which `keep` is true. Returns the record with their number in it.
    ///
    /// Frames of an input stay in one shard if they fit into an empty one.
    ///
    /// # Errors
    /// If reading or writing fails, say because the disk is full.
    pub fn add_input(
        &mut self,
        mut record: InputRecord,
        spool: &mut Spool,
        keep: &[bool],
    ) -> Result<&InputRecord> {
        assert!(!record.key.is_empty() && record.key.len() <= 60 && !record.key.contains(['.', '/']));
        let kept: Vec<usize> = (0..keep.len()).filter(|&i| keep[i]).collect();
        let size = |i: usize| {
            let frame = spool.frames()[i];
            member_size(frame.json_length.into()) + member_size(frame.picture_length.into())
        };
        let sizes: Vec<u64> = kept.iter().map(|&i| size(i)).collect();
        if self.is_full(kept.len() as u64, sizes.iter().sum()) {
            self.commit()?;
        }
        for (&i, size) in kept.iter().zip(sizes) {
            if self.is_full(1, size) {
                let shard = self.shard.take().map(Shard::close).transpose()?;
                self.closed.extend(shard);
            }
            let (json, picture) =
                spool.read(i).map_err(Error::io(&self.target, "read a temporary file in"))?;
            let shard = match &mut self.shard {
                Some(shard) => shard,
                none => {
                    self.next_shard += 1;
                    none.insert(Shard::create(&self.target, self.next_shard - 1)?)
                }
            };
            let key = format!("{}-{i:06}", record.key);
            shard.add(&key, self.options.format.extension(), &picture, &json)?;
        }
        record.frames = kept.len() as u64;
        self.pending.push(record);
        Ok(&self.pending[self.pending.len() - 1])
    }

    /// Whether so many more frames and bytes would be too much for the shard that is open.
    fn is_full(&self, frames: u64, bytes: u64) -> bool {
        self.shard.as_ref().is_some_and(|shard| {
            shard.records.len() as u64 + frames > self.options.frames_per_shard
                || shard.position + bytes + 2 * BLOCK > self.options.bytes_per_shard
        })
    }

    /// Makes everything that was added part of the set for good; the next frame begins a new shard.
    fn commit(&mut self) -> Result<()> {
        let shard = self.shard.take().map(Shard::close).transpose()?;
        self.closed.extend(shard);
        for shard in &self.closed {
            let stats = self.target.join(shard.name.replace(".tar", "_stats.json"));
            let (frames, bytes) = (shard.records.len() as u64, shard.bytes);
            write_json(&stats, &ShardStats { shard: &shard.name, frames, bytes })?;
            shard.publish(&self.target)?;
        }
        let folder = File::open(&self.target).and_then(|folder| folder.sync_all());
        folder.map_err(Error::io(&self.target, "write"))?;
        let shards = self.summary.shards + self.closed.len() as u64;
        let mut text = Vec::new();
        let inputs = std::mem::take(&mut self.pending);
        let lines = inputs.iter().map(|input| JournalLine::Input(Box::new(input.clone())));
        for line in lines.chain([JournalLine::Commit { shards }]) {
            serde_json::to_writer(&mut text, &line).expect("plain data");
            text.push(b'\n');
        }
        let written = self.journal.write_all(&text).and_then(|()| self.journal.sync_data());
        written.map_err(Error::io(self.target.join(JOURNAL), "write"))?;
        for shard in self.closed.drain(..) {
            self.frame_table.add(&shard.records)?;
            self.summary.frames += shard.records.len() as u64;
            self.summary.bytes += shard.bytes;
        }
        self.summary.shards = shards;
        inputs.into_iter().try_for_each(|input| self.count(input))
    }

    /// Takes over a finished shard of another set, to be committed with its inputs.
    pub(super) fn adopt(&mut self, path: &Path, mut records: Vec<FrameRecord>, bytes: u64) -> Result<()> {
        let name = shard_name(self.next_shard);
        self.next_shard += 1;
        let temporary = self.target.join(format!("{name}.tmp"));
        link_or_copy(path, &temporary)?;
        records.iter_mut().for_each(|record| record.shard.clone_from(&name));
        self.closed.push(ClosedShard { name, temporary, bytes, records });
        Ok(())
    }

    /// Commits inputs whose frames lie in shards that were taken over.
    pub(super) fn commit_inputs(&mut self, inputs: Vec<InputRecord>) -> Result<()> {
        self.pending.extend(inputs);
        self.commit()
    }

    /// Counts a committed input.
    fn count(&mut self, input: InputRecord) -> Result<()> {
        self.summary.inputs += 1;
        self.summary.skipped += u64::from(input.outcome == Outcome::Skipped);
        self.summary.dropped.merge(&input.dropped);
        self.done.insert(stable_hash(input.absolute_path.as_bytes()));
        self.keys.insert(input.key.clone());
        self.input_rows.push(input);
        if self.input_rows.len() == INPUTS_PER_GROUP {
            self.input_table.add(&self.input_rows)?;
            self.input_rows.clear();
        }
        Ok(())
    }

    /// Completes the set; where it replaces another, that one goes only now.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self) -> Result<FrameSetSummary> {
        if self.shard.is_some() || !self.pending.is_empty() {
            self.commit()?;
        }
        self.input_table.add(&self.input_rows)?;
        self.input_rows.clear();
        self.frame_table.finish()?;
        self.input_table.finish()?;
        self.summary.complete = true;
        write_json(&self.target.join(SUMMARY), &self.summary)?;
        self.finished = true;
        if self.target != self.folder {
            replace(&self.folder, &self.target)?;
        }
        Ok(self.summary.clone())
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Best effort: the error that led here is the one to report.
        let open = self.shard.iter().map(|shard| &shard.temporary);
        for path in open.chain(self.closed.iter().map(|shard| &shard.temporary)) {
            let _ = fs::remove_file(path);
        }
        self.frame_table.discard();
        self.input_table.discard();
        if self.summary.inputs == 0 && !self.was_complete {
            for name in [SUMMARY, JOURNAL] {
                let _ = fs::remove_file(self.target.join(name));
            }
            if self.target != self.folder {
                let _ = fs::remove_dir(&self.target);
            }
            if self.made_folder {
                let _ = fs::remove_dir(&self.folder);
            }
        }
    }
}

/// Refuses a folder whose set was made otherwise.
fn check_settings(folder: &Path, settings: &Value) -> Result<()> {
    if !folder.join(SUMMARY).exists() {
        let problem = format!("holds parts of a frame set but no {SUMMARY}; --overwrite replaces them");
        return Err(Error::bad_file(folder, problem));
    }
    let differences = differences(&read_summary(folder)?.settings, settings);
    if differences.is_empty() {
        return Ok(());
    }
    let differences = differences.join(", ");
    let problem =
        format!("already holds a frame set made otherwise ({differences}); --overwrite replaces it");
    Err(Error::bad_file(folder, problem))
}

/// Puts the finished set `staging` in the place of the one in `folder`; can be begun again after a crash.
fn replace(folder: &Path, staging: &Path) -> Result<()> {
    let summary = folder.join(SUMMARY);
    // The summary goes first and comes last, so that a mixture never looks complete.
    if summary.exists() {
        fs::remove_file(&summary).map_err(Error::io(&summary, "remove"))?;
        for path in set_files(folder)? {
            fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
    }
    let new = set_files(staging)?;
    let (last, others): (Vec<_>, Vec<_>) = new.iter().partition(|path| path.ends_with(SUMMARY));
    for path in others.into_iter().chain(last) {
        let to = folder.join(path.file_name().expect("a file in a folder"));
        fs::rename(path, &to).map_err(Error::io(&to, "write"))?;
    }
    fs::remove_dir_all(staging).map_err(Error::io(staging, "remove"))
}
