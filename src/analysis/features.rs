//! Values of all units of a sublayer, streamed out of the network in the order of the pictures, and kept in files for use elsewhere.
//!
//! Every worker takes each n-th batch from the pictures to the values, by itself, while the caller writes those that are done: only a
//! few batches of values are ever in memory. Units are in the order of [`Network::units`]: map after map, row after row.

mod file;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Instant;

use ndarray::Array2;
use serde::Serialize;

use super::{BATCH, Progress};
use crate::dataset::available_memory;
use crate::error::{Error, Result};
use crate::geometry::{Kind, MapShape};
use crate::network::preprocess::{Inputs, Scratch};
use crate::network::{Network, Workspace};
pub use file::{Format, MOST_COLUMNS};

/// Batches that a worker may be ahead of the writer.
const AHEAD: usize = 2;

/// What a file of features says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    /// The run.
    pub run: PathBuf,
    /// Which of its checkpoints, as [`identity`](crate::network::checkpoint::identity) tells them apart.
    pub checkpoint: String,
    /// The frames.
    pub frames: PathBuf,
    /// Stage, from 0; in files from 1.
    #[serde(with = "super::responses::from_1")]
    pub stage: usize,
    /// Which value of each unit.
    pub kind: Kind,
    /// Maps, rows and columns of the units.
    pub shape: MapShape,
}

/// A file of features, written.
#[derive(Debug, Clone, Serialize)]
pub struct Encoded {
    /// What it says of itself.
    #[serde(flatten)]
    pub about: About,
    /// The file.
    pub out: PathBuf,
    /// Names of the pictures, where they are in a file of their own.
    pub keys: Option<PathBuf>,
    /// Pictures in it.
    pub pictures: usize,
    /// Values of each.
    pub units: usize,
    /// Time from the first picture's pixels to the last value written.
    pub seconds: f64,
}

/// Writes the features of all pictures to `out`, in the [format](Format) of its ending and the order of the pictures, which are called
/// `keys`. The file has its name only once it is complete. `None` if `stop` was set before: then there is nothing new.
///
/// # Errors
/// Another ending, more units than a table can have columns, no room on the disk or for a batch in memory, or `out` cannot be written.
pub fn encode(
    network: &Network,
    inputs: &Inputs,
    keys: &[String],
    about: About,
    out: &Path,
    (stop, progress): (&AtomicUsize, &Progress),
) -> Result<Option<Encoded>> {
    assert_eq!(keys.len(), inputs.len(), "a name for each picture");
    let group = (about.stage, about.kind);
    let mut file = file::create(out, keys, &about)?;
    let (begun, pictures) = (Instant::now(), (0..keys.len()).collect::<Vec<_>>());
    let units = about.shape.len();
    progress.begin("features", pictures.len());
    let complete = stream(network, inputs, &pictures, group, |rows| {
        file.add(rows)?;
        progress.add(rows.len() / units);
        Ok(stop.load(Ordering::Relaxed) == 0)
    })?;
    if !complete {
        return Ok(None);
    }
    let keys = file.finish()?;
    let (pictures, seconds) = (pictures.len(), begun.elapsed().as_secs_f64());
    Ok(Some(Encoded { about, out: out.into(), keys, pictures, units, seconds }))
}

