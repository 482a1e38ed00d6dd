//! Pictures at the network's input size, mapped from a file; the order in which minibatches take them, and the windows that they
//! cut from pictures kept larger.

mod augment;
mod cache;
mod split;

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapMut};
use rand::seq::SliceRandom;

use crate::error::{Error, Result};
use crate::frames::FrameStore;
use crate::geometry::MapShape;
use crate::rng;
pub use augment::{Augment, Window};
pub use cache::{Decoded, is_cache_file, pixels_of, resized};
pub use split::Split;

/// 8-bit pictures of one size. They lie in a file mapped into memory, so there may be more of them than memory holds.
pub struct Dataset {
    /// Size of every picture as the network sees it.
    pub shape: MapShape,
    /// Size as kept: larger by the margin in which windows are cut, or the same.
    pub kept: MapShape,
    /// Name of each picture in the frame set it is from.
    pub keys: Vec<String>,
    /// What a user should know: pictures that were resized, greyed, or could not be read, and why they were decoded again.
    pub warnings: Vec<String>,
    /// Numbers in the frame set of the pictures that could not be read and are not here, ascending.
    pub left_out: Vec<usize>,
    fingerprint: String,
    /// Pictures that are the same as another before.
    copies: usize,
    /// `[picture, channel, row, column]`, as kept.
    pixels: Mmap,
    /// The file they are in, if they are in one.
    file: Option<File>,
    /// Their file while it is not kept.
    pending: Option<cache::Pending>,
}

impl Dataset {
    /// The pictures of a frame set, cropped in the middle and resized to `shape` and `margin` more pixels in height and width,
    /// greyed where it has one channel, for the run in the existing folder `run`. Pictures that cannot be read are left out
    /// and named in the warnings.
    ///
    /// Where the run holds decoded pictures of just this frame set at this size, whole and undamaged, they are used.
    /// Otherwise all are decoded, and `progress` is told of each, into a file in `run`: if `keep`, one that
    /// [`keep`](Self::keep) gives its name; else one that is gone with the dataset.
    ///
    /// # Errors
    /// No picture can be read, or the disk of `run` has no room for all of them or cannot be written.
    pub fn load(
        store: &FrameStore,
        shape: MapShape,
        margin: usize,
        run: &Path,
        keep: bool,
        progress: impl Fn() + Sync,
    ) -> Result<Dataset> {
        let build = || cache::build(run, keep, store, (shape, margin), progress);
        Self::kept_or(store, (shape, margin), run, keep, build)
    }

