//! Measures this machine, each kernel, and steps of training, side by side.
//!
//! A fraction of peak compares medians taken in turn: a burst of multiply-adds in registers, the thing measured, another
//! burst. FLOPs are those of filtering alone, `2 x products x connections x batch`, and of whitening where it is done; pooling, normalisation and updates cost
//! time and count none.

use std::hint::black_box;
use std::time::Instant;

use ndarray_rand::rand_distr::{Distribution, StandardNormal};
use rand::Rng;
use serde::Serialize;

use crate::analysis::evaluate::Group;
use crate::analysis::features::stream;
use crate::classify::tune::{self, Lesson, Tuner};
use crate::config::{Objective, Optimiser, Preprocess, RunConfig, Training};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::geometry::{Kind, StageShape};
use crate::kernels::{Cpu, Rows, lanes_for, machine};
use crate::network::preprocess::{Inputs, Whitening};
use crate::network::{At, Network, Stage, StageKernels, Unit, WeightUpdate, Workspace};
use crate::rng;
use crate::training::check_memory;
use crate::training::optimiser::Step;

/// Pictures that are encoded together, enough that every thread has batches to take, and their bytes, at most.
const ENCODED: usize = 4096;
const ENCODED_BYTES: usize = 1 << 26;

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// What: `kernel/...`, `step/...`, `training/...`, `network/...`, `tune/...` or `stimulus/...`.
    pub name: String,
    /// Threads that worked on it.
    pub threads: usize,
    /// Median rate of filtering arithmetic, where it does any.
    pub gflops: Option<f64>,
    /// That over the median peak measured in turn with it.
    pub fraction_of_peak: Option<f64>,
    /// Pictures in a second, where it works on whole pictures.
    pub images_per_second: Option<f64>,
    /// Least and greatest fraction of the rounds, where there are several.
    pub fraction_range: Option<[f64; 2]>,
    /// Median time of one run.
    pub milliseconds: f64,
    /// FLOPs for each byte that it must at least move: what a roofline is drawn over.
    pub intensity: Option<f64>,
}

/// What the machine can do with some number of threads.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    /// Threads.
    pub threads: usize,
    /// Median of all bursts of multiply-adds in registers.
    pub gflops: f64,
    /// Reading from memory.
    pub read_gb_per_second: f64,
    /// Reading and writing back; both directions counted.
    pub update_gb_per_second: f64,
}

/// All that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Instruction set.
    pub cpu: String,
    /// Clock by a chain of dependent additions.
    pub clock_ghz: Option<f64>,
    /// Lanes of the minibatch.
    pub batch: usize,
    /// Times that everything was measured: figures are medians of so many.
    pub rounds: usize,
    /// For each number of threads.
    pub peaks: Vec<Peak>,
    /// In the order in which they were measured.
    pub entries: Vec<Entry>,
}

/// What to measure.
pub struct Options<'a> {
    /// Numbers of threads to try.
    pub threads: Vec<usize>,
    /// Only entries whose names contain one of these; all if there are none.
    pub only: &'a [String],
    /// Time for each entry, in seconds; at least three runs are made.
    pub seconds: f64,
    /// Times that everything is measured, all numbers of threads in turn.
    pub rounds: usize,
}

/// What is measured of each stage.
const KERNELS: [&str; 7] =
    ["filter", "pool", "lcn", "transpose", "lcn-gradient", "pool-gradient", "weight-gradients"];
/// Entries for a step of each phase of training begin so; the phase's number follows, from 1.
pub const PHASE: &str = "training/phase";
/// Least runs of which the median counts.
const LEAST_RUNS: usize = 3;
/// Length of a burst that measures the peak.
const BURST_MS: f64 = 15.0;

struct Bench<'a> {
    cpu: Cpu,
    options: &'a Options<'a>,
    batch: usize,
    threads: usize,
    bursts: Vec<f64>,
    entries: Vec<Entry>,
    watch: &'a (dyn Fn(&Entry) + Sync),
}

/// What a run of an entry amounts to.
#[derive(Default, Clone, Copy)]
struct Work {
    flops: f64,
    images: f64,
    bytes: f64,
}

