//! The record of a run in its folder: `log.jsonl`, a line for every few steps; `validation.jsonl`, a line for each validation;
//! `notes.jsonl`, what else happened; and `events`, the same for TensorBoard.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::replica::StageNorms;
use super::validate::Validation;
use crate::error::{Error, Result};
use crate::network::objective::Loss;

/// Names of the files.
pub const LOG: &str = "log.jsonl";
/// See [`Validation`].
pub const VALIDATION: &str = "validation.jsonl";
/// See [`Note`].
pub const NOTES: &str = "notes.jsonl";

/// Staleness is counted one by one below this; the last count is of all from here on.
pub const STALEST: usize = 32;

/// One line of the log: means over the steps since the line before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// Steps of the whole run so far.
    pub step: u64,
    /// Frames learned from so far.
    pub images: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Learning rate of the last step.
    pub rate: f64,
    /// Frames a second.
    pub images_per_second: f64,
    /// Share of what the threads could do at most that went into filtering, as `striate bench` counts it.
    pub peak_share: f64,
    /// Seconds that replicas waited for minibatches since the line before, summed over replicas.
    pub stall_seconds: f64,
    /// Updates by staleness, the number of updates by others between the weights being read and the update: of none, 1, 2 and
    /// so on, up to the largest seen; the count numbered [`STALEST`] is of all from there on.
    pub staleness: Vec<u64>,
    /// Pictures that could not be read and were passed over.
    pub skipped: u64,
    /// The stages that were learning.
    pub stages: Vec<StageLine>,
}

/// One stage's part of a [`LogLine`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageLine {
    /// Number of the stage, from 1.
    pub stage: usize,
    /// `||r - x||²`.
    pub reconstruction: f64,
    /// `λ Σ h`.
    pub sparsity: f64,
    /// Their sum, what is minimised.
    pub loss: f64,
    /// Reconstruction error as a share of `||x||²`: 1 is nothing learned.
    pub unexplained: f64,
    /// Sparsity over reconstruction: the balance to watch when λ is chosen.
    pub balance: f64,
    /// Norm of the gradient of all weights, of one minibatch.
    pub gradient_norm: f64,
    /// Root of the mean squared norm of the encoder's filters.
    pub encoder_norm: f64,
    /// Root of the mean squared norm of the decoder's filters.
    pub decoder_norm: f64,
}

/// Something that happened: a line of `notes.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Steps of the whole run at the time.
    pub step: u64,
    /// Seconds since 1970.
    pub time: u64,
    /// What happened.
    pub note: String,
}

/// Collects losses and writes the log.
pub struct Monitor {
    log: Lines,
    validation: Lines,
    notes: Lines,
    every: u64,
    /// Frames of a minibatch.
    batch: u64,
    /// Steps of the whole run, and since the last line.
    done: u64,
    steps: u64,
    losses: Vec<Loss>,
    norms: Vec<StageNorms>,
    /// Someone is finding them.
    norms_claimed: bool,
    staleness: Vec<u64>,
    skipped: u64,
    stall: Duration,
    since: Instant,
    /// Up to the last line.
    totals: Totals,
}

/// What this process did so far.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Time that replicas waited for minibatches, summed over replicas.
    pub stall: Duration,
    /// See [`LogLine::staleness`].
    pub staleness: Vec<u64>,
    /// See [`LogLine::skipped`].
    pub skipped: u64,
}

impl Totals {
    /// Mean staleness, 0 if there were no updates.
    pub fn mean_staleness(&self) -> f64 {
        let sum = |of: &dyn Fn((usize, &u64)) -> f64| self.staleness.iter().enumerate().map(of).sum::<f64>();
        // Not -0, which is the sum of nothing.
        (sum(&|(age, count)| age as f64 * *count as f64) / sum(&|(_, count)| *count as f64).max(1.0)).abs()
    }
}

/// Where a run stands when a line is written.
pub struct Position {
    /// See [`LogLine::seconds`].
    pub seconds: f64,
    /// See [`LogLine::rate`].
    pub rate: f64,
    /// First of the stages that are learning, from 0.
    pub first_stage: usize,
    /// Their simple units.
    pub filters: Vec<usize>,
    /// Floating-point operations to learn from a picture.
    pub flops: u64,
    /// Those that the threads could do in a second, at most.
    pub peak: f64,
}

