//! `striate bench`: how fast this machine is, and how near to its limit the kernels are.

use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use striate::bench::{self, Entry, Options, Report};
use striate::config::RunConfig;
use striate::report::figure;

use super::Global;

/// Measure this machine's peak, each kernel, training steps, inference and the stimulus search.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate bench
  striate bench --config configs/paper.toml --only step/stage1 --threads 1,2
  striate bench --only step --rounds 7 --seconds 0.5
  striate bench --json --svg roofline.svg

GFLOP/s count the arithmetic of filtering only; a fraction of peak compares medians measured in turn with
multiply-adds in registers, on the same threads.")]
pub struct BenchArgs {
    /// Settings whose stages are measured [default: those of configs/small.toml].
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// Replace one setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Numbers of threads [default: 1 and all cores].
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Pictures in a minibatch [default: that of the config].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Option<u16>,
    /// Only what has this in its name; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Seconds for each measurement.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Measure everything so often, all numbers of threads in turn, and give medians: for a machine that is not quiet.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Draw the roofline of the kernels into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(super) fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=600.0).contains(seconds));
    seconds.ok_or("expected a number of seconds from 0 to 600".into())
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Report);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Report { cpu, clock_ghz, batch, rounds, peaks, entries } = &self.0;
        let clock = clock_ghz.map_or(String::new(), |ghz| format!(", {ghz:.2} GHz"));
        let medians = if *rounds > 1 { format!("; medians of {rounds} rounds") } else { String::new() };
        writeln!(f, "{cpu}{clock}; batch {batch}{medians}")?;
        for peak in peaks {
            let (read, update) = (peak.read_gb_per_second, peak.update_gb_per_second);
            let threads = peak.threads;
            writeln!(
                f,
                "{threads} threads: {:.1} GFLOP/s peak, memory {read:.1} GB/s read, {update:.1} updated",
                peak.gflops
            )?;
        }
        write!(f, "{:<34}{:>8}{:>10}{:>8}{:>12}{:>12}", "", "threads", "GFLOP/s", "peak", "images/s", "ms")?;
        let optional =
            |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        for e in entries {
            let Entry { name, threads, milliseconds, .. } = e;
            let percent = e.fraction_of_peak.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share));
            let (gflops, images) = (optional(e.gflops, 1), optional(e.images_per_second, 1));
            write!(f, "\n{name:<34}{threads:>8}{gflops:>10}{percent:>8}{images:>12}{milliseconds:>12.3}")?;
            if let Some([least, most]) = e.fraction_range {
                write!(f, "   {:.0} to {:.0} %", 100.0 * least, 100.0 * most)?;
            }
        }
        Ok(())
    }
}

pub fn run(args: BenchArgs, global: Global) -> anyhow::Result<()> {
    let mut config = match &args.config {
        Some(path) => RunConfig::load(path, &args.overrides)?,
        None => RunConfig::parse(include_str!("../../configs/small.toml"), &args.overrides)?,
    };
    let cores = std::thread::available_parallelism()?.get();
    let threads = match args.threads.is_empty() {
        true if cores > 1 => vec![1, cores],
        true => vec![1],
        false => args.threads.iter().map(|&n| n.into()).collect(),
    };
    config.training.batch = args.batch.map_or(config.training.batch, usize::from);
    let options = Options { threads, only: &args.only, seconds: args.seconds, rounds: args.rounds.into() };
    let report = bench::run(&config, &options, |entry| {
        if !global.quiet {
            say!("measured {} on {} threads: {:.3} ms", entry.name, entry.threads, entry.milliseconds);
        }
    })?;
    if let Some(path) = &args.svg {
        let drawn = figure::roofline(&report);
        std::fs::write(path, drawn).with_context(|| format!("cannot write {}", path.display()))?;
    }
    global.print(&Shown(report))
}
