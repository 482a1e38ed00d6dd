//! `striate train` as one of several ranks, started by `mpirun` or a cluster's launcher.

use std::env;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use striate::config::RunConfig;
use striate::error::{Error, Result};
use striate::frames::FrameStore;
use striate::training::check_folder;
use striate::training::cluster::Ranks;
use striate::training::cluster::job::{Job, Load};
use striate::training::cluster::mpi::Mpi;

use super::Global;
use super::train::{TrainArgs, on_signals, show};

/// How many ranks of the job run on this machine, if the launcher says so.
fn ranks_here() -> usize {
    let of = |name: &str| env::var(name).ok()?.parse().ok();
    ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"].into_iter().find_map(of).unwrap_or(1)
}

/// Takes part in the job; what ends one rank ends all.
pub fn run(args: TrainArgs, config: RunConfig, mut global: Global) -> anyhow::Result<ExitCode> {
    let mut post = Mpi::join()?;
    let rank = post.rank();
    global.quiet |= rank > 0;
    let cores = std::thread::available_parallelism()?.get();
    let threads = args.threads.unwrap_or((cores / ranks_here()).clamp(1, 1024) as u16);
    match take_part(&args, &config, global, global.use_threads(Some(threads))?, &mut post) {
        Ok(code) => Ok(code),
        Err(error) => {
            say!("error: rank {rank}: {error}");
            post.abort(if error.is_usage() { 2 } else { 1 })
        }
    }
}

fn take_part(
    args: &TrainArgs,
    config: &RunConfig,
    global: Global,
    threads: usize,
    post: &mut Mpi,
) -> Result<ExitCode> {
    let (rank, ranks) = (post.rank(), Ranks::new(post.ranks(), args.servers, usize::from(args.split))?);
    Job::check(config, ranks)?;
    if rank == 0 {
        check_folder(&args.out, args.resume)?;
        std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out, "create"))?;
    }
    let store = FrameStore::open(&args.frames)?;
    let interrupted = on_signals().map_err(|e| Error::Mismatch(format!("signals cannot be caught: {e}")))?;
    let job = Job {
        config,
        store: &store,
        frames: &args.frames,
        out: &args.out,
        seed: global.seed,
        threads,
        resume: args.resume,
        accept_changes: args.accept_changes,
        interrupted: &interrupted,
    };
    let frames = |load: &Load| {
        let bar = global.progress((store.len() / ranks.workers) as u64, "frames");
        let frames = load(&|| bar.inc(1))?;
        bar.finish();
        global.warn(&frames.warnings);
        Ok(frames)
    };
    let bar = global.progress(config.training.steps.iter().sum(), "training");
    let summary = job.take_part((ranks, rank), post, frames, |happened| show(&bar, happened))?;
    bar.finish();
    let Some(summary) = summary else { return Ok(ExitCode::SUCCESS) };
    global.print(&summary).map_err(|e| Error::Mismatch(e.to_string()))?;
    let code = match interrupted.load(Ordering::Relaxed) {
        signal if !summary.finished => 128 + signal as u8,
        _ => 0,
    };
    Ok(ExitCode::from(code))
}
