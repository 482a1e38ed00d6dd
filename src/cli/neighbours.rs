//! `striate neighbours`: the frames that a run's network sees as most like a picture.

use std::path::PathBuf;

use striate::frames::FrameStore;
use striate::report::neighbours::neighbours;

use super::Global;
use super::view::{View, ViewArgs};

/// Find the frames most like a picture, by what a run's units say of both.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate neighbours outputs/run face.jpg
  striate neighbours outputs/run faces/ cat.png --frames outputs/other-frames --keep 16
  striate neighbours outputs/run face.jpg --stage 1 --kind h --json

Every frame is compared: the similarity is the cosine of the values of all units of the stage. Pictures are cut, resized, greyed and
preprocessed as the run's frames were. Writes RUN/neighbours/NAME.png for each IMAGE: a row for each of its pictures, and after it
its neighbours from the most like. A picture that is a frame itself finds itself first.")]
pub struct NeighboursArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// Pictures to find neighbours of: a file, or a folder, frame set or tar, of which up to 64 are taken.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Neighbours of each.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    keep: u16,
}

pub fn run(args: NeighboursArgs, global: Global) -> anyhow::Result<()> {
    let open = |path: &PathBuf| Ok((path.clone(), FrameStore::open(path)?));
    let sources = args.images.iter().map(open).collect::<striate::Result<Vec<_>>>()?;
    for (_, store) in &sources {
        global.warn(store.warnings());
    }
    let View { checkpoint, identity, frames, dataset, group } = args.view.load(&global)?;
    let (bar, progress) = global.parts("neighbours");
    let out = args.view.run.join("neighbours");
    let (seen_by, among) = ((&checkpoint, identity.as_str()), (frames.as_path(), &dataset));
    let found = neighbours(seen_by, among, &sources, (group, args.keep.into()), &out, &progress);
    bar.finish();
    let found = found?;
    global.warn(&found.warnings);
    global.print(&found)
}
