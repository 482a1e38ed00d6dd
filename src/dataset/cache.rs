//! The file of decoded pictures that a [`Dataset`] maps into memory: `frames.u8`, one picture after the other as
//! `[channel, row, column]`, and beside it `frames.u8.json`, which says what it was made from.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Dataset;
use crate::error::{Error, Result};
use crate::frames::{Colour, FrameStore, cut_middle};
use crate::geometry::MapShape;
use crate::rng;

/// The pictures.
pub(super) const PIXELS: &str = "frames.u8";
/// Their [`Index`].
const INDEX: &str = "frames.u8.json";
/// Pictures that are not complete yet, or not accepted.
const PARTIAL: &str = "frames.u8.partial";
/// An index that is not complete yet.
const PARTIAL_INDEX: &str = "frames.u8.json.partial";

/// Changes when pictures come to be decoded, cut or stored in another way.
const FORMAT: u32 = 1;

/// Begins the warning about a picture that cannot be read.
const LEFT_OUT: &str = "left out: ";

/// Decoded pictures held at a time, in bytes and at most in number.
const CHUNK: (usize, usize) = (64 << 20, 1024);

/// True of the files that this module writes into a run folder.
pub fn is_cache_file(name: &str) -> bool {
    [PIXELS, INDEX, PARTIAL, PARTIAL_INDEX].contains(&name)
}

/// What a file of pictures holds and what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Index {
    format: u32,
    /// See [`FrameStore::identity`].
    frames: String,
    channels: usize,
    rows: usize,
    cols: usize,
    /// Pictures in the file.
    count: usize,
    /// Numbers in the frame set of the pictures that could not be read and are not in the file.
    left_out: Vec<usize>,
    /// What a user should know, beside what was wrong with the frame set itself.
    warnings: Vec<String>,
    /// See [`Dataset::fingerprint`].
    fingerprint: String,
}

/// A new file of pictures, which vanishes unless it is kept.
pub(super) struct Pending {
    folder: PathBuf,
    /// Its [`Index`] as JSON, once it is complete.
    index: String,
}

