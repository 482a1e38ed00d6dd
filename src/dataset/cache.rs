//! The file of decoded pictures that a [`Dataset`] maps into memory: `frames.u8`, one picture after the other as
//! `[channel, row, column]`, and beside it `frames.u8.json`, which says what it was made from.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
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
/// Begins the names of files of pictures that one of several processes decoded.
const SHARE: &str = "frames.u8.part-";

/// Changes when pictures come to be decoded, cut or stored in another way.
const FORMAT: u32 = 1;

/// Begins the warning about a picture that cannot be read.
const LEFT_OUT: &str = "left out: ";

/// Decoded pictures held at a time, in bytes and at most in number.
const CHUNK: (usize, usize) = (64 << 20, 1024);

/// True of the files that this module writes into a run folder.
pub fn is_cache_file(name: &str) -> bool {
    [PIXELS, INDEX, PARTIAL, PARTIAL_INDEX].contains(&name) || name.starts_with(SHARE)
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
        left_out: index.left_out,
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
    check_room(folder, store, shape.with_margin(margin))?;
    let path = folder.join(PARTIAL);
    let file = if named { create(&path)? } else { unnamed(folder)? };
    // From here on a failure removes the file.
    let pending = named.then(|| Pending { folder: folder.into(), index: String::new() });
    let decoded = decode(store, shape.with_margin(margin), 0..store.len(), (&file, &path), progress)?;
    finish(store, (shape, margin), (file, path), pending, decoded)
}

/// Refuses if the decoded pictures of a store do not fit on the disk of `folder`.
pub(super) fn check_room(folder: &Path, store: &FrameStore, kept: MapShape) -> Result<()> {
    let need_bytes = store.len() as u64 * kept.len() as u64;
    let have_bytes = fs4::available_space(folder).map_err(Error::io(folder, "look at the free space of"))?;
    if need_bytes > have_bytes {
        let (count, MapShape { rows, cols, channels }) = (store.len(), kept);
        let what = format!("{count} decoded pictures of {cols}x{rows}x{channels} in {}", folder.display());
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}

/// A new file, in place of one that may be there.
fn create(path: &Path) -> Result<File> {
    if path.exists() {
        fs::remove_file(path).map_err(Error::io(path, "remove"))?;
    }
    let file = File::options().read(true).write(true).create_new(true).open(path);
    file.map_err(Error::io(path, "write"))
}

fn unnamed(folder: &Path) -> Result<File> {
    tempfile::tempfile_in(folder).map_err(Error::io(folder, "write"))
}

/// The file in `folder` of what one of several processes decodes.
fn share(folder: &Path, (part, parts): (usize, usize)) -> PathBuf {
    folder.join(format!("{SHARE}{:05}-of-{parts:05}", part + 1))
}

/// Decodes the pictures of a store that one of several processes is to decode, those side by side, into a file of its own in `folder`.
pub(super) fn decode_share(
    folder: &Path,
    store: &FrameStore,
    kept: MapShape,
    (part, parts): (usize, usize),
    progress: impl Fn() + Sync,
) -> Result<Decoded> {
    let (path, all) = (share(folder, (part, parts)), store.len());
    decode(store, kept, all * part / parts..all * (part + 1) / parts, (&create(&path)?, &path), progress)
}

/// Makes one file of those that several processes have decoded.
pub(super) fn join(
    folder: &Path,
    store: &FrameStore,
    (shape, margin): (MapShape, usize),
    shares: Vec<Decoded>,
) -> Result<Dataset> {
    let path = folder.join(PARTIAL);
    let mut file = create(&path)?;
    let pending = Some(Pending { folder: folder.into(), index: String::new() });
    let (parts, mut all) = (shares.len(), Decoded::default());
    for (part, decoded) in shares.into_iter().enumerate() {
        let share = share(folder, (part, parts));
        let mut from = File::open(&share).map_err(Error::io(&share, "read"))?;
        std::io::copy(&mut from, &mut file).map_err(Error::io(&path, "write"))?;
        fs::remove_file(&share).map_err(Error::io(&share, "remove"))?;
        all.add(decoded);
    }
    finish(store, (shape, margin), (file, path), pending, all)
}

/// The dataset of a file with all pictures that could be decoded.
fn finish(
    store: &FrameStore,
    (shape, margin): (MapShape, usize),
    (file, path): (File, PathBuf),
    mut pending: Option<Pending>,
    decoded: Decoded,
) -> Result<Dataset> {
    let kept = shape.with_margin(margin);
    let warnings = decoded.warnings(store.len(), (kept, margin))?;
    let (pixels, keys) = (map(&file, &path)?, keys(store, &decoded.left_out));
    if pixels.len() != keys.len() * kept.len() {
        let (seen, wanted) = (pixels.len(), keys.len() * kept.len());
        return Err(Error::bad_file(
            &path,
            format!("has {seen} bytes, expected {wanted}: is it written by others too?"),
        ));
    }
    let (hashes, left_out) = (hashes(&pixels, kept), decoded.left_out);
    let (fingerprint, copies) = (super::fingerprint(&hashes), super::copies(hashes));
    let all_warnings = [store.warnings(), &warnings].concat();
    if let Some(pending) = &mut pending {
        let index = Index {
            format: FORMAT,
            frames: store.identity(),
            channels: kept.channels,
            rows: kept.rows,
            cols: kept.cols,
            count: keys.len(),
            left_out: left_out.clone(),
            warnings,
            fingerprint: fingerprint.clone(),
        };
        pending.index = serde_json::to_string(&index).expect("an index is plain data") + "\n";
    }
    let (warnings, file) = (all_warnings, Some(file));
    Ok(Dataset { shape, kept, keys, warnings, left_out, fingerprint, pixels, copies, file, pending })
}

/// Names of the pictures of a store without those whose numbers, in ascending order, are left out.
fn keys(store: &FrameStore, left_out: &[usize]) -> Vec<String> {
    let mut left_out = left_out.iter().peekable();
    let numbers = (0..store.len()).filter(|number| left_out.next_if_eq(&number).is_none());
    numbers.map(|number| store.key(number).to_owned()).collect()
}

/// What came of decoding some pictures of a store.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Decoded {
    /// Pictures that were written.
    count: usize,
    /// Numbers of those that could not be read, in ascending order, and what was wrong with each.
    left_out: Vec<usize>,
    problems: Vec<String>,
    resized: usize,
    greyed: usize,
}

