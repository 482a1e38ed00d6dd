//! What the commands share that compare or keep what a run's units say of frames.

use std::path::PathBuf;

use striate::analysis;
use striate::dataset::Dataset;
use striate::frames::FrameStore;
use striate::geometry::Kind;
use striate::network::Network;
use striate::network::checkpoint::{self, Checkpoint};

use super::Global;

/// Which values of which frames.
#[derive(clap::Args)]
pub struct ViewArgs {
    /// Run folder of `striate train`.
    pub run: PathBuf,
    /// Frames: a frame set, tar shards, or a folder of pictures [default: those the run was trained on].
    #[arg(long)]
    frames: Option<PathBuf>,
    /// Stage, from 1 [default: the top one].
    #[arg(long, value_name = "N")]
    stage: Option<usize>,
    /// Value of a unit: filtered (a), pooled (h) or normalised (y).
    #[arg(long, value_enum, default_value = "y")]
    kind: Kind,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// A run and its frames, decoded.
pub struct View {
    pub checkpoint: Checkpoint,
    pub identity: String,
    pub frames: PathBuf,
    pub dataset: Dataset,
    /// Stage, from 0, and which of its values.
    pub group: (usize, Kind),
}

impl ViewArgs {
    pub fn load(&self, global: &Global) -> anyhow::Result<View> {
        self.load_if(global, |_, _| Ok(()))
    }

    /// The same, if `check` has nothing against the network and which of its values are asked for: before frames are decoded, which may
    /// take long.
    pub fn load_if(
        &self,
        global: &Global,
        check: impl FnOnce(&Network, Kind) -> anyhow::Result<()>,
    ) -> anyhow::Result<View> {
        global.use_threads(self.threads)?;
        let checkpoint = checkpoint::load_latest(&self.run, false)?;
        let stage = analysis::stage(self.stage, checkpoint.network.stages.len())?;
        check(&checkpoint.network, self.kind)?;
        let identity = checkpoint::identity(&checkpoint::latest_of(&self.run)?)?;
        let frames = super::frames_of(&self.run, self.frames.clone())?;
        let dataset = global.pictures(&FrameStore::open(&frames)?, &self.run, &checkpoint.config)?;
        Ok(View { checkpoint, identity, frames, dataset, group: (stage, self.kind) })
    }
}
