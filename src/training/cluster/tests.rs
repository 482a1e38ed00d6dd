//! Workers and servers on threads, whose letters go through this process.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rand::Rng;

use super::group::Group;
use super::job::Job as Ranked;
use super::lead::{Desk, Lead};
use super::letters::{Kind, Letter};
use super::remote::Remote;
use super::serve::{Errand, Server};
use super::shares::Shares;
use super::{LEADER, Post, Ranks};
use crate::config::RunConfig;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::frames::FrameStore;
use crate::kernels::{Cpu, Rows};
use crate::network::checkpoint;
use crate::network::{Network, Weights};
use crate::rng;
use crate::training::optimiser::Step;
use crate::training::replica::{Job, Replica};
use crate::training::server::Store;
use crate::training::{Options, Summary, train};

/// A rank's post in this process.
struct Local {
    rank: usize,
    inbox: Receiver<(usize, Letter)>,
    boxes: Vec<Sender<(usize, Letter)>>,
    /// Letters that are not received yet, by sender and receiver.
    on_the_way: Arc<Vec<Vec<AtomicUsize>>>,
    /// Bytes sent, of gradients and of weights.
    bytes: Arc<[AtomicUsize; 2]>,
}

fn posts(ranks: usize) -> (Vec<Local>, Arc<[AtomicUsize; 2]>) {
    let (boxes, inboxes): (Vec<_>, Vec<_>) = (0..ranks).map(|_| channel()).unzip();
    let counts = || (0..ranks).map(|_| AtomicUsize::new(0)).collect();
    let (on_the_way, bytes) = (Arc::new((0..ranks).map(|_| counts()).collect::<Vec<_>>()), Arc::default());
    let post = |(rank, inbox)| {
        let (boxes, on_the_way, bytes) = (boxes.clone(), Arc::clone(&on_the_way), Arc::clone(&bytes));
        Local { rank, inbox, boxes, on_the_way, bytes }
    };
    (inboxes.into_iter().enumerate().map(post).collect(), bytes)
}

impl Post for Local {
    fn send(&mut self, to: usize, letter: Letter) {
        self.on_the_way[self.rank][to].fetch_add(1, Ordering::Relaxed);
        match letter.kind {
            Kind::Gradients => drop(self.bytes[0].fetch_add(letter.bytes.len(), Ordering::Relaxed)),
            Kind::Weights => drop(self.bytes[1].fetch_add(letter.bytes.len(), Ordering::Relaxed)),
            _ => {}
        }
        // A rank that has ended reads nothing more.
        let _ = self.boxes[to].send((self.rank, letter));
    }

    fn receive(&mut self) -> Option<(usize, Letter)> {
        let (from, letter) = self.inbox.try_recv().ok()?;
        self.on_the_way[from][self.rank].fetch_sub(1, Ordering::Relaxed);
        Some((from, letter))
    }

    fn on_the_way(&mut self, to: usize) -> usize {
        self.on_the_way[self.rank][to].load(Ordering::Relaxed)
    }
}

fn config(settings: &[&str]) -> RunConfig {
    let settings: Vec<String> = settings.iter().map(|text| text.to_string()).collect();
    RunConfig::parse(include_str!("../../../configs/tiny.toml"), &settings).unwrap()
}

fn fill(replica: &mut Replica, number: u64) {
    let mut rng = rng::stream(8, "inputs", number);
    replica.work.input.iter_mut().for_each(|x| *x = rng.random_range(-1.0..1.0));
}

fn weights(network: &Network) -> Vec<f32> {
    let both = |stage: &crate::network::Stage| [Weights::Encoder, Weights::Decoder].map(|w| stage.weights(w));
    network.stages.iter().flat_map(both).flatten().collect()
}

/// What came of a job.
struct Outcome {
    /// The weights of all servers.
    weights: Vec<f32>,
    /// Those that each worker had at the end.
    of_workers: Vec<Vec<f32>>,
    ages: Vec<u64>,
    bytes: [usize; 2],
}