/// A step of a replica, or of all in mode `sync`.
pub struct Done<'a> {
    /// Minibatches.
    pub steps: u64,
    /// Losses, means over the minibatches.
    pub losses: &'a [Loss],
    /// How long replicas waited for frames.
    pub stall: Duration,
    /// Pictures passed over.
    pub skipped: u64,
}

/// A file of lines.
struct Lines {
    path: PathBuf,
    file: File,
    /// What does not fit on the disk is left out.
    goes_on_when_full: bool,
}

impl Lines {
    /// Goes on after the whole lines in the first `keep` bytes; what an interrupted run wrote later is cut off, and what a power
    /// cut left of a line.
    fn open(path: PathBuf, keep: Option<u64>) -> Result<Lines> {
        let open = || {
            let mut file =
                OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path)?;
            let mut text = Vec::new();
            (&file).take(keep.unwrap_or(u64::MAX)).read_to_end(&mut text)?;
            file.set_len(text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end as u64 + 1))?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(Error::io(&path, "write"))?;
        Ok(Lines { path, file, goes_on_when_full: false })
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line).expect("a line is plain data") + "\n";
        let before = self.bytes()?;
        let written = self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path, "write"));
        if written.is_err() {
            // Half a line would spoil the next one; the error that matters is the first.
            let _ = self.file.set_len(before).and_then(|()| self.file.seek(SeekFrom::Start(before)));
        }
        let left_out = self.goes_on_when_full && written.as_ref().is_err_and(Error::is_full_disk);
        if left_out { Ok(()) } else { written }
    }

    fn bytes(&mut self) -> Result<u64> {
        self.file.stream_position().map_err(Error::io(&self.path, "look at"))
    }
}