    /// The same of pictures that several processes decode, where they have to be: `decode` makes each of them call
    /// [`decode_share`](Self::decode_share), and returns what came of that, in order.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_shared(
        store: &FrameStore,
        shape: MapShape,
        margin: usize,
        run: &Path,
        decode: impl FnOnce() -> Result<Vec<Decoded>>,
    ) -> Result<Dataset> {
        let build = || {
            cache::check_room(run, store, shape.with_margin(margin))?;
            cache::join(run, store, (shape, margin), decode()?)
        };
        Self::kept_or(store, (shape, margin), run, true, build)
    }

    /// Decodes the share of one of several processes into a file in the folder `run`, and tells `progress` of each picture.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn decode_share(
        store: &FrameStore,
        shape: MapShape,
        margin: usize,
        run: &Path,
        place: (usize, usize),
        progress: impl Fn() + Sync,
    ) -> Result<Decoded> {
        cache::decode_share(run, store, shape.with_margin(margin), place, progress)
    }

    fn kept_or(
        store: &FrameStore,
        size: (MapShape, usize),
        run: &Path,
        keep: bool,
        build: impl FnOnce() -> Result<Dataset>,
    ) -> Result<Dataset> {
        let reason = match cache::open(run, store, size, false) {
            Ok(dataset) => return Ok(dataset),
            Err(reason) => reason.filter(|_| keep),
        };
        let mut dataset = build()?;
        let path = run.join(cache::PIXELS);
        let warning = |reason| format!("{}: {reason}; the frames were decoded again", path.display());
        dataset.warnings.extend(reason.map(warning));
        Ok(dataset)
    }

    /// The pictures that another process of the same job has decoded from the store and keeps in the folder `run`: mapped, and read only
    /// where they are used.
    ///
    /// # Errors
    /// They are not there, or others.
    pub fn open(store: &FrameStore, shape: MapShape, margin: usize, run: &Path) -> Result<Dataset> {
        cache::open(run, store, (shape, margin), true).map_err(|reason| {
            let reason = reason.unwrap_or_else(|| "is not there".into());
            Error::bad_file(
                run.join(cache::PIXELS),
                format!("{reason}: all ranks have to see the same run folder"),
            )
        })
    }

    /// Keeps newly decoded pictures in the run's folder, in place of others that were there.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn keep(&mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), cache::Pending::keep)
    }

    /// A dataset of pixels `[picture, channel, row, column]`, numbered as keys.
    pub fn from_pixels(shape: MapShape, pixels: Vec<u8>) -> Dataset {
        Self::from_pixels_with_margin(shape, 0, pixels)
    }

    /// The same of pictures kept with `margin` more pixels in height and width than `shape`.
    pub fn from_pixels_with_margin(shape: MapShape, margin: usize, pixels: Vec<u8>) -> Dataset {
        let kept = shape.with_margin(margin);
        assert_eq!(pixels.len() % kept.len(), 0, "whole pictures");
        let keys = (0..pixels.len() / kept.len()).map(|index| format!("{index:06}")).collect();
        let hashes = cache::hashes(&pixels, kept);
        let (fingerprint, copies) = (fingerprint(&hashes), copies(hashes));
        let mut map = MmapMut::map_anon(pixels.len()).expect("memory for a copy of the pixels");
        map.copy_from_slice(&pixels);
        let pixels = map.make_read_only().expect("own memory can be made read-only");
        Dataset {
            shape,
            kept,
            keys,
            warnings: Vec::new(),
            left_out: Vec::new(),
            fingerprint,
            copies,
            pixels,
            file: None,
            pending: None,
        }
    }

    /// Some of the pictures, in this order, kept with `margin` more pixels in height and width, half on each side: their border is repeated
    /// outwards, so that the network sees what it saw in the middle. In memory.
    ///
    /// # Errors
    /// There is not enough of it.
    pub fn some(&self, pictures: &[usize], margin: usize) -> Result<Dataset> {
        let (MapShape { channels, rows, cols }, kept) = (self.shape, self.shape.with_margin(margin));
        let (need_bytes, have_bytes) = ((pictures.len() * kept.len()) as u64, available_memory());
        if need_bytes > have_bytes {
            let what = format!("{} pictures of {}x{} pixels", pictures.len(), kept.cols, kept.rows);
            return Err(Error::NoRoom { what, need_bytes, have_bytes });
        }
        let mut pixels = Vec::with_capacity(pictures.len() * kept.len());
        let inside = |at: usize, len: usize| at.saturating_sub(margin / 2).min(len - 1);
        for &picture in pictures {
            let from = self.pixels(picture);
            for (channel, row) in (0..channels).flat_map(|c| (0..kept.rows).map(move |row| (c, row))) {
                let from = &from[(channel * rows + inside(row, rows)) * cols..][..cols];
                pixels.extend((0..kept.cols).map(|col| from[inside(col, cols)]));
            }
        }
        Ok(Dataset::from_pixels_with_margin(self.shape, margin, pixels))
    }

    /// Pictures, from the first, that can be read now: all, unless someone cut their file short. To read others would end the
    /// process.
    pub fn readable(&self) -> usize {
        let bytes = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|metadata| metadata.len());
        bytes.map_or(self.len(), |bytes| self.len().min(bytes as usize / self.kept.len()))
    }

    /// Pictures in it.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// One picture as the network sees it, `[channel, row, column]`: the middle of it where it is kept larger.
    pub fn pixels(&self, index: usize) -> Cow<'_, [u8]> {
        if self.kept == self.shape {
            return Cow::Borrowed(self.kept_pixels(index));
        }
        let mut middle = vec![0; self.shape.len()];
        self.cut(index, Window::middle(self.margin()), &mut middle);
        Cow::Owned(middle)
    }

    /// One picture as kept, `[channel, row, column]`.
    pub fn kept_pixels(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.kept.len()..][..self.kept.len()]
    }

    /// Reads one picture as kept into `out`; false if it cannot be read any more.
    pub fn read(&self, index: usize, out: &mut [u8]) -> bool {
        match &self.file {
            Some(file) => file.read_exact_at(out, (index * self.kept.len()) as u64).is_ok(),
            None => {
                out.copy_from_slice(self.kept_pixels(index));
                true
            }
        }
    }

    /// Pixels by which pictures are kept larger than the network sees them, in height and in width.
    pub fn margin(&self) -> usize {
        self.kept.rows - self.shape.rows
    }

    /// Writes what `window` shows of a picture into `out`, `[channel, row, column]` as large as [`shape`](Self::shape).
    pub fn cut(&self, index: usize, window: Window, out: &mut [u8]) {
        window.cut(self.kept_pixels(index), self.kept, out, self.shape);
    }

    /// Lets the system begin to read a picture from the disk.
    pub fn announce(&self, index: usize) {
        let len = self.kept.len();
        // Advice only: without it the picture is read when it is looked at.
        let _ = self.pixels.advise_range(Advice::WillNeed, index * len, len);
    }

    /// Pictures that are the same as another before.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// A number that changes with the pictures and their order: what a run was trained on.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// How many are equal to another before, from the hash of each.