/// A worker that learns from minibatches of its own: its weights at the end, and how stale its pushes were.
fn learn(
    config: &RunConfig,
    (ranks, rank, shares): (Ranks, usize, &Shares),
    numbers: Range<u64>,
    stages: Range<usize>,
    mut post: Local,
) -> Result<(Vec<f32>, Vec<u64>)> {
    let (remote, courier, mail) = Remote::new(config, (ranks, rank), shares, None, Duration::from_secs(20));
    let group = Group::new(ranks, rank, remote.outbox(), mail.rows);
    thread::scope(|scope| {
        scope.spawn(move || courier.run(ranks, &mut post));
        // Dropped in here, so that the courier ends.
        let (remote, group) = (remote, group);
        let own = Arc::new(group.own(Network::zeros(config, true)?));
        let mut replica = Replica::far(&own, &config.training, Rows::InTurn);
        let (job, mut ages) = (Job { training: &config.training, stages }, Vec::new());
        let step = |number| Step::new(Cpu::detect().unwrap(), &config.training, 1.0, number);
        for number in numbers.clone() {
            fill(&mut replica, number);
            replica.learn(&remote, &job, step(number), None, |age| ages.push(age))?;
        }
        replica.finish(&remote, &job, step(numbers.end), |age| ages.push(age))?;
        Ok((if own.is_whole() { weights(&own) } else { Vec::new() }, ages))
    })
}

/// Each worker learns from so many minibatches.
fn job(config: &RunConfig, ranks: Ranks, steps: u64, stages: Range<usize>) -> Outcome {
    let shares = &Shares::new(&Network::new(config, 3).unwrap(), ranks.servers);
    let (mut posts, bytes) = posts(ranks.workers + ranks.servers);
    let of_servers = posts.split_off(ranks.workers);
    let (servers, workers) = thread::scope(|scope| {
        let serve = |(number, mut post)| {
            let mut server = Server::new(config, shares, number, ranks).unwrap();
            server.run(Errand::Draw { seed: 3 }).unwrap();
            scope.spawn(move || server.serve(&mut post))
        };
        let servers: Vec<_> = of_servers.into_iter().enumerate().map(serve).collect();
        let work = |(worker, post)| {
            // All parts of a replica learn from the same.
            let (replica, stages) = ((worker / ranks.parts) as u64, stages.clone());
            let numbers = replica * steps..(replica + 1) * steps;
            scope.spawn(move || learn(config, (ranks, worker, shares), numbers, stages, post))
        };
        let workers: Vec<_> = (0..).zip(posts).map(work).collect();
        let workers: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap().unwrap()).collect();
        let servers: Vec<_> = servers.into_iter().map(|server| server.join().unwrap().unwrap()).collect();
        (servers, workers)
    });
    // Of each block the weights of the server that holds it.
    let whole = Network::zeros(config, false).unwrap();
    for (number, stage) in whole.stages.iter().enumerate() {
        for (block, to) in stage.blocks.all().iter().enumerate() {
            let from = servers[shares.server(number, block)].stages[number].blocks.all()[block].read();
            let mut to = to.write();
            to.encoder.copy_from(&from.encoder);
            to.decoder.copy_from(&from.decoder);
        }
    }
    let (of_workers, ages): (Vec<_>, Vec<_>) = workers.into_iter().unzip();
    let bytes = [0, 1].map(|of| bytes[of].load(Ordering::Relaxed));
    Outcome { weights: weights(&whole), of_workers, ages: ages.concat(), bytes }
}

