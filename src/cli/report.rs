//! `striate report`: a run as one HTML file.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use striate::report::write_report;

use super::{Global, example};

/// Write one self-contained HTML file that shows a run: detectors, units and a page for each, a map of frames, controls, filters, losses.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate report --example                 # a network that has seen drawn videos only, before you train your own
  striate visualize outputs/run && striate report outputs/run

The file needs no network and nothing beside it; open it in any browser. It shows what lies in RUN: pictures of units need `striate
visualize` before; detectors `evaluate`, tuning curves `tuning`, invariances `invariance`, the map `map`, the table of controls
`controls`, and why units answered as they did `explain`.")]
pub struct ReportArgs {
    /// Run folder of `striate train`.
    #[arg(required_unless_present = "example")]
    run: Option<PathBuf>,
    /// Show the network that comes with the program: unpack it, with frames to look at, into a folder, and do there all that a report shows.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "outputs/example", conflicts_with = "run")]
    example: Option<PathBuf>,
    /// File to write [default: RUN/report.html].
    #[arg(long, short)]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Written {
    report: PathBuf,
    bytes: u64,
    units: usize,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Written { report, bytes, units } = self;
        write!(f, "{} ({units} units, {:.1} MB)", report.display(), *bytes as f64 / 1e6)
    }
}

pub fn run(args: ReportArgs, global: Global) -> anyhow::Result<()> {
    let run = match (args.run, &args.example) {
        (Some(run), _) => run,
        (None, Some(folder)) => example::make(folder, global)?,
        (None, None) => unreachable!("one of both is required"),
    };
    let out = args.out.unwrap_or_else(|| run.join("report.html"));
    let (bytes, units) = write_report(&run, &out)?;
    if units == 0 && !global.quiet {
        say!("note: no pictures of units are there yet; `striate visualize {}` makes them", run.display());
    }
    global.print(&Written { report: out, bytes, units })
}