impl Decoded {
    /// Takes in what came of the pictures after these.
    fn add(&mut self, next: Decoded) {
        self.count += next.count;
        self.left_out.extend(next.left_out);
        self.problems.extend(next.problems);
        self.resized += next.resized;
        self.greyed += next.greyed;
    }

    /// What a user should know, if these are all pictures of a store.
    ///
    /// # Errors
    /// None could be read.
    fn warnings(&self, all: usize, (shape, margin): (MapShape, usize)) -> Result<Vec<String>> {
        let Decoded { count, left_out, problems, resized, greyed } = self;
        if *count == 0 {
            let (first, count) = (problems.first().map_or("", String::as_str), left_out.len());
            let problem = format!("none of {count} pictures can be read; the first: {first}");
            return Err(Error::Mismatch(problem));
        }
        let mut warnings: Vec<String> =
            problems.iter().map(|problem| format!("{LEFT_OUT}{problem}")).collect();
        if !left_out.is_empty() {
            let out = left_out.len();
            warnings.insert(0, format!("{out} of {all} pictures could not be read and are left out"));
        }
        if resized + greyed > 0 {
            let (rows, cols) = (shape.rows, shape.cols);
            let changed = match (resized, greyed) {
                (_, 0) => format!("{resized} of {count} pictures were resized to {cols}x{rows}"),
                (0, _) => format!("{greyed} of {count} pictures were greyed"),
                _ => format!("of {count} pictures {resized} were resized to {cols}x{rows}, {greyed} greyed"),
            };
            let with = if margin > 0 { " with its margin" } else { "" };
            let wanted = format!("the config's input is {cols}x{rows}x{}{with}", shape.channels);
            warnings.push(format!("{changed}: {wanted}"));
        }
        Ok(warnings)
    }
}

/// Writes some pictures, at a size that has a margin in it.
fn decode(
    store: &FrameStore,
    shape: MapShape,
    all: Range<usize>,
    (file, path): (&File, &Path),
    progress: impl Fn() + Sync,
) -> Result<Decoded> {
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let mut decoded = Decoded::default();
    let chunk = (CHUNK.0 / shape.len()).min(CHUNK.1).max(rayon::current_num_threads());
    for first in all.clone().step_by(chunk) {
        let numbers = first..all.end.min(first + chunk);
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
                    decoded.count += 1;
                    decoded.resized += usize::from(picture.resized);
                    decoded.greyed += usize::from(picture.greyed);
                }
                Err(error) => {
                    decoded.left_out.push(number);
                    decoded.problems.push(error.to_string());
                }
            }
        }
    }
    writer.flush().map_err(Error::io(path, "write"))?;
    Ok(decoded)
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
    resized: bool,
    greyed: bool,
}

impl Picture {
    /// Cropped in the middle and resized, greyed where the dataset has one channel.
    fn fit(picture: &image::DynamicImage, shape: MapShape) -> Picture {
        let resized = (picture.width() as usize, picture.height() as usize) != (shape.cols, shape.rows);
        let greyed = shape.channels == 1 && picture.color().has_color();
        let pixels = pixels_of(picture, shape);
        Picture { pixels, resized, greyed }
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