/// The weights after the same minibatches of one replica in memory.
fn in_memory(config: &RunConfig, steps: u64) -> Vec<f32> {
    let store = Store::new(Network::new(config, 3).unwrap());
    let mut replica = Replica::new(&store.network, &config.training, 1, Rows::InTurn);
    let job = Job { training: &config.training, stages: 0..2 };
    for number in 0..steps {
        fill(&mut replica, number);
        replica
            .learn(&store, &job, Step::new(store.network.cpu, &config.training, 1.0, number), None, |_| ())
            .unwrap();
    }
    weights(&store.network)
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

const STEPS: u64 = 12;

#[test]
fn a_worker_alone_with_servers_learns_the_first_step_as_in_memory_and_then_as_well() {
    for servers in [1, 3] {
        for settings in [&["training.optimiser=sgd"][..], &["training.precision=bf16"]] {
            let config = config(settings);
            let first = weights(&Network::new(&config, 3).unwrap());
            let one = job(&config, Ranks { workers: 1, parts: 1, servers }, 1, 0..2);
            let off = difference(&one.weights, &in_memory(&config, 1));
            assert_eq!(off, 0.0, "{settings:?}: the first step, {servers} servers");
            let all = job(&config, Ranks { workers: 1, parts: 1, servers }, STEPS, 0..2);
            assert_eq!(difference(&all.weights, &all.of_workers[0]), 0.0, "at the end it has what they have");
            let (off, change) = (in_memory(&config, STEPS), difference(&all.weights, &first));
            let off = difference(&all.weights, &off);
            assert!(off < 0.5 * change, "{settings:?}: weights a step older make {off} of {change}");
            assert_eq!(all.ages, vec![0; STEPS as usize], "nobody else pushes");
        }
    }
}

#[test]
fn a_replica_that_is_split_over_workers_learns_as_one_that_is_not() {
    for settings in [
        &["training.optimiser=sgd"][..],
        &["training.objective=joint-full", "training.schedule=together", "training.steps=[9]"],
    ] {
        let config = config(settings);
        let first = weights(&Network::new(&config, 3).unwrap());
        for parts in [2, 3] {
            let one = job(&config, Ranks { workers: parts, parts, servers: 2 }, 1, 0..2);
            let (whole, off) = (in_memory(&config, 1), difference(&one.weights, &in_memory(&config, 1)));
            let change = difference(&whole, &first);
            assert!(off < 1e-5 * change, "{settings:?}, {parts} parts: {off} of {change}");
            assert_eq!(one.ages, [0], "one push for all parts");
        }
        // Two such replicas, each with its own minibatches.
        let two = job(&config, Ranks { workers: 4, parts: 2, servers: 2 }, STEPS, 0..2);
        assert!(two.weights.iter().all(|w| w.is_finite()) && two.weights != first);
        assert_eq!(two.ages.len(), 2 * STEPS as usize);
    }
}

#[test]
fn many_workers_and_servers_lose_no_push_and_know_how_stale_it_was() {
    let ranks = Ranks { workers: 4, parts: 1, servers: 3 };
    for settings in [
        &["training.optimiser=adagrad"][..],
        &["training.optimiser=momentum", "training.fetch_every=3"],
        &["training.optimiser=sgd", "training.push_every=2", "training.push_as=bf16"],
        &["training.fetch_every=4", "training.push_every=4", "training.push_as=top-percent"],
    ] {
        let config = config(settings);
        let done = job(&config, ranks, STEPS, 0..2);
        let pushes = ranks.workers * STEPS.div_ceil(config.training.push_every) as usize;
        assert_eq!(done.ages.len(), pushes, "{settings:?}");
        assert!(done.ages.iter().any(|&age| age > 0), "{settings:?}: {:?}", done.ages);
        assert!(done.ages.iter().all(|&age| age < pushes as u64), "{settings:?}: {:?}", done.ages);
        let first = weights(&Network::new(&config, 3).unwrap());
        assert!(done.weights.iter().all(|w| w.is_finite()) && done.weights != first, "{settings:?}");
    }
}

#[test]
fn gradients_take_the_bytes_that_they_should_and_stages_that_do_not_learn_are_sent_once() {
    let bytes = |settings: &[&str], stages| {
        job(&config(settings), Ranks { workers: 1, parts: 1, servers: 2 }, STEPS, stages).bytes
    };
    let network = Network::new(&config(&[]), 3).unwrap();
    let (blocks, numbers): (Vec<usize>, Vec<usize>) = network
        .stages
        .iter()
        .map(|stage| {
            let len = |block: &crate::network::weights::Block| block.read().encoder.len();
            (stage.blocks.all().len(), 2 * stage.blocks.all().iter().map(len).sum::<usize>())
        })
        .unzip();
    let steps = STEPS as usize;
    // Weights: before the first step, after each but the last, and at the end.
    let of = |bytes: usize| steps * (numbers[0] * bytes + blocks[0] * 5 * 8);
    let weights = |times: usize, stage: usize| times * (4 * numbers[stage] + blocks[stage] * 2 * 8);
    assert_eq!(bytes(&[], 0..1)[0], of(4));
    assert_eq!(bytes(&["training.push_as=bf16"], 0..1)[0], of(2));
    let [_, sent] = bytes(&[], 1..2);
    let (least, most) = (weights(2, 1), weights(steps + 2, 1));
    assert!((least..=most).contains(&(sent - weights(1, 0))), "{sent} bytes, of stage 1 {}", weights(1, 0));
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let (config, ranks) = (config(&[]), Ranks { workers: 1, parts: 1, servers: 2 });
    let shares = Shares::new(&Network::new(&config, 3).unwrap(), 2);
    let (mut posts, _) = posts(3);
    let silent = posts.split_off(2);
    let mut server = posts.pop().unwrap();
    let mut post = posts.pop().unwrap();
    let (remote, courier, _mail) =
        Remote::new(&config, (ranks, 0), &shares, None, Duration::from_millis(300));
    let error = thread::scope(|scope| {
        scope.spawn(move || courier.run(ranks, &mut post));
        let mut serve = Server::new(&config, &shares, 0, ranks).unwrap();
        scope.spawn(move || {
            for _ in 0..5_000 {
                serve.work(&mut server).unwrap();
                thread::sleep(Duration::from_micros(100));
            }
        });
        let own = Arc::new(Network::zeros(&config, true).unwrap());
        let mut replica = Replica::far(&own, &config.training, Rows::InTurn);
        let job = Job { training: &config.training, stages: 0..1 };
        let step = Step::new(Network::new(&config, 3).unwrap().cpu, &config.training, 1.0, 0);
        replica.learn(&remote, &job, step, None, |_| ()).unwrap_err()
    });
    drop(silent);
    assert!(error.to_string().contains("rank 2, a server, has not answered"), "{error}");
}

/// Pictures of gratings, in a folder.
fn pictures(folder: &Path, count: u64) {
    std::fs::create_dir_all(folder).unwrap();
    for number in 0..count {
        let mut rng = rng::stream(4, "gratings", number);
        let [angle, phase, waves] = [3.1, 6.2, 1.5].map(|most: f32| rng.random_range(0.0..most));
        let picture = image::GrayImage::from_fn(24, 24, |x, y| {
            let along = angle.cos() * x as f32 + angle.sin() * y as f32;
            image::Luma([(128.0 + 100.0 * ((0.3 + waves) * along + phase).sin()) as u8])
        });
        picture.save(folder.join(format!("{number:04}.png"))).unwrap();
    }
}

/// A run on ranks, each on a thread.
fn run(config: &RunConfig, frames: &Path, out: &Path, ranks: Ranks, resume: bool) -> Summary {
    std::fs::create_dir_all(out).unwrap();
    let (posts, _) = posts(ranks.workers + ranks.servers);
    let store = &FrameStore::open(frames).unwrap();
    let interrupted = &AtomicUsize::new(0);
    let take_part = |rank: usize, mut post: Local| {
        let job = Ranked {
            config,
            store,
            frames,
            out,
            seed: 5,
            threads: 1,
            resume,
            accept_changes: false,
            interrupted,
        };
        job.take_part((ranks, rank), &mut post, |load| load(&|| ()), |_| ()).unwrap()
    };
    let take_part = &take_part;
    thread::scope(|scope| {
        let ranks = posts.into_iter().enumerate();
        let ranks: Vec<_> = ranks.map(|(rank, post)| scope.spawn(move || take_part(rank, post))).collect();
        ranks.into_iter().filter_map(|rank| rank.join().unwrap()).next().unwrap()
    })
}

#[test]
fn a_run_on_ranks_comes_to_the_loss_of_threads_and_goes_on_with_other_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("frames"), 300);
    std::fs::write(at("frames").join("0170.png"), "not a picture").unwrap();
    let last =
        |summary: &Summary| summary.stages.iter().map(|s| s.validation_loss.unwrap()).collect::<Vec<_>>();
    let short = ["training.steps=[150,100]", "training.log_every=20", "training.checkpoint_steps=100"];
    let short = config(&short);
    let ranks = Ranks { workers: 2, parts: 1, servers: 2 };
    let on_ranks = run(&short, &at("frames"), &at("ranks"), ranks, false);
    assert!(on_ranks.finished && on_ranks.steps == 250 && on_ranks.replicas == 2, "{on_ranks}");
    let left: Vec<_> =
        std::fs::read_dir(at("ranks")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("part-")), "{left:?}");
    assert!(on_ranks.of_replicas.len() == 2 && on_ranks.of_replicas.iter().sum::<u64>() == 250, "{on_ranks}");
    // Two replicas, each split over two workers; and one, over three.
    let split = Ranks { workers: 4, parts: 2, servers: 2 };
    let on_parts = run(&short, &at("frames"), &at("parts"), split, false);
    assert!(on_parts.finished && on_parts.steps == 250 && on_parts.replicas == 2, "{on_parts}");
    let one = run(&short, &at("frames"), &at("one"), Ranks { workers: 3, parts: 3, servers: 1 }, false);
    assert!(one.finished && one.of_replicas == [250], "{one}");

    let store = FrameStore::open(&at("frames")).unwrap();
    std::fs::create_dir_all(at("threads")).unwrap();
    let mut frames = Dataset::load(&store, short.input_shape(), 0, &at("threads"), true, || ()).unwrap();
    let interrupted = AtomicUsize::new(0);
    let options = Options {
        seed: 5,
        threads: 2,
        resume: false,
        accept_changes: false,
        frames: &at("frames"),
        lead: None,
        interrupted: &interrupted,
    };
    let on_threads = train(&short, &mut frames, &at("threads"), &options, |_| ()).unwrap();
    // Whether one process decoded them or two, one of which could not read a picture.
    let pixels = |run: &str| std::fs::read(at(run).join("frames.u8")).unwrap();
    assert!(pixels("ranks") == pixels("threads") && pixels("one") == pixels("threads"));
    for (name, on_ranks) in [("ranks", &on_ranks), ("parts", &on_parts), ("one replica in parts", &one)] {
        for (ranks, threads) in last(on_ranks).iter().zip(last(&on_threads)) {
            assert!((ranks / threads - 1.0).abs() < 0.1, "{name}: {ranks}, on threads {threads}");
        }
    }

    // What ranks wrote is read and checked as any checkpoint, and learned on from with other ranks, or none.
    for workers in [Some(1), Some(3), None] {
        let newest = checkpoint::latest_of(&at("ranks")).unwrap();
        let checks = checkpoint::check(&newest).unwrap();
        assert!(checks.iter().all(|check| check.problem.is_none()), "{checks:?}");
        checkpoint::remove(&newest).unwrap();
        assert_eq!(checkpoint::step_of(&checkpoint::latest_of(&at("ranks")).unwrap()), Some(200));
        let again = match workers {
            Some(workers) => run(
                &short,
                &at("frames"),
                &at("ranks"),
                Ranks { workers, parts: 1, servers: 4 - workers },
                true,
            ),
            None => {
                let options = Options { resume: true, ..options };
                let mut frames =
                    Dataset::load(&store, short.input_shape(), 0, &at("ranks"), true, || ()).unwrap();
                train(&short, &mut frames, &at("ranks"), &options, |_| ()).unwrap()
            }
        };
        assert!(again.finished && again.new_steps == 50, "{again}");
        for (again, first) in last(&again).iter().zip(last(&on_ranks)) {
            assert!((again / first - 1.0).abs() < 0.1, "{again} and {first}, {workers:?}");
        }
    }
}