/// Measures the stages of a network and the whole; `watch` sees each entry when it is done.
///
/// # Errors
/// `STRIATE_CPU` asks for what this machine lacks, threads cannot be started, or what is to be measured does not fit in memory.
pub fn run(config: &RunConfig, options: &Options, watch: impl Fn(&Entry) + Sync) -> Result<Report> {
    let cpu = Cpu::detect()?;
    let rounds = (0..options.rounds.max(1)).map(|_| round(cpu, config, options, &watch));
    let rounds = rounds.collect::<Result<Vec<_>>>()?;
    let (peaks, entries): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
    let (clock_ghz, cpu) = (machine::clock_ghz(), cpu.name().to_string());
    Ok(Report {
        cpu,
        clock_ghz,
        batch: config.training.batch,
        rounds: peaks.len(),
        peaks: (0..peaks[0].len()).map(|at| middle_peak(peaks.iter().map(|round| &round[at]))).collect(),
        entries: (0..entries[0].len())
            .map(|at| middle_entry(entries.iter().map(|round| &round[at])))
            .collect(),
    })
}

/// Everything once, with each number of threads.
fn round(
    cpu: Cpu,
    config: &RunConfig,
    options: &Options,
    watch: &(dyn Fn(&Entry) + Sync),
) -> Result<(Vec<Peak>, Vec<Entry>)> {
    let (mut peaks, mut entries) = (Vec::new(), Vec::new());
    for &threads in &options.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::Mismatch(format!("cannot start {threads} threads: {e}")))?;
        let mut bench = Bench {
            cpu,
            options,
            batch: config.training.batch,
            threads,
            bursts: Vec::new(),
            entries: Vec::new(),
            watch,
        };
        let (read, update) = pool.install(|| {
            bench.stages(config)?;
            bench.phases(config)?;
            bench.network(config)?;
            bench.encode(config)?;
            bench.tune(config)?;
            bench.bursts.push(machine::fma_peak(cpu, BURST_MS));
            Ok::<_, Error>(machine::memory_bandwidth(cpu))
        })?;
        let gflops = median(&mut bench.bursts);
        peaks.push(Peak { threads, gflops, read_gb_per_second: read, update_gb_per_second: update });
        entries.append(&mut bench.entries);
    }
    Ok((peaks, entries))
}

/// The same peak in all rounds, each figure the median.
fn middle_peak<'a>(rounds: impl Iterator<Item = &'a Peak> + Clone) -> Peak {
    let figure = |of: fn(&Peak) -> f64| median(&mut rounds.clone().map(of).collect::<Vec<_>>());
    Peak {
        threads: rounds.clone().next().expect("at least one round").threads,
        gflops: figure(|peak| peak.gflops),
        read_gb_per_second: figure(|peak| peak.read_gb_per_second),
        update_gb_per_second: figure(|peak| peak.update_gb_per_second),
    }
}