/// The features of some pictures, `[picture, unit]`, in memory. `progress` is told of pictures done.
///
/// # Errors
/// [`Error::NoRoom`].
pub fn features(
    network: &Network,
    inputs: &Inputs,
    pictures: &[usize],
    (stage, kind): (usize, Kind),
    progress: impl Fn(usize),
) -> Result<Array2<f32>> {
    let units = network.shape(stage, kind).len();
    let (need_bytes, have_bytes) = (4 * (pictures.len() * units) as u64, available_memory());
    if need_bytes > have_bytes {
        let what = format!("{units} values of each of {} pictures", pictures.len());
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    let mut values = Vec::with_capacity(pictures.len() * units);
    stream(network, inputs, pictures, (stage, kind), |rows| {
        values.extend_from_slice(rows);
        progress(rows.len() / units);
        Ok(true)
    })?;
    Ok(Array2::from_shape_vec((pictures.len(), units), values).expect("a row for each picture"))
}

/// Gives the features of `pictures`, `[picture, unit]`, to `take`, a batch at a time and in order, until it says false; returns whether
/// it had all. They do not depend on the number of threads, which is that of the pool this is called in.
///
/// # Errors
/// What `take` returns; [`Error::NoRoom`] if a single batch does not fit in memory.
pub fn stream(
    network: &Network,
    inputs: &Inputs,
    pictures: &[usize],
    (stage, kind): (usize, Kind),
    take: impl FnMut(&[f32]) -> Result<bool>,
) -> Result<bool> {
    let (forward, width) = (Forward { network, stage, kind }, network.shape(stage, kind).len());
    let read = |work: &Workspace, rows: &mut [f32]| work.copy_values(network, stage, kind, rows);
    stream_by(forward, inputs, pictures, (width, read), take)
}

/// How far pictures go through a network.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// The network.
    pub network: &'a Network,
    /// The last stage, from 0.
    pub stage: usize,
    /// How far in it.
    pub kind: Kind,
}

/// The same of whatever `read` makes of the values of a batch: `[picture, number]`, so many numbers of each picture.
///
/// # Errors
/// As [`stream`].
pub fn stream_by(
    forward: Forward,
    inputs: &Inputs,
    pictures: &[usize],
    (width, read): (usize, impl Fn(&Workspace, &mut [f32]) + Sync),
    mut take: impl FnMut(&[f32]) -> Result<bool>,
) -> Result<bool> {
    let Forward { network, stage, kind } = forward;
    let batches = pictures.len().div_ceil(BATCH);
    let workers = workers(network)?.min(batches);
    let work_on = |worker: usize, done: SyncSender<Vec<f32>>, empty: Receiver<Vec<f32>>| {
        let (mut work, mut scratch) = (network.workspace(BATCH.min(pictures.len())), Scratch::default());
        for batch in pictures.chunks(BATCH).skip(worker).step_by(workers) {
            work.start(batch.len());
            inputs.fill(batch, work.lanes, &mut work.input, &mut scratch);
            network.forward_to(&mut work, stage, kind);
            let mut rows = empty.try_recv().unwrap_or_default();
            rows.resize(batch.len() * width, 0.0);
            read(&work, &mut rows);
            if done.send(rows).is_err() {
                return; // nobody wants more
            }
        }
    };
    // Each has a pool of one thread: what it does in parallel stays with it, and it may wait to be written without holding up others.
    let pool = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pools: std::result::Result<Vec<_>, _> = (0..workers).map(pool).collect();
    let pools = pools.map_err(|e| Error::Mismatch(format!("cannot start {workers} threads: {e}")))?;
    thread::scope(|scope| {
        let (mut queues, work_on) = (Vec::new(), &work_on);
        for (worker, pool) in pools.iter().enumerate() {
            let (done, ready) = sync_channel(AHEAD);
            let (written, empty) = channel();
            scope.spawn(move || pool.install(move || work_on(worker, done, empty)));
            queues.push((ready, written));
        }
        for batch in 0..batches {
            let (ready, written) = &queues[batch % workers];
            let rows = ready.recv().expect("a worker ends after its last batch");
            if !take(&rows)? {
                return Ok(false);
            }
            // After its last batch there is no one to take it.
            let _ = written.send(rows);
        }
        Ok(true)
    })
}

/// As many as there are threads, or as memory has room for.
fn workers(network: &Network) -> Result<usize> {
    let (need_bytes, have_bytes) = (network.workspace_bytes(BATCH), available_memory());
    match (have_bytes / need_bytes.max(1)) as usize {
        0 => {
            let what = format!("a minibatch of {BATCH} pictures");
            Err(Error::NoRoom { what, need_bytes, have_bytes })
        }
        fit => Ok(fit.min(rayon::current_num_threads())),
    }
}

#[cfg(test)]
mod tests;