#[test]
fn a_worker_of_which_nothing_is_heard_is_named() {
    let (config, ranks) = (config(&[]), Ranks { workers: 3, parts: 1, servers: 1 });
    let shares = Shares::new(&Network::new(&config, 3).unwrap(), 1);
    let (mut posts, _) = posts(4);
    let (desk, patience) = (Desk::default(), Duration::from_millis(1500));
    let (remote, courier, mail) = Remote::new(&config, (ranks, LEADER), &shares, Some(&desk), patience);
    let group = Group::new(ranks, LEADER, remote.outbox(), mail.rows);
    let (mut own, mut there, mut silent) = (posts.remove(0), posts.remove(0), posts.remove(0));
    let mut server = posts.remove(0);
    // It has been heard of once.
    silent.send(LEADER, Letter::new(Kind::Alive, &[]));
    let (alive, others, _letters) = Remote::new(&config, (ranks, 1), &shares, None, patience);
    let error = thread::scope(|scope| {
        scope.spawn(move || courier.run(ranks, &mut own));
        let lead = Lead::new((remote, group), ranks, &desk, mail.office);
        scope.spawn(move || others.run(ranks, &mut there));
        // A server that takes its letters until the worker parts.
        scope.spawn(move || {
            while server.receive().is_none_or(|(_, letter)| letter.kind != Kind::Done) {
                thread::sleep(Duration::from_millis(1));
            }
        });
        let error = lead.hear(Duration::from_secs(20)).err().unwrap();
        drop(alive);
        error
    });
    assert!(error.to_string().contains("rank 2, a worker, has not answered"), "{error}");
}