impl Pending {
    /// Gives the file its name, in place of an older one.
    ///
    /// Neither is forced to the disk: what a power cut leaves is told from what it should be by its fingerprint.
    pub(super) fn keep(self) -> Result<()> {
        let at = |name: &str| self.folder.join(name);
        fs::rename(at(PARTIAL), at(PIXELS)).map_err(Error::io(at(PIXELS), "write"))?;
        let written = fs::write(at(PARTIAL_INDEX), &self.index);
        let written = written.and_then(|()| fs::rename(at(PARTIAL_INDEX), at(INDEX)));
        written.map_err(|e| {
            // What is half written would only fill the disk; the error that matters is the first.
            let _ = fs::remove_file(at(PARTIAL_INDEX));
            Error::io(at(INDEX), "write")(e)
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // After `keep` there is none any more.
        let _ = fs::remove_file(self.folder.join(PARTIAL));
    }
}

/// The pictures in `folder`, if they are those of the store at this size and margin; else why not, or nothing if there are none.
/// Where another process has read all of them already, they are `verified`, and none is read here before it is used.
pub(super) fn open(
    folder: &Path,
    store: &FrameStore,
    (shape, margin): (MapShape, usize),
    verified: bool,
) -> std::result::Result<Dataset, Option<String>> {
    let kept = shape.with_margin(margin);
    let (pixels_path, index_path) = (folder.join(PIXELS), folder.join(INDEX));
    if !pixels_path.exists() && !index_path.exists() {
        return Err(None);
    }
    let text = fs::read(&index_path).map_err(|e| format!("{INDEX} cannot be read ({e})"))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| format!("{INDEX} is not an index of pictures ({e})"))?;
    let (was, is) = ((index.channels, index.rows, index.cols), (kept.channels, kept.rows, kept.cols));
    if index.format != FORMAT || was != is {
        let (c, h, w) = was;
        let wanted = format!("format {FORMAT} and {}x{}x{}", kept.cols, kept.rows, kept.channels);
        return Err(Some(format!(
            "has format {} and pictures of {w}x{h}x{c}, expected {wanted}",
            index.format
        )));
    }
    if index.frames != store.identity() {
        return Err(Some("was made from other frames, or they were changed since".into()));
    }
    let keys = keys(store, &index.left_out);
    let file = File::open(&pixels_path).map_err(|e| format!("cannot be read ({e})"))?;
    let bytes = file.metadata().map_err(|e| format!("cannot be read ({e})"))?.len();
    let wanted = (index.count * kept.len()) as u64;
    if keys.len() != index.count || index.count == 0 || bytes != wanted {
        let count = index.count;
        return Err(Some(format!(
            "has {bytes} bytes, expected {wanted} for {count} of {} pictures",
            keys.len()
        )));
    }
    let pixels = map(&file, &pixels_path).map_err(|e| Some(e.to_string()))?;
    let hashes = if verified { Vec::new() } else { hashes(&pixels, kept) };
    if !verified && super::fingerprint(&hashes) != index.fingerprint {
        return Err(Some("is damaged: its content is not what was written".into()));
    }
    let warnings = [store.warnings(), &index.warnings].concat();
    Ok(Dataset {
        shape,
        kept,
        keys,
        warnings,
        fingerprint: index.fingerprint,
        pixels,
        copies: super::copies(hashes),
        file: Some(file),
        pending: None,
    })
}

/// Decodes all pictures of the store, at a size and a margin, into a file in `folder`: one that [`Pending::keep`] can give its name, or one without a
/// name, which is gone with the dataset.
pub(super) fn build(
    folder: &Path,
    named: bool,
    store: &FrameStore,
    (shape, margin): (MapShape, usize),
    progress: impl Fn() + Sync,
) -> Result<Dataset> {
    let kept = shape.with_margin(margin);
    let path = folder.join(PARTIAL);
    if named && path.exists() {
        fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
    }
    let need_bytes = store.len() as u64 * kept.len() as u64;
    let have_bytes = fs4::available_space(folder).map_err(Error::io(folder, "look at the free space of"))?;
    if need_bytes > have_bytes {
        let (count, MapShape { rows, cols, channels }) = (store.len(), kept);
        let what = format!("{count} decoded pictures of {cols}x{rows}x{channels} in {}", folder.display());
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    let open = || match named {
        true => File::options().read(true).write(true).create_new(true).open(&path),
        false => tempfile::tempfile_in(folder),
    };
    let file = open().map_err(Error::io(&path, "write"))?;
    // From here on a failure removes the file.
    let mut pending = named.then(|| Pending { folder: folder.into(), index: String::new() });
    let (channels, rows, cols) = (kept.channels, kept.rows, kept.cols);
    let (count, left_out, warnings, fingerprint) = (0, Vec::new(), Vec::new(), String::new());
    let frames = store.identity();
    let mut index =
        Index { format: FORMAT, frames, channels, rows, cols, count, left_out, warnings, fingerprint };
    let hashes = decode(store, (kept, margin), &file, &path, &mut index, progress)?;
    index.count = hashes.len();
    index.fingerprint = super::fingerprint(&hashes);
    let copies = super::copies(hashes);
    if let Some(pending) = &mut pending {
        pending.index = serde_json::to_string(&index).expect("an index is plain data") + "\n";
    }
    let (pixels, keys) = (map(&file, &path)?, keys(store, &index.left_out));
    let warnings = [store.warnings(), &index.warnings].concat();
    Ok(Dataset {
        shape,
        kept,
        keys,
        warnings,
        fingerprint: index.fingerprint,
        pixels,
        copies,
        file: Some(file),
        pending,
    })
}

/// Names of the pictures of a store without those whose numbers, in ascending order, are left out.
fn keys(store: &FrameStore, left_out: &[usize]) -> Vec<String> {
    let mut left_out = left_out.iter().peekable();
    let numbers = (0..store.len()).filter(|number| left_out.next_if_eq(&number).is_none());
    numbers.map(|number| store.key(number).to_owned()).collect()
}

/// Writes the pictures, at a size that has a margin in it, and notes in `index` those that are left out and what a user should know; returns the hash of each
/// picture written.
fn decode(
    store: &FrameStore,
    (shape, margin): (MapShape, usize),
    file: &File,
    path: &Path,
    index: &mut Index,
    progress: impl Fn() + Sync,
) -> Result<Vec<u64>> {
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let (mut hashes, mut resized, mut greyed) = (Vec::new(), 0, 0);
    let chunk = (CHUNK.0 / shape.len()).min(CHUNK.1).max(rayon::current_num_threads());
    for first in (0..store.len()).step_by(chunk) {
        let numbers = first..store.len().min(first + chunk);
        let read = |number| {
            let picture = store.picture(number).map(|picture| Picture::fit(&picture, shape));
            progress();
            picture
        };
        let pictures: Vec<_> = numbers.clone().into_par_iter().map(read).collect();
        for (number, picture) in numbers.zip(pictures) {
            match picture {
                Ok(picture) => {
                    writer.write_all(&picture.pixels).map_err(Error::io(path, "write"))?;
                    hashes.push(picture.hash);
                    resized += usize::from(picture.resized);
                    greyed += usize::from(picture.greyed);
                }
                Err(error) => {
                    index.left_out.push(number);
                    index.warnings.push(format!("{LEFT_OUT}{error}"));
                }
            }
        }
    }
    writer.flush().map_err(Error::io(path, "write"))?;
    let len = hashes.len();
    if !index.left_out.is_empty() {
        let (out, all) = (index.left_out.len(), store.len());
        index.warnings.insert(0, format!("{out} of {all} pictures could not be read and are left out"));
    }
    if len == 0 {
        let first = index.warnings.iter().find_map(|warning| warning.strip_prefix(LEFT_OUT));
        let (first, count) = (first.unwrap_or_default(), index.left_out.len());
        return Err(Error::Mismatch(format!("none of {count} pictures can be read; the first: {first}")));
    }
    if resized + greyed > 0 {
        let (rows, cols) = (shape.rows, shape.cols);
        let changed = match (resized, greyed) {
            (_, 0) => format!("{resized} of {len} pictures were resized to {cols}x{rows}"),
            (0, _) => format!("{greyed} of {len} pictures were greyed"),
            _ => format!("of {len} pictures {resized} were resized to {cols}x{rows}, {greyed} greyed"),
        };
        let with = if margin > 0 { " with its margin" } else { "" };
        let wanted = format!("the config's input is {cols}x{rows}x{}{with}", shape.channels);
        index.warnings.push(format!("{changed}: {wanted}"));
    }
    Ok(hashes)
}

/// A picture's 8-bit pixels, `[channel, row, column]`: cropped in the middle and resized to `shape`, greyed where that has one channel.
pub fn pixels_of(picture: &image::DynamicImage, shape: MapShape) -> Vec<u8> {
    let colour = if shape.channels == 1 { Colour::Grey } else { Colour::Rgb };
    let fitted = cut_middle(picture, shape.cols as u32, shape.rows as u32, colour);
    match shape.channels {
        1 => fitted.to_luma8().into_raw(),
        _ => {
            let interleaved = fitted.to_rgb8().into_raw();
            (0..3).flat_map(|c| interleaved.iter().skip(c).step_by(3).copied()).collect()
        }
    }
}

/// 8-bit pixels `[channel, row, column]` of one shape at another.
pub fn resized(pixels: &[u8], from: MapShape, to: MapShape) -> Vec<u8> {
    if from == to {
        return pixels.to_vec();
    }
    let MapShape { channels, rows, cols } = from;
    let (width, height) = (cols as u32, rows as u32);
    let picture = match channels {
        1 => image::GrayImage::from_raw(width, height, pixels.to_vec()).map(image::DynamicImage::from),
        _ => {
            let interleaved =
                (0..rows * cols).flat_map(|at| (0..3).map(move |c| pixels[c * rows * cols + at]));
            image::RgbImage::from_raw(width, height, interleaved.collect()).map(image::DynamicImage::from)
        }
    };
    pixels_of(&picture.expect("as many pixels as the shape has"), to)
}

/// A picture at the size of the dataset.
struct Picture {
    pixels: Vec<u8>,
    hash: u64,
    resized: bool,
    greyed: bool,
}

impl Picture {
    /// Cropped in the middle and resized, greyed where the dataset has one channel.
    fn fit(picture: &image::DynamicImage, shape: MapShape) -> Picture {
        let resized = (picture.width() as usize, picture.height() as usize) != (shape.cols, shape.rows);
        let greyed = shape.channels == 1 && picture.color().has_color();
        let pixels = pixels_of(picture, shape);
        Picture { hash: rng::stable_hash(&pixels), pixels, resized, greyed }
    }
}

/// The hash of each picture.
pub(super) fn hashes(pixels: &[u8], shape: MapShape) -> Vec<u64> {
    pixels.par_chunks_exact(shape.len()).map(rng::stable_hash).collect()
}

fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: a file of pictures is complete when it is mapped, and replaced by renaming, never written again.
    unsafe { Mmap::map(file) }.map_err(Error::io(path, "map into memory"))
}
