//! Where the weights of a run are and who learns: replicas on threads, or workers and servers on other ranks, whom this process
//! leads.

use std::path::Path;
use std::sync::Arc;

use super::cluster::lead::Lead;
use super::cluster::serve::Errand;
use super::feeder::Feeder;
use super::replica::Replica;
use super::server::{ParameterServer, Store};
use super::state::State;
use super::validate::revive;
use crate::config::RunConfig;
use crate::error::Result;
use crate::kernels::{Buffer, Rows};
use crate::network::Network;
use crate::network::checkpoint::{self, share};
use crate::network::preprocess::Whitening;

/// See above.
pub(super) enum Engine<'a> {
    /// Threads of this process.
    Threads(Store),
    /// Ranks of a job.
    Cluster(&'a Lead<'a>),
}

impl Engine<'_> {
    /// What replicas fetch from and push to.
    pub fn server(&self) -> &dyn ParameterServer {
        match self {
            Engine::Threads(store) => store,
            Engine::Cluster(lead) => &lead.remote,
        }
    }

    /// Replicas of this process.
    pub fn replicas(
        &self,
        weights: &Arc<Network>,
        config: &RunConfig,
        (count, rows): (usize, Rows),
    ) -> Vec<Replica> {
        match self {
            Engine::Threads(_) => {
                (0..count).map(|_| Replica::new(weights, &config.training, count, rows)).collect()
            }
            Engine::Cluster(_) => vec![Replica::far(weights, &config.training, rows)],
        }
    }

    /// Swaps `input` for the next minibatch and returns its number; none if that would be `end` or more.
    pub fn take(&self, feeder: &Feeder, end: u64, input: &mut Buffer) -> Result<Option<u64>> {
        match self {
            Engine::Threads(_) => feeder.take(end, input),
            Engine::Cluster(lead) => match lead.desk().take() {
                Some(number) => {
                    lead.group.check()?;
                    lead.count(0);
                    lead.group.turn(number, feeder.next())?;
                    Ok(feeder.take(u64::MAX, input)?.map(|_| number))
                }
                None => Ok(None),
            },
        }
    }

    /// Tells the other parts of a replica that is split to look at frames with this one.
    pub fn look(&self, frames: &[usize]) -> Result<()> {
        match self {
            Engine::Threads(_) => Ok(()),
            Engine::Cluster(lead) => lead.group.look(frames),
        }
    }

    /// Minibatches that the replica of each worker learned from; empty on threads.
    pub fn done(&self) -> Vec<u64> {
        match self {
            Engine::Threads(_) => Vec::new(),
            Engine::Cluster(lead) => lead.done(),
        }
    }

    /// Refuses what was computed while a part of a replica was lost.
    pub fn check(&self) -> Result<()> {
        match self {
            Engine::Threads(_) => Ok(()),
            Engine::Cluster(lead) => lead.group.check(),
        }
    }

    /// Number of the minibatch that is next.
    pub fn next(&self, feeder: &Feeder) -> u64 {
        match self {
            Engine::Threads(_) => feeder.next(),
            Engine::Cluster(lead) => lead.desk().next(),
        }
    }

    /// Goes on from `weights`, which are those of the newest checkpoint of the run in `out`, or, if it has none, drawn from
    /// `seed`.
    pub fn begin_from(&mut self, weights: &Arc<Network>, out: &Path, seed: u64) -> Result<()> {
        match self {
            Engine::Threads(store) => *store = Store::new(Arc::clone(weights)),
            Engine::Cluster(lead) => {
                let errand = match checkpoint::latest(out) {
                    Some(checkpoint) => Errand::Load { checkpoint },
                    None => Errand::Draw { seed },
                };
                lead.send_servers(&errand)?;
            }
        }
        Ok(())
    }

    /// Draws filters anew, in `weights` and wherever else they are.
    pub fn revive(
        &self,
        weights: &Network,
        (stage, units): (usize, Vec<usize>),
        (seed, step): (u64, u64),
    ) -> Result<()> {
        revive(&weights.stages[stage], &units, seed, step);
        if let Engine::Cluster(lead) = self {
            lead.send_servers(&Errand::Revive { stage, units, seed, step })?;
        }
        Ok(())
    }

    /// Writes a checkpoint.
    pub fn save(
        &self,
        folder: &Path,
        config: &RunConfig,
        weights: &Network,
        whitening: &Whitening,
        state: &State,
    ) -> Result<()> {
        let data = &state.frames.fingerprint;
        match self {
            Engine::Threads(_) => checkpoint::save(folder, config, weights, whitening, data, state),
            Engine::Cluster(lead) => {
                let partial = share::begin(folder)?;
                let errand = Errand::Save { folder: partial.clone(), data: data.clone() };
                let parts = lead.send_servers(&errand).inspect_err(|_| {
                    // What is half written would only fill the disk; the error that matters is the first.
                    let _ = std::fs::remove_dir_all(&partial);
                })?;
                share::finish(folder, (config, data), whitening, state, &parts)
            }
        }
    }
}
