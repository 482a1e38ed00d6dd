//! `striate encode`: what a run's units say of every frame, in a file for use elsewhere.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use serde::Serialize;

use striate::analysis::features::{About, Encoded, Format, encode};
use striate::network::preprocess::Inputs;
use striate::report::figure::grouped;

use super::Global;
use super::train::on_signals;
use super::view::{View, ViewArgs};

/// Keep the values of all units of a stage for every frame as safetensors, npy or Parquet.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate encode outputs/run --out features.safetensors
  striate encode outputs/run --frames faces.tar --stage 1 --kind h --out faces.npy
  striate encode outputs/run --out features.parquet

The ending of FILE says what it becomes:
  .safetensors  `features` [frame, unit] f32; `keys`, the names of the frames with line breaks between, as bytes; metadata
  .npy          [frame, unit] f32, and the names in FILE.keys.txt, a line each
  .parquet      a row for each frame: `key`, and a column `map:row:col` for each unit
Units are in order of map, row and column. FILE is replaced once it is complete: Ctrl-C leaves what was there. docs/python.md has
snippets that read all this.")]
pub struct EncodeArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub fn run(args: EncodeArgs, global: Global) -> anyhow::Result<ExitCode> {
    Format::of(&args.out)?;
    let View { checkpoint, identity, frames, dataset, group: (stage, kind) } = args.view.load(&global)?;
    let network = &checkpoint.network;
    let shape = network.shape(stage, kind);
    let about = About { run: args.view.run, checkpoint: identity, frames, stage, kind, shape };
    let inputs = Inputs::new(&dataset, &checkpoint.whitening, 0);
    let interrupted = on_signals()?;
    let (bar, progress) = global.parts("encode");
    let encoded = encode(network, &inputs, &dataset.keys, about, &args.out, (&interrupted, &progress));
    bar.finish();
    match encoded? {
        Some(encoded) => global.print(&Shown(encoded))?,
        None => {
            say!("interrupted; {} was not written", args.out.display());
            return Ok(ExitCode::from(128 + interrupted.load(Ordering::Relaxed) as u8));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Encoded);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Encoded { about, out, keys, pictures, units, seconds } = &self.0;
        let (count, rate) = (grouped(*pictures as u64), grouped((*pictures as f64 / seconds) as u64));
        let (stage, kind) = (about.stage + 1, about.kind);
        writeln!(f, "{count} frames, {units} values each of stage {stage} ({kind}), {rate} frames/s")?;
        writeln!(f, "{}", out.display())?;
        keys.as_ref().map_or(Ok(()), |keys| writeln!(f, "{}", keys.display()))
    }
}
