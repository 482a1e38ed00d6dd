//! `striate frames`: look at frame sets, and join them.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use striate::frames::{self, FrameSetSummary, PictureFormat, WriterOptions};

/// Works on frame sets that `sample` made.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate frames merge part-0 part-1 --out all")]
pub struct FramesArgs {
    #[command(subcommand)]
    command: FramesCommand,
}

#[derive(Subcommand)]
enum FramesCommand {
    Merge(MergeArgs),
}

/// Joins the parts that `sample --shard I/N` made of a collection.
#[derive(Args)]
#[command(after_help = "\
Example:
  striate sample /data --out part-0 --shard 0/2
  striate sample /data --out part-1 --shard 1/2
  striate frames merge part-0 part-1 --out all")]
struct MergeArgs {
    /// Complete frame sets with the same settings.
    #[arg(required = true, value_name = "FRAMES")]
    sets: Vec<PathBuf>,
    /// Folder for the new set; its shards are linked where the file system allows it.
    #[arg(long, value_name = "FRAMES")]
    out: PathBuf,
    /// Replace the frame set in the folder, once the new one is complete.
    #[arg(long)]
    overwrite: bool,
}

/// What `striate frames merge` did.
#[derive(Serialize)]
struct Merged {
    sets: usize,
    frames: u64,
    inputs: u64,
    shards: u64,
    bytes: u64,
    out: PathBuf,
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Merged { sets, frames, inputs, shards, out, .. } = self;
        writeln!(f, "{frames} frames of {inputs} files from {sets} frame sets")?;
        write!(f, "{shards} shards, {:.1} MB in {}", self.bytes as f64 / 1e6, out.display())
    }
}

pub fn run(args: FramesArgs, global: Global) -> anyhow::Result<()> {
    match args.command {
        FramesCommand::Merge(args) => {
            // The pictures are taken as they are; no new one is compressed.
            let options =
                WriterOptions { overwrite: args.overwrite, ..WriterOptions::new(PictureFormat::Png) };
            let summary = frames::merge(&args.sets, &args.out, options)?;
            let FrameSetSummary { frames, inputs, shards, bytes, .. } = summary;
            global.print(&Merged { sets: args.sets.len(), frames, inputs, shards, bytes, out: args.out })
        }
    }
}
