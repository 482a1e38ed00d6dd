//! `striate watch`: how far is that run, and is it well?

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use indicatif::HumanDuration;
use serde::Serialize;

use striate::config::RunConfig;
use striate::error::Error;
use striate::network::checkpoint;
use striate::report::figure::{grouped, significant};
use striate::training::monitor::{self, LogLine, Note, read_lines};
use striate::training::validate::Validation;

use super::Global;

/// Look at a run while it trains: progress, losses, units, speed, and what happened.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate watch outputs/run
  striate watch outputs/run --once
  striate watch outputs/run --json | jq .eta_seconds
  tensorboard --logdir outputs/run     # the same in a browser, with the filters")]
pub struct WatchArgs {
    /// Run folder.
    run: PathBuf,
    /// Look once, and do not wait for more. Also where stdout is no terminal.
    #[arg(long)]
    once: bool,
    /// Seconds between looks.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", value_parser = interval)]
    interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    let wanted = || format!("`{text}` is no number of seconds from 0.1 to 3600");
    text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds)).ok_or_else(wanted)
}

/// What a run looks like now.
#[derive(Serialize)]
struct Look {
    run: PathBuf,
    step: u64,
    steps_planned: u64,
    finished: bool,
    /// Seconds left at the present speed.
    eta_seconds: Option<f64>,
    /// Seconds since the log was written to.
    quiet_seconds: Option<f64>,
    last: Option<LogLine>,
    /// The last of each stage.
    validations: Vec<Validation>,
    checkpoints: Vec<PathBuf>,
    notes: Vec<Note>,
    #[serde(skip)]
    log: Vec<LogLine>,
}

/// Lines over which the speed is taken.
const RECENT: usize = 10;

/// Notes shown.
const NOTES_SHOWN: usize = 6;

impl Look {
    fn at(run: &Path) -> anyhow::Result<Look> {
        let path = run.join("config.toml");
        if !path.is_file() {
            return Err(Error::bad_file(run, "not a run: it has no config.toml").into());
        }
        let config = RunConfig::load(&path, &[])?;
        let steps_planned = config.training.steps.iter().sum();
        let log_path = run.join(monitor::LOG);
        let log: Vec<LogLine> = lines(&log_path)?;
        let mut validations: Vec<Validation> = Vec::new();
        for validation in lines::<Validation>(&run.join(monitor::VALIDATION))? {
            let stages = |v: &Validation| v.stages.iter().map(|stage| stage.stage).collect::<Vec<_>>();
            validations.retain(|before| stages(before) != stages(&validation));
            validations.push(validation);
        }
        let (last, step) = (log.last().cloned(), log.last().map_or(0, |line| line.step));
        let recent = &log[log.len().saturating_sub(RECENT + 1)..];
        let speed = recent.first().zip(recent.last()).and_then(|(first, last)| {
            let seconds = last.seconds - first.seconds;
            (seconds > 0.0).then(|| (last.step - first.step) as f64 / seconds)
        });
        let written = log_path.metadata().and_then(|metadata| metadata.modified()).ok();
        let quiet = written.and_then(|time| SystemTime::now().duration_since(time).ok());
        Ok(Look {
            run: run.into(),
            step,
            steps_planned,
            finished: step >= steps_planned,
            eta_seconds: speed.map(|speed| steps_planned.saturating_sub(step) as f64 / speed),
            quiet_seconds: quiet.map(|quiet| quiet.as_secs_f64()),
            last,
            validations,
            checkpoints: checkpoint::all(run),
            notes: lines(&run.join(monitor::NOTES))?,
            log,
        })
    }
}

/// Lines of a file that may not be there yet.
fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    if path.exists() { Ok(read_lines(path)?) } else { Ok(Vec::new()) }
}

/// A curve as a line of characters, by its logarithm.
fn sparkline(values: &[f64]) -> String {
    const WIDTH: usize = 40;
    let values: Vec<f64> = values.iter().map(|x| x.ln()).filter(|x| x.is_finite()).collect();
    let bars: Vec<char> = "▁▂▃▄▅▆▇█".chars().collect();
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    let count = values.len().min(WIDTH);
    let mean = |piece: &[f64]| piece.iter().sum::<f64>() / piece.len() as f64;
    let bar = |number: usize| {
        let piece = &values[number * values.len() / count..(number + 1) * values.len() / count];
        let height = (mean(piece) - low) / (high - low).max(1e-12);
        bars[((height * 8.0) as usize).min(7)]
    };
    (0..count).map(bar).collect()
}