impl Monitor {
    /// Goes on with the record in the folder `run` after the first bytes of its log and its validations, `done` steps of `batch`
    /// frames into the run.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn open(
        run: &Path,
        (log, validation): (u64, u64),
        (done, batch): (u64, u64),
        every: u64,
    ) -> Result<Monitor> {
        Ok(Monitor {
            log: Lines::open(run.join(LOG), Some(log))?,
            validation: Lines::open(run.join(VALIDATION), Some(validation))?,
            notes: Lines::open(run.join(NOTES), None)?,
            every,
            batch,
            done,
            steps: 0,
            losses: Vec::new(),
            norms: Vec::new(),
            norms_claimed: false,
            staleness: Vec::new(),
            skipped: 0,
            stall: Duration::ZERO,
            since: Instant::now(),
            totals: Totals::default(),
        })
    }

    /// Whether what does not fit on the disk is left out, instead of being an error.
    pub fn goes_on_when_full(&mut self, goes_on: bool) {
        for lines in [&mut self.log, &mut self.validation, &mut self.notes] {
            lines.goes_on_when_full = goes_on;
        }
    }

    /// Begins a new stretch of time, after a pause that counts for nothing.
    pub fn start(&mut self) {
        self.since = Instant::now();
    }

    /// True, once for each line, if the caller is to find the norms of its minibatch.
    pub fn claim_norms(&mut self) -> bool {
        let due = 2 * (self.done % self.every) + 1 >= self.every;
        let claims = due && !self.norms_claimed && self.norms.is_empty();
        self.norms_claimed |= claims;
        claims
    }

    /// Takes the norms of a minibatch, of the stages that learn.
    pub fn add_norms(&mut self, norms: Vec<StageNorms>) {
        (self.norms, self.norms_claimed) = (norms, false);
    }

    /// Takes the staleness of an update of the shared weights.
    pub fn add_staleness(&mut self, staleness: u64) {
        let age = (staleness as usize).min(STALEST);
        if self.staleness.len() <= age {
            self.staleness.resize(age + 1, 0);
        }
        self.staleness[age] += 1;
    }

    /// Takes a step, and writes a line if it is time for one; returns that line.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn add(&mut self, step: &Done, at: impl FnOnce(u64) -> Position) -> Result<Option<LogLine>> {
        self.losses.resize(step.losses.len(), Loss::default());
        let weight = step.steps as f64;
        for (sum, loss) in self.losses.iter_mut().zip(step.losses) {
            let [reconstruction, sparsity, signal] =
                [loss.reconstruction, loss.sparsity, loss.signal].map(|part| weight * part);
            *sum += Loss { reconstruction, sparsity, signal };
        }
        let before = self.done;
        self.done += step.steps;
        self.steps += step.steps;
        self.stall += step.stall;
        self.skipped += step.skipped;
        let due = self.done / self.every > before / self.every;
        if due { self.flush(at) } else { Ok(None) }
    }

    /// Writes what has not been written yet.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn flush(&mut self, at: impl FnOnce(u64) -> Position) -> Result<Option<LogLine>> {
        if self.steps == 0 {
            return Ok(None);
        }
        let at = at(self.done);
        let mean = 1.0 / self.steps as f64;
        let norms = mem::take(&mut self.norms);
        let stage = |(index, loss): (usize, &Loss)| {
            let norms = norms.get(index).copied().unwrap_or_default();
            let per_filter = |square: f64| (square / at.filters[index].max(1) as f64).sqrt().min(f64::MAX);
            StageLine {
                stage: at.first_stage + index + 1,
                reconstruction: mean * loss.reconstruction,
                sparsity: mean * loss.sparsity,
                loss: mean * loss.total(),
                unexplained: ratio(loss.reconstruction, loss.signal),
                balance: ratio(loss.sparsity, loss.reconstruction),
                gradient_norm: norms.gradient.sqrt().min(f64::MAX),
                encoder_norm: per_filter(norms.weights[0]),
                decoder_norm: per_filter(norms.weights[1]),
            }
        };
        let images_per_second =
            (self.steps * self.batch) as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        let line = LogLine {
            step: self.done,
            images: self.done * self.batch,
            seconds: at.seconds,
            rate: at.rate,
            images_per_second,
            peak_share: at.flops as f64 * images_per_second / at.peak.max(1.0),
            stall_seconds: self.stall.as_secs_f64(),
            staleness: mem::take(&mut self.staleness),
            skipped: self.skipped,
            stages: self.losses.iter().enumerate().map(stage).collect(),
        };
        self.log.write(&line)?;
        let totals = &mut self.totals;
        totals.stall += mem::take(&mut self.stall);
        totals.skipped += mem::take(&mut self.skipped);
        totals.staleness.resize(totals.staleness.len().max(line.staleness.len()), 0);
        totals.staleness.iter_mut().zip(&line.staleness).for_each(|(sum, count)| *sum += count);
        self.steps = 0;
        self.losses.clear();
        self.since = Instant::now();
        Ok(Some(line))
    }

    /// Writes a validation.
    ///
    /// # Errors
    /// Its file cannot be written.
    pub fn validated(&mut self, validation: &Validation) -> Result<()> {
        self.validation.write(validation)
    }

    /// Writes down that something happened.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&mut self, step: u64, note: &str) -> Result<()> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.notes.write(&Note { step, time, note: note.into() })
    }

    /// Goes on from what was done before.
    pub fn carry(&mut self, totals: Totals) {
        self.totals = totals;
    }

    /// Steps of the whole run so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// What was done since the log was opened, up to its last line.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Bytes of the log and of the validations so far.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn bytes(&mut self) -> Result<(u64, u64)> {
        Ok((self.log.bytes()?, self.validation.bytes()?))
    }
}

/// Finite whatever is divided by: JSON has no infinity.
fn ratio(part: f64, whole: f64) -> f64 {
    (part / whole.max(f64::MIN_POSITIVE)).min(f64::MAX)
}

/// Reads a file of lines: [`LogLine`], [`Validation`] or [`Note`]. A last line that a power cut left unfinished is passed over.
///
/// # Errors
/// It cannot be read, or a line is not what it should be.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let parse = |(number, line): (usize, &str)| {
        let problem = |e| Error::bad_file(path, format!("line {} is not a line of a log: {e}", number + 1));
        serde_json::from_str(line).map_err(problem)
    };
    whole.lines().enumerate().map(parse).collect()
}

/// Reads the log of a run.
///
/// # Errors
/// As [`read_lines`].
pub fn read_log(run: &Path) -> Result<Vec<LogLine>> {
    read_lines(&run.join(LOG))
}
