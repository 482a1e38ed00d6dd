//! `striate scale`: a larger network within a budget.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use striate::config::RunConfig;
use striate::dataset::available_memory;
use striate::error::Error;
use striate::files;
use striate::report::figure::grouped;
use striate::scale::{self, BASE_RATIOS, Budget, Dimension, Ratios, Scaled, Size};

use super::bench::parse_seconds;
use super::info::{flop, gb};
use super::{Global, bytes};

/// Grow a config within a budget of compute and memory: pictures, stages and maps together, or one of them alone.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate scale configs/small.toml --budget 4 --out larger.toml
  striate scale configs/small.toml --budget 4 --only maps --fill      # for comparison, at the same cost
  striate scale configs/paper.toml --budget 10 --memory 64G --no-measure
  striate scale configs/small.toml --budget 4 --ratios 1.1,1.4,1 --json

The budget is a multiple of what training the config itself takes, in arithmetic and in time on this machine. How the ratios were found,
and what growing is worth: docs/scale.md. The larger config takes larger frames: `striate sample --size`.")]
pub struct ScaleArgs {
    /// Settings to begin from; see configs/.
    config: PathBuf,
    /// Training may cost so many times as much.
    #[arg(long, value_name = "B")]
    budget: f64,
    /// How much sides of pictures, maps and the number of stages grow for one unit of φ [default: those of docs/scale.md].
    #[arg(long, value_name = "R,M,S", conflicts_with = "only")]
    ratios: Option<Ratios>,
    /// Grow only this.
    #[arg(long, value_enum, value_name = "WHAT")]
    only: Option<Dimension>,
    /// Most memory for training with one replica: bytes, 500MB, 4G [default: what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_memory)]
    memory: Option<u64>,
    /// Spend what rounding leaves of the budget on more steps of training.
    #[arg(long)]
    fill: bool,
    /// Go by arithmetic alone and measure no time: for another machine's config, or while this one is busy.
    #[arg(long)]
    no_measure: bool,
    /// Seconds that each phase of training is measured.
    #[arg(long, value_name = "S", default_value_t = 0.3, value_parser = parse_seconds)]
    seconds: f64,
    /// Replace one setting first. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Write the larger config into this file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
}

fn parse_memory(text: &str) -> Result<u64, String> {
    bytes(text).filter(|&bytes| bytes > 0).ok_or("expected bytes, such as 500MB or 4G".into())
}

pub fn run(args: ScaleArgs, global: Global) -> anyhow::Result<()> {
    let config = RunConfig::load(&args.config, &args.overrides)?;
    if let Some(out) = args.out.as_ref().filter(|out| out.exists() && !args.force) {
        return Err(Error::bad_file(out, "is there already; --force replaces it").into());
    }
    let ratios = args.only.map_or(args.ratios.unwrap_or(BASE_RATIOS), Ratios::only);
    let memory = args.memory.unwrap_or_else(available_memory);
    let budget = Budget { cost: args.budget, memory, fill: args.fill };
    let cores = std::thread::available_parallelism()?.get();
    let scaled = match args.no_measure {
        true => scale::fit(&config, ratios, &budget)?,
        false => scale::fit_measured(&config, ratios, &budget, |config| {
            let speed = scale::measure(config, cores, args.seconds)?;
            if !global.quiet {
                let RunConfig { input, stages, .. } = config;
                let (width, height, count, rate) =
                    (input.width, input.height, stages.len(), speed.images_per_second);
                say!("measured {count} stages on {width}x{height} pictures: {rate:.0} images/s");
            }
            Ok(speed)
        })?,
    };
    if let Some(out) = &args.out {
        let (name, phi) = (args.config.file_name().unwrap_or_default(), scaled.phi);
        let head =
            format!("# {name:?} grown by `striate scale`, budget {}: φ {phi:.3}, {ratios}.", args.budget);
        files::replace(out, format!("{head}\n{}", scaled.config.to_toml()))?;
    }
    global.print(&Shown { scaled, path: args.config, out: args.out })
}

#[derive(Serialize)]
struct Shown {
    path: PathBuf,
    out: Option<PathBuf>,
    #[serde(flatten)]
    scaled: Scaled,
}

/// What is said of a config: as text, where it is known, and as a number, where it is worth saying how it has grown.
type Row = (&'static str, fn(&Size) -> Option<String>, Option<fn(&Size) -> f64>);

const ROWS: [Row; 10] = [
    ("pictures", |s| Some(format!("{}x{}x{}", s.picture[2], s.picture[1], s.picture[0])), None),
    ("stages", |s| Some(s.maps.len().to_string()), None),
    ("maps", |s| Some(joined(&s.maps, ", ")), None),
    ("units", |s| Some(grouped(s.units as u64)), Some(|s| s.units as f64)),
    ("weights", |s| Some(grouped(s.weights)), Some(|s| s.weights as f64)),
    ("steps", |s| Some(joined(&s.steps, " + ")), None),
    ("arithmetic, an image", |s| Some(flop(s.learn_flops)), Some(|s| s.learn_flops)),
    ("arithmetic, training", |s| Some(flop(s.training_flops)), Some(|s| s.training_flops)),
    ("memory, one replica", |s| Some(gb(s.memory)), Some(|s| s.memory as f64)),
    ("images/s, measured", |s| Some(grouped(s.speed?.images_per_second as u64)), None),
];

fn joined(numbers: &[impl ToString], between: &str) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Scaled { phi, ratios, budget, cost, time, before, after, notes, .. } = &self.scaled;
        let path = self.path.display();
        writeln!(f, "{path} grown by φ = {phi:.2} ({ratios}), within {budget} times its cost\n")?;
        let mut rows = vec![["", "as it is", "grown", "times"].map(str::to_owned)];
        for (name, text, number) in ROWS {
            let Some((old, new)) = text(before).zip(text(after)) else { continue };
            let times = number.map(|number| number(after) / number(before));
            rows.push([name.into(), old, new, times.map_or(String::new(), |times| format!("{times:.2}"))]);
        }
        if let Some(((old, new), time)) = before.speed.zip(after.speed).zip(*time) {
            let [old, new] = [old, new].map(|speed| format!("{:.1} s", speed.seconds));
            rows.push(["time of a replica, measured".into(), old, new, format!("{time:.2}")]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let [first, second, third, fourth] = [0, 1, 2, 3].map(width);
        for [name, old, new, times] in &rows {
            let line = format!("{name:<first$}  {old:>second$}  {new:>third$}  {times:>fourth$}");
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f, "\ncost {cost:.2} of {budget} times")?;
        notes.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        if let Some(out) = &self.out {
            write!(f, "{}", out.display())?;
        }
        Ok(())
    }
}
