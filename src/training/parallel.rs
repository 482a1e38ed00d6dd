//! How many replicas share how many threads, and whether all that they need fits in memory.

use serde::Serialize;

use crate::config::RunConfig;
use crate::dataset::available_memory;
use crate::error::{Error, Result};
use crate::kernels::lanes_for;
use crate::network::{TrainingBytes, training_bytes};

/// Threads and replicas of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Parallel {
    /// Threads in all.
    pub threads: usize,
    /// Replicas that share them.
    pub replicas: usize,
    /// Why so many.
    pub reason: String,
}

impl Parallel {
    /// As many replicas as the config asks for; where it leaves that open (0), one for each thread, or fewer if so many do
    /// not fit in memory beside the weights.
    pub fn new(config: &RunConfig, threads: usize) -> Parallel {
        let (asked, threads) = (config.training.replicas, threads.max(1));
        if asked > 0 {
            let reason = format!("training.replicas = {asked}; threads are divided among them");
            return Parallel { threads, replicas: asked, reason };
        }
        let have = available_memory();
        let fits = |replicas: &usize| need_bytes(config, *replicas).0 <= have;
        let replicas = (1..=threads).rev().find(fits).unwrap_or(1);
        let reason = if replicas == threads {
            "one for each thread, since replicas need not wait for each other".into()
        } else {
            format!("no more fit in {:.1} GB of memory; threads are divided among them", have as f64 / 1e9)
        };
        Parallel { threads, replicas, reason }
    }
}

/// Minibatches prepared before they are taken: one for each replica, as many again for when it is slow, and one at work.
pub(crate) fn ahead(replicas: usize) -> usize {
    2 * replicas + 1
}

/// Numbers in the input of a minibatch.
pub(crate) fn inputs_len(config: &RunConfig) -> usize {
    config.input_shape().len() * lanes_for(config.training.batch)
}

/// Bytes that a run takes in all, and what of.
fn need_bytes(config: &RunConfig, replicas: usize) -> (u64, String) {
    let TrainingBytes { weights, optimiser, activations, copies, gradients } =
        training_bytes(config, replicas);
    let prepared = 4 * (inputs_len(config) * ahead(replicas)) as u64;
    let parts = [
        ("weights", weights),
        ("optimiser", optimiser),
        ("activations of all replicas", replicas as u64 * activations),
        ("their own weights", replicas as u64 * copies),
        ("their own gradients", replicas as u64 * gradients),
        ("minibatches prepared ahead", prepared),
    ];
    let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
    let text: Vec<String> =
        parts.clone().map(|(what, bytes)| format!("{what} {:.1} GB", *bytes as f64 / 1e9)).collect();
    (parts.map(|(_, bytes)| bytes).sum(), text.join(", "))
}

/// Bytes that training takes in all, as [`check_memory`] counts.
pub fn memory_bytes(config: &RunConfig, replicas: usize) -> u64 {
    need_bytes(config, replicas).0
}

/// Refuses what does not fit in memory.
///
/// # Errors
/// As said, with what it would need and what there is.
pub fn check_memory(config: &RunConfig, replicas: usize) -> Result<()> {
    let ((need_bytes, parts), have_bytes) = (need_bytes(config, replicas), available_memory());
    if need_bytes > have_bytes {
        let what = format!("training with {replicas} replicas ({parts})");
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}

/// Refuses a worker of a job of several ranks that does not fit in memory: one of `parts` that its replica is split into.
///
/// # Errors
/// As said, with what it would need and what there is.
pub(crate) fn check_worker_memory(config: &RunConfig, parts: usize) -> Result<()> {
    let TrainingBytes { weights, optimiser, activations, .. } = training_bytes(config, 1);
    // In f32, whatever the weights are in.
    let gradients = weights / config.training.precision.bytes() as u64 * 4;
    let of_part = (weights + optimiser + gradients + activations) / parts as u64;
    let need_bytes = of_part + 4 * (inputs_len(config) * ahead(1)) as u64;
    let have_bytes = available_memory();
    if need_bytes > have_bytes {
        let what = format!("a worker with a replica split into {parts} (--split)");
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}
