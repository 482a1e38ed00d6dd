//! `striate classify compare`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;

use striate::classify::Weights;
use striate::classify::scores::scores;
use striate::classify::tune::{Settings, probabilities};
use striate::error::Error;
use striate::files;
use striate::network::checkpoint::Checkpoint;
use striate::network::preprocess::Inputs;

use super::tune::{TuningArgs, learner, tuned};
use super::{Decoded, LabelSource, decoded, network};
use crate::cli::Global;
use crate::cli::labelled::name;
use crate::cli::train::on_signals;

/// With and without pretraining, at several shares of the labels: what is it worth?
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  striate classify compare outputs/run --labels train/ --test test/
  striate classify compare outputs/run --labels train/ --validation other/ --network-rates 0.01,0.1,1 --test test/

Tunes as `striate classify tune` does, from the run's weights and from random ones, with the same labels and the same order, for each
share of the labels and each seed. One rate does not suit both: filters that a run learned are often much smaller than random ones, and
then the same step turns them further. --network-rates lets each have its best. The table is RUN/compare-labels/NAME.json, written after every line; the same command goes on
from there. Keeps no networks.")]
pub struct CompareArgs {
    /// Run folder of `striate train`.
    run: PathBuf,
    #[command(flatten)]
    tuning: TuningArgs,
    /// Labelled pictures to test on, given as --labels are. May be repeated.
    #[arg(long, required = true, value_name = "[CLASS=]PATH[::PATTERN]")]
    test: Vec<LabelSource>,
    /// Shares of the labels.
    #[arg(long, value_delimiter = ',', value_parser = super::fit::share, default_value = "0.01,0.1,1")]
    shares: Vec<f64>,
    /// Labelled pictures to choose the rate of encoders by, given as --labels are. May be repeated.
    #[arg(long, value_name = "[CLASS=]PATH[::PATTERN]", requires = "network_rates")]
    validation: Vec<LabelSource>,
    /// Rates of encoders, with commas between: for each share and both ways that is taken which is best on --validation, in the place of
    /// --network-rate.
    #[arg(long, value_name = "RATE", value_delimiter = ',', value_parser = rate, requires = "validation")]
    network_rates: Vec<f64>,
    /// Seeds for each, from --seed on.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    seeds: u16,
    /// What the table is called.
    #[arg(long, default_value = "classes", value_parser = name)]
    name: String,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or("expected a rate, 0 or more, such as 0.1".into())
}

/// One network of a comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    share: f64,
    seed: u64,
    pretrained: bool,
    /// Rate of the encoders.
    network_rate: f64,
    /// Pictures with labels.
    pictures: usize,
    top_1: f64,
    log_loss: f64,
}

/// `RUN/compare-labels/NAME.json`.
#[derive(Serialize, Deserialize)]
struct Comparison {
    checkpoint: String,
    settings: Settings,
    labels: Vec<String>,
    validation: Vec<String>,
    test: Vec<String>,
    test_pictures: usize,
    /// What rates came to on the pictures that they were chosen by.
    tried: Vec<Entry>,
    /// What was compared.
    networks: Vec<Entry>,
}

/// What all networks of a comparison have in common.
struct Common<'a> {
    checkpoint: &'a Checkpoint,
    train: &'a Decoded,
    settings: &'a Settings,
    stop: &'a AtomicUsize,
    global: &'a Global,
}

impl Common<'_> {
    /// Tunes a network and tests it on pictures; none if it was interrupted.
    fn entry(
        &self,
        (share, seed, pretrained): (f64, u64, bool),
        network_rate: f64,
        test: &Decoded,
    ) -> anyhow::Result<Option<Entry>> {
        let Common { checkpoint, train, stop, global, .. } = *self;
        let learner = learner(checkpoint, if pretrained { Weights::Learned } else { Weights::Random(seed) })?;
        let settings = Settings { seed, network_rate, ..self.settings.clone() };
        let (mut tuned, pictures) = tuned(&learner, checkpoint, train, (share, &settings), (stop, global))?;
        if !tuned.finished {
            return Ok(None);
        }
        let inputs = Inputs::new(&test.dataset, &checkpoint.whitening, 0);
        let rows = probabilities(&learner, &mut tuned.head, settings.group, &inputs, settings.batch);
        let scores = scores(&rows, &test.class, &train.classes);
        let (top_1, log_loss) = (scores.top_1, scores.log_loss);
        Ok(Some(Entry { share, seed, pretrained, network_rate, pictures, top_1, log_loss }))
    }
}

