//! The log of a run: `log.jsonl`, a line for every few steps.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::network::objective::Loss;

/// One line of the log: means over the steps since the line before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Seconds that replicas waited for minibatches since the line before, summed over replicas. Logs of older versions do not
    /// have it.
    #[serde(default)]
    pub stall_seconds: f64,
    /// The stages that were learning.
    pub stages: Vec<StageLine>,
}

/// One stage's part of a [`LogLine`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// Collects losses and writes the log.
pub struct Monitor {
    path: PathBuf,
    file: File,
    every: u64,
    /// Steps and losses since the last line.
    steps: u64,
    images: u64,
    losses: Vec<Loss>,
    stall: Duration,
    since: Instant,
    /// Up to the last line.
    stall_before: Duration,
}

/// Where a run stands when a line is written.
pub struct Position {
    /// See [`LogLine::step`].
    pub step: u64,
    /// See [`LogLine::images`].
    pub images: u64,
    /// See [`LogLine::seconds`].
    pub seconds: f64,
    /// See [`LogLine::rate`].
    pub rate: f64,
    /// First of the stages that are learning, from 0.
    pub first_stage: usize,
}

impl Monitor {
    /// Goes on with the log after its first `keep` bytes; what an interrupted run wrote later is cut off.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path, keep: u64, every: u64) -> Result<Monitor> {
        let open = || {
            let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
            file.set_len(keep)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(Error::io(path, "write"))?;
        let (path, since) = (path.into(), Instant::now());
        let (steps, images, losses, stall, stall_before) = (0, 0, Vec::new(), Duration::ZERO, Duration::ZERO);
        Ok(Monitor { path, file, every, steps, images, losses, stall, since, stall_before })
    }

    /// Begins a new stretch of time, after a pause that counts for nothing.
    pub fn start(&mut self) {
        self.since = Instant::now();
    }

    /// Takes the losses of a step, and how long it waited for its `images` frames, and writes a line if it is time for one;
    /// returns that line.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn add(
        &mut self,
        losses: &[Loss],
        images: usize,
        stall: Duration,
        at: &Position,
    ) -> Result<Option<LogLine>> {
        self.losses.resize(losses.len(), Loss::default());
        self.losses.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += *loss);
        self.steps += 1;
        self.images += images as u64;
        self.stall += stall;
        if self.steps < self.every { Ok(None) } else { self.flush(at) }
    }

    /// Writes what has not been written yet.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn flush(&mut self, at: &Position) -> Result<Option<LogLine>> {
        if self.steps == 0 {
            return Ok(None);
        }
        let mean = 1.0 / self.steps as f64;
        let stage = |(number, loss): (usize, &Loss)| StageLine {
            stage: number,
            reconstruction: mean * loss.reconstruction,
            sparsity: mean * loss.sparsity,
            loss: mean * loss.total(),
            unexplained: ratio(loss.reconstruction, loss.signal),
            balance: ratio(loss.sparsity, loss.reconstruction),
        };
        let line = LogLine {
            step: at.step,
            images: at.images,
            seconds: at.seconds,
            rate: at.rate,
            images_per_second: self.images as f64 / self.since.elapsed().as_secs_f64().max(1e-9),
            stall_seconds: self.stall.as_secs_f64(),
            stages: (at.first_stage + 1..).zip(&self.losses).map(stage).collect(),
        };
        let text = serde_json::to_string(&line).expect("a line is plain data");
        writeln!(self.file, "{text}").map_err(Error::io(&self.path, "write"))?;
        (self.steps, self.images) = (0, 0);
        self.stall_before += mem::take(&mut self.stall);
        self.losses.clear();
        self.since = Instant::now();
        Ok(Some(line))
    }

    /// Time that replicas have waited for minibatches since the log was opened, summed over replicas.
    pub fn stall(&self) -> Duration {
        self.stall_before + self.stall
    }

    /// Bytes of the log so far.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn bytes(&mut self) -> Result<u64> {
        self.file.stream_position().map_err(Error::io(&self.path, "look at"))
    }
}

/// Finite whatever is divided by: JSON has no infinity.
fn ratio(part: f64, whole: f64) -> f64 {
    (part / whole.max(f64::MIN_POSITIVE)).min(f64::MAX)
}

/// Reads a log.
///
/// # Errors
/// It cannot be read, or a line is not a line of a log.
pub fn read_log(path: &Path) -> Result<Vec<LogLine>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let parse = |(number, line): (usize, &str)| {
        let problem = |e| Error::bad_file(path, format!("line {} is not a line of a log: {e}", number + 1));
        serde_json::from_str(line).map_err(problem)
    };
    text.lines().enumerate().map(parse).collect()
}
