//! Where a run stands, and whether it can go on from there.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Options;
use crate::config::RunConfig;
use crate::dataset::is_cache_file;
use crate::error::{Error, Result};
use crate::files;
use crate::network::checkpoint::{self, Checkpoint};

/// Where a run stands; saved with each checkpoint. All randomness follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Phase of the schedule, from 0.
    pub phase: usize,
    /// Steps done in this phase.
    pub phase_step: u64,
    /// Steps done in the whole run: the number of the next minibatch.
    pub step: u64,
    /// Frames learned from.
    pub images: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of the validations.
    #[serde(default)]
    pub validation_bytes: u64,
    /// Seed of the run.
    pub seed: u64,
    /// See [`Split::fingerprint`](crate::dataset::Split::fingerprint); empty in checkpoints of older versions.
    #[serde(default)]
    pub held_out: String,
    /// The checkpoint of this phase with the lowest validation loss.
    #[serde(default)]
    pub best: Option<Best>,
    /// The frames that it learns from.
    pub frames: FramesUsed,
}

/// A checkpoint and its validation loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Phase of the schedule, from 0.
    pub phase: usize,
    /// Step of the run.
    pub step: u64,
    /// Validation loss of the stages that were learning.
    pub loss: f64,
}

/// The frames that a run learns from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FramesUsed {
    /// Where they are, as an absolute path.
    pub path: PathBuf,
    /// How many.
    pub count: usize,
    /// See [`Dataset::fingerprint`](crate::dataset::Dataset::fingerprint).
    pub fingerprint: String,
}

impl State {
    /// At the beginning of a run.
    pub fn new(seed: u64, frames: FramesUsed) -> State {
        State {
            phase: 0,
            phase_step: 0,
            step: 0,
            images: 0,
            seconds: 0.0,
            log_bytes: 0,
            validation_bytes: 0,
            seed,
            held_out: String::new(),
            best: None,
            frames,
        }
    }
}

/// Refuses a folder that a run cannot be written to: one that holds something, unless a run in it is to be continued.
///
/// # Errors
/// As said.
pub fn check_folder(out: &Path, resume: bool) -> Result<()> {
    let is_run = checkpoint::latest(out).is_some() || out.join("config.toml").is_file();
    let problem = match (is_occupied(out), resume) {
        (true, false) => "holds something already; continue a run with --resume, or choose another folder",
        (true, true) if !is_run => "holds something, but no run to continue; choose another folder",
        _ => return Ok(()),
    };
    Err(Error::bad_file(out, problem))
}

/// True if the folder holds anything but decoded frames: those alone are what an interruption before the first step leaves.
fn is_occupied(out: &Path) -> bool {
    let other = |entry: fs::DirEntry| !entry.file_name().to_str().is_some_and(is_cache_file);
    fs::read_dir(out).is_ok_and(|entries| entries.flatten().any(other))
}

/// Settings that a run can go on with although it was begun with others.
fn may_change(difference: &str) -> bool {
    let key = difference.split(':').next().unwrap_or_default();
    let fixed = ["objective", "schedule", "optimiser", "precision", "batch", "held_out"];
    match key.rsplit_once('.') {
        Some(("training", name)) => !fixed.contains(&name),
        Some((section, name)) => section.starts_with("stages.") && name == "sparsity_weight",
        None => false,
    }
}

/// How often the run in a folder went back to an earlier checkpoint; kept beside the checkpoints, since it must outlive a kill
/// before the next of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RollBacks {
    /// How often.
    pub count: u32,
}

impl RollBacks {
    const FILE: &str = "roll-backs.json";

    /// None yet, where the file is not there.
    pub fn read(run: &Path) -> Result<RollBacks> {
        let path = run.join(Self::FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| Error::bad_file(&path, format!("not a number of roll-backs: {e}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(RollBacks::default()),
            Err(error) => Err(Error::io(&path, "read")(error)),
        }
    }

    pub fn write(self, run: &Path) -> Result<()> {
        files::replace(&run.join(Self::FILE), serde_json::to_string(&self).expect("plain data"))
    }

    /// What the learning rate is multiplied by.
    pub fn rate_factor(self) -> f64 {
        0.5f64.powi(self.count as i32)
    }
}

/// The network of a checkpoint and where its run stands, to go on with by the settings `config`. A run that was complete goes on
/// where its last stage is given more steps.
pub(super) fn load(folder: &Path, config: &RunConfig, options: &Options) -> Result<(Checkpoint, State)> {
    let mut state: State = checkpoint::read_state(folder)?;
    let config_then = checkpoint::read_config(folder)?;
    let network = options.empty(&config_then)?;
    checkpoint::load_into(&network, folder)?;
    let whitening = checkpoint::load_whitening(folder)?;
    let mut found = Checkpoint { config: config_then, network, whitening };
    let (before, now) = (found.config.phases(), config.phases());
    if state.phase == before.len() {
        (state.phase, state.phase_step) = (before.len() - 1, before[before.len() - 1].1);
    }
    let done = before[..state.phase].iter().zip(&now).all(|(before, now)| before == now);
    if !done || state.phase >= now.len() || state.phase_step > now[state.phase].1 {
        let (phase, step) = (state.phase + 1, state.phase_step);
        let problem = format!(
            "the run is at step {step} of phase {phase}: training.steps cannot change what is done already"
        );
        return Err(Error::bad_file(folder, problem));
    }
    if state.phase + 1 == now.len() && state.phase_step == now[state.phase].1 {
        (state.phase, state.phase_step) = (now.len(), 0);
    }
    if found.config.stages != config.stages {
        // Losses of another objective tell nothing.
        state.best = None;
    }
    for (stage, settings) in found.network.stages.iter_mut().zip(&config.stages) {
        stage.settings = settings.clone();
    }
    Ok((found, state))
}

/// The run in a checkpoint and the settings that change, if settings and frames are those it was begun with; others are refused
/// by name, or, with `accept_changes`, those that a run cannot go on with.
///
/// # Errors
/// As said, or the checkpoint cannot be read.
pub(super) fn resume(
    folder: &Path,
    config: &RunConfig,
    used: &FramesUsed,
    options: &Options,
) -> Result<(Checkpoint, State, Vec<String>)> {
    let state: State = checkpoint::read_state(folder)?;
    if (state.frames.count, &state.frames.fingerprint) != (used.count, &used.fingerprint) {
        let (then, now) = (state.frames.count, used.count);
        let path = state.frames.path.display();
        let problem =
            format!("the run was begun with other frames: {then} of {path}, now {now} of another content");
        return Err(Error::bad_file(folder, problem));
    }
    let changed = checkpoint::read_config(folder)?.differences(config);
    let (allowed, refused): (Vec<String>, Vec<String>) = changed.into_iter().partition(|d| may_change(d));
    if !refused.is_empty() || (!allowed.is_empty() && !options.accept_changes) {
        let hint = if refused.is_empty() { "; --accept-changes goes on with the new ones" } else { "" };
        let all = [refused, allowed].concat().join("; ");
        let problem = format!("the run was begun with other settings: {all}{hint}");
        return Err(Error::bad_file(folder, problem));
    }
    let (found, state) = load(folder, config, options)?;
    Ok((found, state, allowed))
}