/// The same entry in all rounds, each figure the median.
fn middle_entry<'a>(rounds: impl Iterator<Item = &'a Entry> + Clone) -> Entry {
    let figures = |of: fn(&Entry) -> Option<f64>| rounds.clone().filter_map(of).collect::<Vec<_>>();
    let figure = |of| Some(figures(of)).filter(|found| !found.is_empty()).map(|mut found| median(&mut found));
    let first = rounds.clone().next().expect("at least one round");
    let fractions = figures(|entry| entry.fraction_of_peak);
    let least = fractions.iter().copied().reduce(f64::min);
    let most = fractions.iter().copied().reduce(f64::max);
    Entry {
        name: first.name.clone(),
        threads: first.threads,
        gflops: figure(|entry| entry.gflops),
        fraction_of_peak: figure(|entry| entry.fraction_of_peak),
        images_per_second: figure(|entry| entry.images_per_second),
        fraction_range: least.zip(most).filter(|_| fractions.len() > 1).map(|(least, most)| [least, most]),
        milliseconds: figure(|entry| Some(entry.milliseconds)).expect("every entry has a time"),
        intensity: first.intensity,
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Leaves the weights alone.
struct Discard;

impl WeightUpdate for Discard {
    fn update(&self, _: At, _: usize, _: &mut [f32], _: &mut [f32], gradient: &mut [f32]) {
        black_box(gradient);
    }
}

impl Bench<'_> {
    fn wants(&self, name: &str) -> bool {
        self.options.only.is_empty() || self.options.only.iter().any(|part| name.contains(part))
    }

    /// Times `work` in turn with the peak.
    fn measure(&mut self, name: String, what: Work, mut work: impl FnMut()) {
        if !self.wants(&name) {
            return;
        }
        work(); // brings memory in and threads up
        let (mut seconds, mut peaks) = (Vec::new(), vec![machine::fma_peak(self.cpu, BURST_MS)]);
        let begun = Instant::now();
        while seconds.len() < LEAST_RUNS || begun.elapsed().as_secs_f64() < self.options.seconds {
            let start = Instant::now();
            work();
            seconds.push(start.elapsed().as_secs_f64());
            peaks.push(machine::fma_peak(self.cpu, BURST_MS));
        }
        self.bursts.extend(&peaks);
        let (time, peak) = (median(&mut seconds), median(&mut peaks));
        let positive = |x: f64| (x > 0.0).then_some(x);
        let entry = Entry {
            name,
            threads: self.threads,
            gflops: positive(what.flops / time / 1e9),
            fraction_of_peak: positive(what.flops / time / 1e9 / peak),
            images_per_second: positive(what.images / time),
            fraction_range: None,
            milliseconds: 1e3 * time,
            intensity: positive(what.flops).map(|flops| flops / what.bytes),
        };
        (self.watch)(&entry);
        self.entries.push(entry);
    }

    /// Each stage by itself, on random input of its size.
    fn stages(&mut self, config: &RunConfig) -> Result<()> {
        for (index, shape) in config.shapes().into_iter().enumerate() {
            let number = index + 1;
            let kernels = KERNELS.map(|kernel| format!("kernel/stage{number}/{kernel}"));
            let steps = ["sgd", "recipe"].map(|kind| format!("step/stage{number}/local-{kind}"));
            if !kernels.iter().chain(&steps).any(|name| self.wants(name)) {
                continue;
            }
            let [plain, recipe] = steps;
            for (name, plain) in [(plain, true), (recipe, false)] {
                let with_kernels = plain && kernels.iter().any(|name| self.wants(name));
                if !with_kernels && !self.wants(&name) {
                    continue;
                }
                let alone = alone(config, index, &shape, plain);
                check_memory(&alone, 1)?;
                let network = Network::new(&alone, 1)?;
                let mut work = random_input(&network, self.batch);
                if with_kernels {
                    self.kernels(&kernels, &network, &mut work);
                }
                self.step(name, &alone, &network, &mut work);
            }
        }
        Ok(())
    }

    fn kernels(&mut self, names: &[String; 7], network: &Network, work: &mut Workspace) {
        let (cpu, stage, batch) = (self.cpu, &network.stages[0], self.batch);
        let product = product(stage, batch);
        let [filter, pool, lcn, transpose, lcn_gradient, pool_gradient, weight_gradients] = names.clone();
        let Workspace { input, stages, pictures, .. } = work;
        let acts = &mut stages[0];
        self.measure(filter, product, || cpu.filter(stage, input, acts));
        self.measure(pool, Work::default(), || cpu.pool(stage, acts));
        self.measure(lcn, Work::default(), || cpu.normalise(stage, acts, *pictures));
        self.measure(transpose, product, || cpu.decode(stage, input, acts));
        // What the two use up is put back each time: it takes part in their time, a copy or two of the maps.
        self.measure(lcn_gradient, Work::default(), || {
            acts.dy.copy_from_slice(&acts.y);
            acts.dh.fill(0.0);
            cpu.normalisation_gradient(stage, acts);
        });
        self.measure(pool_gradient, Work::default(), || {
            acts.dh.fill(1e-3);
            cpu.pooling_gradient(stage, acts);
        });
        acts.da.fill(1e-3);
        // Through the decoder, and both gradients of weights.
        let three = Work { flops: 3.0 * product.flops, bytes: 2.0 * product.bytes, ..product };
        self.measure(weight_gradients, three, || cpu.learn(stage, input, acts, None, &Discard));
    }

    fn step(&mut self, name: String, config: &RunConfig, network: &Network, work: &mut Workspace) {
        let Work { flops, bytes, .. } = product(&network.stages[0], self.batch);
        let what = Work { flops: 5.0 * flops, images: self.batch as f64, bytes: 4.0 * bytes };
        let update = Step::new(self.cpu, &config.training, 1e-3, 0);
        self.measure(name, what, || {
            black_box(network.learn(work, 0..1, Objective::Local, &update));
        });
    }

    /// A step of each phase of the schedule: the way up to the stages that learn, and what they learn, all as the config has it.
    fn phases(&mut self, config: &RunConfig) -> Result<()> {
        let phases =
            (1..).zip(config.phases()).map(|(number, (stages, _))| (format!("{PHASE}{number}"), stages));
        let phases: Vec<_> = phases.filter(|(name, _)| self.wants(name)).collect();
        if phases.is_empty() {
            return Ok(());
        }
        check_memory(config, 1)?;
        let network = Network::new(config, 1)?;
        let mut work = random_input(&network, self.batch);
        let (objective, update) = (config.training.objective, Step::new(self.cpu, &config.training, 1e-3, 0));
        for (name, stages) in phases {
            let mut what = Work { images: self.batch as f64, ..Work::default() };
            for (index, stage) in network.stages[..stages.end].iter().enumerate() {
                let one = product(stage, self.batch);
                let (products, passes) = if index < stages.start {
                    (1.0, 1.0)
                } else if objective == Objective::Local || index == 0 {
                    (5.0, 4.0)
                } else {
                    (6.0, 4.0)
                };
                what.flops += products * one.flops;
                what.bytes += passes * one.bytes;
            }
            self.measure(name, what, || {
                black_box(network.learn(&mut work, stages.clone(), objective, &update));
            });
        }
        Ok(())
    }

    /// From pixels to features, as `striate encode` does it: preprocessing and inference, each thread by itself. What it is done to, and
    /// preprocessing fitted on, is noise, which costs as much as anything else.
    fn encode(&mut self, config: &RunConfig) -> Result<()> {
        let name = "network/encode";
        if !self.wants(name) {
            return Ok(());
        }
        check_memory(config, 1)?;
        let network = Network::new(config, 1)?;
        let (pictures, whitening) = noise(config)?;
        let count = pictures.len();
        let (inputs, all) = (Inputs::new(&pictures, &whitening, 0), (0..count).collect::<Vec<_>>());
        let of_stages = network.stages.iter().map(|stage| product(stage, count));
        let (flops, bytes) = of_stages.fold((0.0, 0.0), |(f, b), one| (f + one.flops, b + one.bytes));
        let flops = flops + whitening.flops() as f64 * count as f64;
        let (images, top) = (count as f64, (network.stages.len() - 1, Kind::Y));
        let mut ended = Ok(true);
        self.measure(name.into(), Work { flops, bytes, images }, || {
            ended = stream(&network, &inputs, &all, top, |rows| {
                black_box(rows);
                Ok(true)
            });
        });
        ended.map(|_| ())
    }

    /// Fine-tuning of all weights, with weights for each of ten classes and each value of the top stage: on pictures as they are, which are
    /// whitened once, and on such as are shifted and mirrored, whitened in each step.
    fn tune(&mut self, config: &RunConfig) -> Result<()> {
        const CLASSES: usize = 10;
        let names = [("tune/as-they-are", 0), ("tune/shifted", 2)];
        if !names.iter().any(|(name, _)| self.wants(name)) {
            return Ok(());
        }
        let mut config = config.clone();
        config.training.optimiser = Optimiser::Momentum;
        check_memory(&config, 1)?;
        let network = Network::new(&config, 1)?;
        let (pictures, whitening) = noise(&config)?;
        let all: Vec<usize> = (0..pictures.len()).collect();
        let class: Vec<usize> = all.iter().map(|picture| picture % CLASSES).collect();
        let bytes: f64 = network.stages.iter().map(|stage| product(stage, self.batch).bytes).sum();
        for (name, shift) in names.into_iter().filter(|(name, _)| self.wants(name)).collect::<Vec<_>>() {
            let settings = tune::Settings {
                group: Group { stage: network.stages.len() - 1, kind: Kind::Y },
                batch: self.batch,
                network_rate: 1e-6,
                shift,
                flip: shift > 0,
                ..tune::Settings::default()
            };
            let lesson = Lesson::new(&pictures, &all, (&class, CLASSES), &settings)?;
            let mut tuner = Tuner::new(&network, &whitening, &lesson, &settings);
            let images = self.batch as f64;
            let flops = images * tune::flops(&network, &whitening, &tuner.head, &settings) as f64;
            let mut ended = Ok(());
            self.measure(name.into(), Work { flops, bytes: 3.0 * bytes, images }, || {
                ended = tuner.step().map(|_| ());
            });
            ended?;
        }
        Ok(())
    }

    /// The whole network: training in its own mode, inference, and a step of the search for a stimulus.
    fn network(&mut self, config: &RunConfig) -> Result<()> {
        let objective = config.training.objective;
        let names =
            [format!("network/{}", objective.name()), "network/inference".into(), "stimulus/step".into()];
        if !names.iter().any(|name| self.wants(name)) {
            return Ok(());
        }
        check_memory(config, 1)?;
        let network = Network::new(config, 1)?;
        let (count, batch) = (network.stages.len(), self.batch);
        let mut work = random_input(&network, batch);
        let mut what = Work { images: batch as f64, ..Work::default() };
        for (index, stage) in network.stages.iter().enumerate() {
            let one = product(stage, batch);
            let products = if objective == Objective::Local || index == 0 { 5.0 } else { 6.0 };
            what.flops += products * one.flops;
            what.bytes += 4.0 * one.bytes;
        }
        let update = Step::new(self.cpu, &config.training, 1e-3, 0);
        let [train, infer, stimulus] = names;
        self.measure(train, what, || {
            black_box(network.learn(&mut work, 0..count, objective, &update));
        });
        let encode: f64 = network.stages.iter().map(|stage| product(stage, batch).flops).sum();
        let bytes: f64 = network.stages.iter().map(|stage| product(stage, batch).bytes).sum();
        let inference = Work { flops: encode, bytes, ..what };
        self.measure(infer, inference, || network.forward(&mut work, count - 1));
        let unit = Unit { map: 0, row: 0, col: 0 };
        let both = Work { flops: 2.0 * encode, bytes: 2.0 * bytes, images: 0.0 };
        self.measure(stimulus, both, || {
            network.forward(&mut work, count - 1);
            network.input_gradient(&mut work, count - 1, Kind::H, &vec![unit; batch]);
        });
        Ok(())
    }
}

/// Pictures of noise, which cost as much as any others, and preprocessing that is fitted on them.
fn noise(config: &RunConfig) -> Result<(Dataset, Whitening)> {
    let shape = config.input_shape();
    let count = ENCODED.min(ENCODED_BYTES / shape.len()).max(2);
    let mut noise = vec![0; count * shape.len()];
    rng::stream(1, "bench", 1).fill(&mut noise[..]);
    let pictures = Dataset::from_pixels(shape, noise);
    let whitening = Whitening::fit(&config.input, &pictures, 1)?;
    Ok((pictures, whitening))
}

/// One product of filtering with all weights of a stage; bytes of the weights, the input and the responses.
fn product(stage: &Stage, batch: usize) -> Work {
    let (s, lanes) = (&stage.shape, lanes_for(batch));
    let (weights, maps) = (s.connections() as f64, (lanes * (s.input.len() + s.filtered.len())) as f64);
    let bytes = stage.precision().bytes() as f64 * weights + size_of::<f32>() as f64 * maps;
    Work { flops: 2.0 * weights * batch as f64, images: batch as f64, bytes }
}

/// A network of one stage of another, trained as the config has it or, `plain`, with plain SGD.
fn alone(config: &RunConfig, index: usize, shape: &StageShape, plain: bool) -> RunConfig {
    let mut alone = config.clone();
    alone.stages = vec![config.stages[index].clone()];
    (alone.input.channels, alone.input.height, alone.input.width) =
        (shape.input.channels, shape.input.rows, shape.input.cols);
    alone.input.preprocess = Preprocess::None;
    if plain {
        alone.training = Training {
            optimiser: Optimiser::Sgd,
            decoder_norm_bound: 0.0,
            encoder_decay: 0.0,
            max_step: 0.0,
            rate: 1e-6,
            ..alone.training
        };
    }
    alone
}

fn random_input(network: &Network, batch: usize) -> Workspace {
    let rows = if rayon::current_num_threads() > 1 { Rows::Shared } else { Rows::InTurn };
    let mut work = network.workspace(batch).with_rows(rows);
    work.start(batch);
    let mut rng = rng::stream(1, "bench", 0);
    work.input.iter_mut().for_each(|x| *x = StandardNormal.sample(&mut rng));
    work
}