pub fn run(args: CompareArgs, global: Global) -> anyhow::Result<ExitCode> {
    global.use_threads(args.tuning.task.threads)?;
    let (checkpoint, identity) = network(&args.run, Weights::Learned, None)?;
    let settings = args.tuning.settings(&checkpoint.network, global.seed)?;
    let from = (&*args.run, &checkpoint);
    let (train, table) = args.tuning.task.pictures(from, &global)?;
    let others =
        |sources: &[LabelSource]| decoded(sources, table.as_ref(), (&train.classes, true), from, &global);
    let test = others(&args.test)?;
    let validation = match &args.validation[..] {
        [] => None,
        sources => Some(others(sources)?),
    };
    let path = args.run.join("compare-labels").join(format!("{}.json", args.name));
    std::fs::create_dir_all(args.run.join("compare-labels")).map_err(Error::io(&args.run, "create"))?;
    let mut comparison = Comparison {
        checkpoint: identity,
        settings: settings.clone(),
        labels: train.sources.clone(),
        validation: validation.as_ref().map_or(Vec::new(), |pictures| pictures.sources.clone()),
        test: test.sources.clone(),
        test_pictures: test.dataset.len(),
        tried: Vec::new(),
        networks: Vec::new(),
    };
    if let Some(before) = before(&path, &comparison) {
        comparison = before;
    }
    let stop: Arc<AtomicUsize> = on_signals()?;
    let common =
        Common { checkpoint: &checkpoint, train: &train, settings: &settings, stop: &stop, global: &global };
    let interrupted = || {
        say!("interrupted; the same command goes on");
        Ok(ExitCode::from(128 + stop.load(Ordering::Relaxed) as u8))
    };
    for &share in &args.shares {
        let mut rates = [settings.network_rate; 2];
        if let Some(validation) = &validation {
            for (rate, pretrained) in rates.iter_mut().zip([true, false]) {
                for &tried in &args.network_rates {
                    let of = (share, global.seed, pretrained);
                    if !comparison.tried.iter().any(|one| one.is(of) && one.network_rate == tried) {
                        let Some(entry) = common.entry(of, tried, validation)? else { return interrupted() };
                        comparison.tried.push(entry);
                        files::replace(&path, serde_json::to_vec(&comparison)?)?;
                    }
                }
                let is_its = |one: &&Entry| {
                    one.is((share, global.seed, pretrained)) && args.network_rates.contains(&one.network_rate)
                };
                let of_rates = comparison.tried.iter().filter(is_its);
                let best = of_rates.max_by(|a, b| a.top_1.total_cmp(&b.top_1));
                *rate = best.expect("rates were tried").network_rate;
            }
        }
        for seed in global.seed..global.seed + u64::from(args.seeds) {
            for (rate, pretrained) in rates.into_iter().zip([true, false]) {
                let of = (share, seed, pretrained);
                if comparison.networks.iter().any(|one| one.is(of) && one.network_rate == rate) {
                    continue;
                }
                comparison.networks.retain(|one| !one.is(of));
                let Some(entry) = common.entry(of, rate, &test)? else { return interrupted() };
                comparison.networks.push(entry);
                files::replace(&path, serde_json::to_vec(&comparison)?)?;
            }
        }
    }
    global.print(&comparison)?;
    Ok(ExitCode::SUCCESS)
}

impl Entry {
    fn is(&self, (share, seed, pretrained): (f64, u64, bool)) -> bool {
        (self.share, self.seed, self.pretrained) == (share, seed, pretrained)
    }
}

/// What an earlier call came to that was made from the same.
fn before(path: &Path, now: &Comparison) -> Option<Comparison> {
    let bytes = std::fs::read(path).ok()?;
    let before: Comparison = serde_json::from_slice(&bytes).ok()?;
    let made_of = |of: &Comparison| {
        json!([of.checkpoint, of.settings, of.labels, of.validation, of.test, of.test_pictures])
    };
    (made_of(&before) == made_of(now)).then_some(before)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for Entry { share, pretrained, network_rate, top_1, .. } in &self.tried {
            let from = if *pretrained { "pretrained" } else { "random weights" };
            writeln!(
                f,
                "{:.0} % of the labels, {from}, rate {network_rate}: {:.1} % of the pictures that rates are chosen by",
                100.0 * share,
                100.0 * top_1
            )?;
        }
        writeln!(f, "top-1 of {} test pictures, %: mean over seeds (least to most)", self.test_pictures)?;
        write!(
            f,
            "{:>9} {:>9} {:>24} {:>6} {:>24} {:>6} {:>7}",
            "labels", "pictures", "pretrained", "rate", "random weights", "rate", "gain"
        )?;
        let mut shares: Vec<f64> = self.networks.iter().map(|one| one.share).collect();
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        for share in shares {
            let of = |pretrained: bool| {
                let all = self
                    .networks
                    .iter()
                    .filter(move |one| one.share == share && one.pretrained == pretrained);
                let rate = all.clone().next().map_or("-".into(), |one| one.network_rate.to_string());
                let all: Vec<f64> = all.map(|one| 100.0 * one.top_1).collect();
                let (least, most) = all.iter().fold((f64::MAX, f64::MIN), |(l, m), &x| (l.min(x), m.max(x)));
                let mean = all.iter().sum::<f64>() / all.len() as f64;
                (mean, format!("{mean:.1} ({least:.1} to {most:.1})"), rate)
            };
            let ((own, of_own, own_rate), (random, of_random, random_rate)) = (of(true), of(false));
            let pictures = self.networks.iter().find(|one| one.share == share).map_or(0, |one| one.pictures);
            write!(
                f,
                "\n{:>7.0} % {pictures:>9} {of_own:>24} {own_rate:>6} {of_random:>24} {random_rate:>6} {:>7.1}",
                100.0 * share,
                own - random
            )?;
        }
        Ok(())
    }
}
