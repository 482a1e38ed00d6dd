//! A job of several ranks, as one of them takes part in it.

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

use super::follow::Follower;
use super::group::Group;
use super::lead::{Desk, Lead};
use super::remote::{Mail, Remote};
use super::serve::Server;
use super::shares::Shares;
use super::{LEADER, Post, Ranks};
use crate::config::{Mode, RunConfig};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::frames::FrameStore;
use crate::network::Network;
use crate::training::{Happened, Options, Summary, train};

/// After so long without a word from it, a rank that owes one is given up: a server that is to answer, or any worker.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Loads the frames of a job.
pub type Load<'a> = dyn Fn(&(dyn Fn() + Sync)) -> Result<Dataset> + 'a;

/// What every rank is given alike.
pub struct Job<'a> {
    /// Settings of the run.
    pub config: &'a RunConfig,
    /// The frames to learn from.
    pub store: &'a FrameStore,
    /// Where they are, for the record.
    pub frames: &'a Path,
    /// The run's folder, which all ranks see.
    pub out: &'a Path,
    /// Seed of the run.
    pub seed: u64,
    /// Threads of each rank.
    pub threads: usize,
    /// Go on with the run in the folder, if there is one.
    pub resume: bool,
    /// Go on although settings were changed.
    pub accept_changes: bool,
    /// Set to a signal's number to stop after the current step, save and return.
    pub interrupted: &'a AtomicUsize,
}

impl Ranks {
    /// Of `all` ranks, `servers` of which hold weights, by default one of five, while `parts` of the others make a replica.
    ///
    /// # Errors
    /// There would be no worker, or no server, or workers left over.
    pub fn new(all: usize, servers: Option<usize>, parts: usize) -> Result<Ranks> {
        let servers = servers.unwrap_or_else(|| all.div_ceil(5));
        match all.checked_sub(servers) {
            Some(workers) if workers > 0 && servers > 0 && !workers.is_multiple_of(parts) => {
                Err(Error::Mismatch(format!(
                    "{workers} workers ({all} ranks, {servers} servers) cannot be replicas of {parts} workers each"
                )))
            }
            Some(workers) if workers > 0 && servers > 0 => Ok(Ranks { workers, parts, servers }),
            _ => Err(Error::Mismatch(format!(
                "{servers} servers among {all} ranks: there has to be a server and a worker at least"
            ))),
        }
    }
}

impl Job<'_> {
    /// Refuses settings that a job of several ranks cannot have.
    ///
    /// # Errors
    /// As said.
    pub fn check(config: &RunConfig, ranks: Ranks) -> Result<()> {
        if config.training.mode == Mode::Sync {
            let (key, got) = ("training.mode".into(), "\"sync\"".into());
            return Err(Error::Setting { key, got, want: "\"async\" on several ranks".into() });
        }
        if config.training.global_clip > 0.0 && ranks.parts > 1 {
            let (key, got) = ("training.global_clip".into(), config.training.global_clip.to_string());
            return Err(Error::Setting { key, got, want: "0 where a replica is split over ranks".into() });
        }
        Ok(())
    }

    /// Takes part as the rank `rank` of `ranks`. On the leader, rank 0, `frames` is to load the frames by what it is given, which
    /// tells of each that it decodes itself; it returns what the run came to.
    ///
    /// # Errors
    /// Whatever ends the run; the caller is to end the other ranks then.
    pub fn take_part(
        &self,
        (ranks, rank): (Ranks, usize),
        post: &mut impl Post,
        frames: impl FnOnce(&Load) -> Result<Dataset> + Send,
        watch: impl Fn(Happened) + Sync + Send,
    ) -> Result<Option<Summary>> {
        let shares = Shares::new(&Network::zeros(self.config, false)?, ranks.servers);
        if let Some(number) = rank.checked_sub(ranks.workers) {
            Server::new(self.config, &shares, number, ranks)?.serve(post)?;
            return Ok(None);
        }
        let desk = Desk::default();
        let own_desk = (rank == LEADER).then_some(&desk);
        let (remote, courier, Mail { office, rows }) =
            Remote::new(self.config, (ranks, rank), &shares, own_desk, PATIENCE);
        let group = Group::new(ranks, rank, remote.outbox(), rows);
        thread::scope(|scope| {
            let desk = &desk;
            let work = move || match rank {
                LEADER => {
                    let lead = Lead::new((remote, group), ranks, desk, office);
                    let load = |progress: &(dyn Fn() + Sync)| self.load(&lead, progress);
                    let summary = self.lead(&lead, &mut frames(&load)?, watch)?;
                    lead.end()?;
                    Ok(Some(summary))
                }
                _ => {
                    let follower = Follower { remote, office, group };
                    follower.work(self.config, self.store, self.out, self.threads).map(|()| None)
                }
            };
            let work = thread::Builder::new().name("worker".into()).spawn_scoped(scope, work);
            let work =
                work.map_err(|e| Error::Mismatch(format!("cannot start the thread that learns: {e}")))?;
            // The post belongs to this thread.
            courier.run(ranks, post);
            work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The frames, which all workers decode together where that is not done.
    fn load(&self, lead: &Lead, progress: &(dyn Fn() + Sync)) -> Result<Dataset> {
        let (shape, margin) = (self.config.input_shape(), self.config.input.margin);
        let own =
            || Dataset::decode_share(self.store, shape, margin, self.out, lead.group.worker(), progress);
        Dataset::load_shared(self.store, shape, margin, self.out, || lead.decode(own))
    }

    fn lead(&self, lead: &Lead, frames: &mut Dataset, watch: impl Fn(Happened) + Sync) -> Result<Summary> {
        let options = Options {
            seed: self.seed,
            threads: self.threads,
            resume: self.resume,
            accept_changes: self.accept_changes,
            frames: self.frames,
            lead: Some((lead, self.store)),
            interrupted: self.interrupted,
        };
        train(self.config, frames, self.out, &options, watch)
    }
}
