//! `striate compare`: what do several runs come to?

use std::path::PathBuf;

use striate::report::compare::compare;

use super::Global;

/// Put the controls of several runs into one table: mean, spread and worst over runs that differ in their seed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate compare outputs/seed-1 outputs/seed-2 outputs/seed-3
  striate compare outputs/seed-* --concept faces > faces.md

The table is Markdown. Each line is the best detector of its kind in each run by the paper's rule, as `striate controls` found it;
\"spread\" is the standard deviation over runs; \"held out\" has detector and threshold chosen on one half of the pictures and tested on
the other. The paper's figures stand beside things whose name begins with face, bod or cat.")]
pub struct CompareArgs {
    /// Run folders of `striate train` with `controls` in them.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Only this thing [default: all].
    #[arg(long, value_name = "NAME")]
    concept: Option<String>,
}

pub fn run(args: CompareArgs, global: Global) -> anyhow::Result<()> {
    global.print(&compare(&args.runs, args.concept.as_deref())?)
}
