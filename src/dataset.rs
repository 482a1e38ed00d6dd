//! Pictures in memory, at the network's input size, and the order in which minibatches take them.

use std::sync::Mutex;

use rand::seq::SliceRandom;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::frames::{Colour, FrameStore, cut_middle};
use crate::geometry::MapShape;
use crate::rng;

/// Begins the warning about a picture that cannot be read.
const LEFT_OUT: &str = "left out: ";

/// 8-bit pictures of one size.
pub struct Dataset {
    /// Size of every picture.
    pub shape: MapShape,
    /// Name of each picture in the frame set it is from.
    pub keys: Vec<String>,
    /// What a user should know: pictures that were resized, greyed, or could not be read.
    pub warnings: Vec<String>,
    /// `[picture, channel, row, column]`.
    pixels: Vec<u8>,
}

impl Dataset {
    /// Reads all pictures of a frame set, cropped in the middle and resized to `shape`, greyed where it has one channel.
    /// `progress` is told of every picture. Pictures that cannot be read are left out and named in the warnings.
    ///
    /// # Errors
    /// No picture can be read, or they do not fit in memory.
    pub fn load(store: &FrameStore, shape: MapShape, progress: impl Fn() + Sync) -> Result<Dataset> {
        let need_bytes = (store.len() * shape.len()) as u64;
        let have_bytes = available_memory();
        if need_bytes > have_bytes {
            let what = format!("{} pictures of {}x{}", store.len(), shape.cols, shape.rows);
            return Err(Error::NoRoom { what, need_bytes, have_bytes });
        }
        let colour = if shape.channels == 1 { Colour::Grey } else { Colour::Rgb };
        let read = |index| {
            let read = store.picture(index).map(|picture| {
                let as_is = (picture.width() as usize, picture.height() as usize) == (shape.cols, shape.rows);
                let greyed = shape.channels == 1 && picture.color().has_color();
                let fitted = cut_middle(&picture, shape.cols as u32, shape.rows as u32, colour);
                let pixels = match shape.channels {
                    1 => fitted.to_luma8().into_raw(),
                    _ => {
                        let interleaved = fitted.to_rgb8().into_raw();
                        (0..3).flat_map(|c| interleaved.iter().skip(c).step_by(3).copied()).collect()
                    }
                };
                (pixels, !as_is, greyed)
            });
            progress();
            read
        };
        let mut dataset =
            Dataset { shape, keys: Vec::new(), warnings: store.warnings().to_vec(), pixels: Vec::new() };
        dataset.pixels.reserve_exact(need_bytes as usize);
        let (mut resized, mut greyed, mut unreadable) = (0, 0, 0);
        // A bounded number of decoded pictures at a time.
        for chunk in (0..store.len()).collect::<Vec<_>>().chunks(1024) {
            let pictures: Vec<_> = chunk.par_iter().map(|&index| read(index)).collect();
            for (&index, picture) in chunk.iter().zip(pictures) {
                match picture {
                    Ok((pixels, was_resized, was_greyed)) => {
                        dataset.pixels.extend(pixels);
                        dataset.keys.push(store.key(index).to_owned());
                        resized += usize::from(was_resized);
                        greyed += usize::from(was_greyed);
                    }
                    Err(error) => {
                        unreadable += 1;
                        dataset.warnings.push(format!("{LEFT_OUT}{error}"));
                    }
                }
            }
        }
        if dataset.keys.is_empty() {
            let first = dataset.warnings.iter().find_map(|warning| warning.strip_prefix(LEFT_OUT));
            let (first, count) = (first.unwrap_or_default(), unreadable);
            return Err(Error::Mismatch(format!("none of {count} pictures can be read; the first: {first}")));
        }
        if resized + greyed > 0 {
            let (rows, cols) = (shape.rows, shape.cols);
            let changed = match (resized, greyed) {
                (_, 0) => format!("{resized} of {} pictures were resized to {cols}x{rows}", dataset.len()),
                (0, _) => format!("{greyed} of {} pictures were greyed", dataset.len()),
                _ => format!(
                    "of {} pictures {resized} were resized to {cols}x{rows}, {greyed} greyed",
                    dataset.len()
                ),
            };
            dataset
                .warnings
                .push(format!("{changed}: the config's input is {cols}x{rows}x{}", shape.channels));
        }
        Ok(dataset)
    }

    /// A dataset of pixels `[picture, channel, row, column]`, numbered as keys.
    pub fn from_pixels(shape: MapShape, pixels: Vec<u8>) -> Dataset {
        assert_eq!(pixels.len() % shape.len(), 0, "whole pictures");
        let keys = (0..pixels.len() / shape.len()).map(|index| format!("{index:06}")).collect();
        Dataset { shape, keys, warnings: Vec::new(), pixels }
    }

    /// Pictures in it.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// One picture, `[channel, row, column]`.
    pub fn pixels(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.shape.len()..][..self.shape.len()]
    }

    /// A number that changes with the pictures and their order: what a run was trained on.
    pub fn fingerprint(&self) -> String {
        let each = (0..self.len()).into_par_iter().map(|index| rng::stable_hash(self.pixels(index)));
        let bytes: Vec<u8> = each.collect::<Vec<_>>().iter().flat_map(|hash| hash.to_le_bytes()).collect();
        format!("{:016x}", rng::stable_hash(&bytes))
    }
}

/// Memory that can be had without swapping, in bytes.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

/// Pictures in a new random order in every epoch, minibatch after minibatch. Minibatch `n` is the same whoever asks.
pub struct Shuffle {
    seed: u64,
    len: usize,
    batch: usize,
    /// Orders of the last two epochs asked for: replicas straddle the border between epochs.
    orders: Mutex<Vec<(u64, Vec<u32>)>>,
}

impl Shuffle {
    /// Over `len` pictures, `batch` at a time; the last minibatch of an epoch is filled up from the next.
    pub fn new(seed: u64, len: usize, batch: usize) -> Shuffle {
        assert!(len > 0 && len <= u32::MAX as usize, "between 1 and 2^32 pictures");
        Shuffle { seed, len, batch, orders: Mutex::new(Vec::new()) }
    }

    /// Pictures of minibatch `number`.
    pub fn batch(&self, number: u64) -> Vec<usize> {
        let first = number * self.batch as u64;
        let mut orders = self.orders.lock().expect("no replica panics");
        (first..first + self.batch as u64)
            .map(|at| {
                let (epoch, place) = (at / self.len as u64, (at % self.len as u64) as usize);
                let known = orders.iter().position(|(e, _)| *e == epoch);
                let index = known.unwrap_or_else(|| {
                    let mut order: Vec<u32> = (0..self.len as u32).collect();
                    order.shuffle(&mut rng::stream(self.seed, "shuffle", epoch));
                    orders.truncate(1);
                    orders.insert(0, (epoch, order));
                    0
                });
                orders[index].1[place] as usize
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_picture_once_and_repeats_from_the_seed() {
        let shuffle = Shuffle::new(3, 50, 7);
        let drawn: Vec<usize> = (0..100).flat_map(|number| shuffle.batch(number)).collect();
        for epoch in drawn.chunks_exact(50) {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(drawn[..50], drawn[50..100]);
        let again = Shuffle::new(3, 50, 7);
        assert_eq!(again.batch(60), drawn[420..427]);
        assert_eq!(again.batch(0), drawn[..7]);
    }
}