fn copies(mut hashes: Vec<u64>) -> usize {
    let all = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    all - hashes.len()
}

/// Of all pictures, from the hash of each.
fn fingerprint(hashes: &[u64]) -> String {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    format!("{:016x}", rng::stable_hash(&bytes))
}

/// Memory that can be had without swapping, in bytes.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

/// Pictures in a new random order in every epoch, minibatch after minibatch. Minibatch `n` is the same whenever it is asked
/// for; asked for in turn, every epoch is shuffled once.
pub struct Shuffle {
    seed: u64,
    len: usize,
    batch: usize,
    /// The epoch that `order` is of.
    epoch: Option<u64>,
    order: Vec<u32>,
}

impl Shuffle {
    /// Over `len` pictures, `batch` at a time; the last minibatch of an epoch is filled up from the next.
    pub fn new(seed: u64, len: usize, batch: usize) -> Shuffle {
        assert!(len > 0 && len <= u32::MAX as usize, "between 1 and 2^32 pictures");
        Shuffle { seed, len, batch, epoch: None, order: Vec::new() }
    }

    /// Puts the pictures of minibatch `number` into `indices`, in place of what was there.
    pub fn batch(&mut self, number: u64, indices: &mut Vec<usize>) {
        indices.clear();
        let first = number * self.batch as u64;
        for at in first..first + self.batch as u64 {
            let (epoch, place) = (at / self.len as u64, (at % self.len as u64) as usize);
            if self.epoch != Some(epoch) {
                self.order.clear();
                self.order.extend(0..self.len as u32);
                self.order.shuffle(&mut rng::stream(self.seed, "shuffle", epoch));
                self.epoch = Some(epoch);
            }
            indices.push(self.order[place] as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_picture_once_and_repeats_from_the_seed() {
        let batch = |shuffle: &mut Shuffle, number| {
            let mut indices = vec![9; 3];
            shuffle.batch(number, &mut indices);
            indices
        };
        let mut shuffle = Shuffle::new(3, 50, 7);
        let drawn: Vec<usize> = (0..100).flat_map(|number| batch(&mut shuffle, number)).collect();
        for epoch in drawn.chunks_exact(50) {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(drawn[..50], drawn[50..100]);
        let mut again = Shuffle::new(3, 50, 7);
        assert_eq!(batch(&mut again, 60), drawn[420..427]);
        assert_eq!(batch(&mut again, 0), drawn[..7]);
    }

    #[test]
    fn some_pictures_are_kept_in_their_order_with_a_border_like_theirs() {
        let shape = MapShape { channels: 1, rows: 2, cols: 2 };
        let all = Dataset::from_pixels(shape, (0..12).collect());
        let some = all.some(&[2, 0], 2).unwrap();
        assert_eq!((some.len(), some.margin(), some.shape), (2, 2, shape));
        assert_eq!(&*some.pixels(0), [8, 9, 10, 11]);
        assert_eq!(&*some.pixels(1), [0, 1, 2, 3]);
        let mut corner = vec![0; 4];
        some.cut(0, Window { top: 0, left: 0, flip: false }, &mut corner);
        assert_eq!(corner, [8, 8, 8, 8]);
        assert_eq!(all.some(&[1], 0).unwrap().kept_pixels(0), [4, 5, 6, 7]);
    }
}