fn duration(seconds: f64) -> HumanDuration {
    HumanDuration(Duration::from_secs_f64(seconds.clamp(0.0, 1e12)))
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let share = self.step as f64 / self.steps_planned.max(1) as f64;
        let bar: String = (0..30).map(|at| if f64::from(at) < 30.0 * share { '=' } else { ' ' }).collect();
        let (done, all) = (grouped(self.step), grouped(self.steps_planned));
        write!(f, "{}\n[{bar}] {done}/{all} steps ({:.0} %)", self.run.display(), 100.0 * share)?;
        match (self.finished, self.eta_seconds) {
            (true, _) => writeln!(f, ", finished")?,
            (false, Some(eta)) => writeln!(f, ", {} left", duration(eta))?,
            _ => writeln!(f)?,
        }
        let Some(last) = &self.last else { return write!(f, "no line of the log yet") };
        writeln!(
            f,
            "{} images in {}, {} images/s, {:.0} % of peak, {:.1} s waited for frames",
            grouped(last.images),
            duration(last.seconds),
            grouped(last.images_per_second.round() as u64),
            100.0 * last.peak_share,
            last.stall_seconds,
        )?;
        let updates: u64 = last.staleness.iter().sum();
        let ages = last.staleness.iter().enumerate().filter(|(_, count)| **count > 0);
        let ages: Vec<String> =
            ages.map(|(age, count)| format!("{age}: {} %", 100 * count / updates.max(1))).collect();
        if !ages.is_empty() {
            writeln!(f, "weights so many updates old: {}", ages.join(", "))?;
        }
        if let Some(quiet) = self.quiet_seconds.filter(|quiet| !self.finished && *quiet > 60.0) {
            writeln!(f, "nothing was written for {}: the run may have ended", duration(quiet))?;
        }
        let mut stages: Vec<usize> =
            self.log.iter().flat_map(|line| &line.stages).map(|stage| stage.stage).collect();
        stages.sort_unstable();
        stages.dedup();
        for number in stages {
            let of_stage = |line: &LogLine| line.stages.iter().find(|stage| stage.stage == number).cloned();
            let all: Vec<_> = self.log.iter().filter_map(of_stage).collect();
            let Some(now) = all.last() else { continue };
            let losses: Vec<f64> = all.iter().map(|stage| stage.loss).collect();
            writeln!(
                f,
                "\nstage {number}  loss {}  {}\n  {:.0} % unexplained, sparsity / reconstruction {:.2}, norms: gradient {}, \
                 encoder {}, decoder {}",
                significant(now.loss),
                sparkline(&losses),
                100.0 * now.unexplained,
                now.balance,
                significant(now.gradient_norm),
                significant(now.encoder_norm),
                significant(now.decoder_norm),
            )?;
            let of_stage = |v: &Validation| v.stages.iter().find(|stage| stage.stage == number).cloned();
            let held = self.validations.iter().rev().find_map(of_stage);
            if let Some(held) = held {
                let (loss, dead, saturated, units) =
                    (significant(held.loss), held.dead, held.saturated, held.units);
                writeln!(f, "  held out: loss {loss}; of {units} units {dead} dead, {saturated} saturated")?;
            }
        }
        if let Some(newest) = self.checkpoints.last() {
            writeln!(f, "\ncheckpoint {}", newest.display())?;
        }
        let shown = &self.notes[self.notes.len().saturating_sub(NOTES_SHOWN)..];
        let notes = shown.iter().try_fold(String::new(), |mut text, note| {
            writeln!(text, "step {}: {}", note.step, note.note).map(|()| text)
        })?;
        write!(f, "{}", notes.trim_end())
    }
}

pub fn run(args: WatchArgs, global: &Global) -> anyhow::Result<()> {
    let stdout = std::io::stdout();
    if args.once || global.json || !stdout.is_terminal() {
        return global.print(&Look::at(&args.run)?);
    }
    loop {
        let look = Look::at(&args.run)?;
        // Home, the new text line by line, and away with what is left of the old.
        let text = look.to_string().replace('\n', "\x1b[K\n");
        let mut out = stdout.lock();
        if write!(out, "\x1b[H{text}\x1b[K\n\x1b[J").and_then(|()| out.flush()).is_err() || look.finished {
            return Ok(());
        }
        drop(out);
        std::thread::sleep(Duration::from_secs_f64(args.interval));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_falls_with_its_values_and_takes_any() {
        assert_eq!(sparkline(&[8.0, 4.0, 2.0, 1.0]), "█▆▃▁");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[5.0, f64::NAN, 5.0]), "▁▁");
        let long: Vec<f64> = (1..1000).map(f64::from).collect();
        assert_eq!(sparkline(&long).chars().count(), 40);
    }
}
