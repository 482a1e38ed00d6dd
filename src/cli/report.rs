//! `striate report`: a run as one HTML file.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use striate::report::write_report;

use super::Global;

/// Write one self-contained HTML file that shows a run: losses, filters, units.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  striate visualize outputs/run
  striate report outputs/run

The file needs no network and nothing beside it. Without `striate visualize` before it, it shows losses only.")]
pub struct ReportArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
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
    let out = args.out.unwrap_or_else(|| args.run.join("report.html"));
    let (bytes, units) = write_report(&args.run, &out)?;
    global.print(&Written { report: out, bytes, units })
}
