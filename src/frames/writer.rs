//! Writes a frame set: tar shards of `key.jpg` and `key.json`, an index, and a summary when it is complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use image::DynamicImage;
use image::codecs::jpeg::JpegEncoder;
use serde::{Deserialize, Serialize};

use super::FrameMetadata;
use crate::error::{Error, Result};

/// Written last: a folder without it holds no complete frame set.
pub(super) const SUMMARY: &str = "frames.json";
/// One line per frame.
pub(super) const INDEX: &str = "index.jsonl";
/// One line per video.
const INPUTS: &str = "inputs.jsonl";
/// Where a set grows that will replace another.
const STAGING: &str = ".replacement";
/// Version of the layout that is written here.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Tar files consist of blocks of this size.
const BLOCK: u64 = 512;

/// How pictures are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// JPEG of a quality from 1 to 100.
    Jpg(u8),
    /// PNG, without loss.
    Png,
}

impl PictureFormat {
    /// The end of the file name, `jpg` or `png`.
    pub fn extension(self) -> &'static str {
        match self {
            PictureFormat::Jpg(_) => "jpg",
            PictureFormat::Png => "png",
        }
    }

    /// The picture as a file.
    ///
    /// # Errors
    /// If the encoder refuses the picture, say one larger than the format allows.
    pub fn encode(self, image: &DynamicImage) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self {
            PictureFormat::Jpg(quality) => {
                image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality))
            }
            PictureFormat::Png => image.write_to(&mut io::Cursor::new(&mut bytes), image::ImageFormat::Png),
        }
        .map_err(|e| Error::Mismatch(format!("cannot encode a picture as {}: {e}", self.extension())))?;
        Ok(bytes)
    }
}

/// How a frame set is divided into files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WriterOptions {
    /// Compression of the pictures.
    pub format: PictureFormat,
    /// A shard is finished at so many frames...
    pub frames_per_shard: u64,
    /// ...or before it would be longer than this, in bytes.
    pub bytes_per_shard: u64,
    /// Replace a frame set that is there already.
    pub overwrite: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        let format = PictureFormat::Jpg(95);
        WriterOptions { format, frames_per_shard: 1000, bytes_per_shard: 256 << 20, overwrite: false }
    }
}

/// What a finished frame set holds; also the content of its `frames.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameSetSummary {
    /// Version of the layout.
    pub format_version: u32,
    /// Frames in all shards.
    pub frames: u64,
    /// Tar files.
    pub shards: u64,
    /// Bytes in all shards.
    pub bytes: u64,
    /// How the set was made, as the program that made it says.
    pub settings: serde_json::Value,
}

/// One line of the index: where a picture and its metadata lie.
#[derive(Serialize, Deserialize)]
pub(super) struct IndexLine {
    pub key: String,
    pub shard: String,
    pub member: String,
    pub offset: u64,
    pub length: u64,
    pub json_offset: u64,
    pub json_length: u64,
    #[serde(flatten)]
    pub metadata: FrameMetadata,
}

#[derive(Serialize)]
struct ShardStats<'a> {
    shard: &'a str,
    frames: u64,
    bytes: u64,
}

/// A frame set that is being written; nothing of it remains unless [`FrameWriter::finish`] is called.
pub struct FrameWriter {
    folder: PathBuf,
    /// `folder`, or a folder in it where the replacement of its set grows.
    target: PathBuf,
    options: WriterOptions,
    shard: Option<Shard>,
    index: Lines,
    inputs: Lines,
    shards: u64,
    frames: u64,
    bytes: u64,
    /// Files to remove if the set is never finished.
    written: Vec<PathBuf>,
    made_folder: bool,
    finished: bool,
}

impl FrameWriter {
    /// Prepares `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be written, or holds a frame set and `options.overwrite` is not set.
    pub fn create(folder: &Path, options: WriterOptions) -> Result<FrameWriter> {
        let made_folder = !folder.exists();
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        let old = set_files(folder)?;
        if !old.is_empty() && !options.overwrite {
            let what = if folder.join(SUMMARY).exists() { "a frame set" } else { "an incomplete frame set" };
            return Err(Error::bad_file(folder, format!("already holds {what}; --overwrite replaces it")));
        }
        let mut target = folder.to_path_buf();
        if !old.is_empty() {
            target.push(STAGING);
            // Left by a run that was killed.
            if target.exists() {
                fs::remove_dir_all(&target).map_err(Error::io(&target, "remove"))?;
            }
            fs::create_dir(&target).map_err(Error::io(&target, "create"))?;
        }
        let lines =
            Lines::create(&target, INDEX).and_then(|index| Ok((index, Lines::create(&target, INPUTS)?)));
        let (index, inputs) = lines.inspect_err(|_| {
            let _ = if made_folder || target != folder { fs::remove_dir_all(&target) } else { Ok(()) };
        })?;
        Ok(FrameWriter {
            folder: folder.to_path_buf(),
            target,
            options,
            shard: None,
            written: vec![index.temporary.clone(), inputs.temporary.clone()],
            index,
            inputs,
            shards: 0,
            frames: 0,
            bytes: 0,
            made_folder,
            finished: false,
        })
    }

    /// Adds a picture that [`PictureFormat::encode`] made; no two may have the same `key`, and it has no dot.
    ///
    /// # Errors
    /// If writing fails, say because the disk is full.
    pub fn add(&mut self, key: &str, picture: &[u8], metadata: &FrameMetadata) -> Result<()> {
        assert!(
            !key.is_empty() && key.len() <= 90 && !key.contains(['.', '/']),
            "a key is plain, not `{key}`"
        );
        let json = serde_json::to_vec(metadata).expect("metadata is plain data");
        let size_of = |bytes: &[u8]| BLOCK + (bytes.len() as u64).next_multiple_of(BLOCK);
        let size = size_of(picture) + size_of(&json);
        let full = |shard: &Shard| {
            shard.frames >= self.options.frames_per_shard
                || shard.position + size + 2 * BLOCK > self.options.bytes_per_shard
        };
        if self.shard.as_ref().is_some_and(full) {
            self.finish_shard()?;
        }
        let shard = match &mut self.shard {
            Some(shard) => shard,
            none => {
                let shard = Shard::create(&self.target, self.shards)?;
                self.written.push(shard.temporary.clone());
                none.insert(shard)
            }
        };
        let member = format!("{key}.{}", self.options.format.extension());
        let offset = shard.append(&member, picture)?;
        let json_offset = shard.append(&format!("{key}.json"), &json)?;
        shard.frames += 1;
        self.frames += 1;
        self.index.add(&IndexLine {
            key: key.to_string(),
            shard: shard.name.clone(),
            member,
            offset,
            length: picture.len() as u64,
            json_offset,
            json_length: json.len() as u64,
            metadata: metadata.clone(),
        })
    }

    /// Adds a line to `inputs.jsonl`: what became of one video.
    ///
    /// # Errors
    /// If writing fails.
    pub fn add_input(&mut self, line: &impl Serialize) -> Result<()> {
        self.inputs.add(line)
    }

    /// Frames added so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    fn finish_shard(&mut self) -> Result<()> {
        let Some(shard) = self.shard.take() else { return Ok(()) };
        let (name, frames) = (shard.name.clone(), shard.frames);
        let path = self.target.join(&name);
        let bytes = shard.finish(&path)?;
        self.written.push(path);
        let stats = self.target.join(name.replace(".tar", "_stats.json"));
        self.written.push(stats.clone());
        write_json(&stats, &ShardStats { shard: &name, frames, bytes })?;
        self.shards += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Completes the set; where it replaces another, that one goes only now.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self, settings: serde_json::Value) -> Result<FrameSetSummary> {
        self.finish_shard()?;
        for (lines, name) in [(&mut self.index, INDEX), (&mut self.inputs, INPUTS)] {
            let path = self.target.join(name);
            lines.finish(&path)?;
            self.written.push(path);
        }
        let summary = FrameSetSummary {
            format_version: FORMAT_VERSION,
            frames: self.frames,
            shards: self.shards,
            bytes: self.bytes,
            settings,
        };
        let path = self.target.join(SUMMARY);
        self.written.push(path.clone());
        write_json(&path, &summary)?;
        // From here on, nothing of the new set may be removed any more.
        self.finished = true;
        if self.target != self.folder {
            self.replace()?;
        }
        Ok(summary)
    }

    /// Puts the finished set in the place of the old one.
    fn replace(&self) -> Result<()> {
        // The summary goes first and comes last, so that a mixture never looks complete.
        let mut old = set_files(&self.folder)?;
        old.sort_by_key(|path| !path.ends_with(SUMMARY));
        for path in old {
            fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
        let mut new = set_files(&self.target)?;
        new.sort_by_key(|path| path.ends_with(SUMMARY));
        for path in new {
            let to = self.folder.join(path.file_name().expect("a file in a folder"));
            fs::rename(&path, &to).map_err(Error::io(&to, "write"))?;
        }
        fs::remove_dir(&self.target).map_err(Error::io(&self.target, "remove"))
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Best effort: the error that led here is the one to report.
        self.shard = None;
        for path in &self.written {
            let _ = fs::remove_file(path);
        }
        if self.target != self.folder {
            let _ = fs::remove_dir(&self.target);
        }
        if self.made_folder {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The files of a frame set in a folder, whole or not, but no other files.
fn set_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.strip_suffix(".tmp").unwrap_or(&name);
        let numbered = name.strip_prefix("frames-").is_some_and(|rest| {
            let rest = rest.strip_suffix(".tar").or_else(|| rest.strip_suffix("_stats.json"));
            rest.is_some_and(|number| number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit()))
        });
        if numbered || [SUMMARY, INDEX, INPUTS].contains(&name) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io(path, "write")(e)
    })
}

/// A tar file that is being written.
struct Shard {
    name: String,
    temporary: PathBuf,
    file: BufWriter<File>,
    position: u64,
    frames: u64,
}

impl Shard {
    fn create(folder: &Path, number: u64) -> Result<Shard> {
        let name = format!("frames-{number:05}.tar");
        let temporary = folder.join(format!("{name}.tmp"));
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        Ok(Shard { name, temporary, file: BufWriter::with_capacity(1 << 18, file), position: 0, frames: 0 })
    }

    /// Returns where the content of the member starts.
    fn append(&mut self, name: &str, content: &[u8]) -> Result<u64> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).expect("keys are short");
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let padding = content.len().next_multiple_of(BLOCK as usize) - content.len();
        let parts = [header.as_bytes().as_slice(), content, &[0; BLOCK as usize][..padding]];
        for part in parts {
            self.file.write_all(part).map_err(Error::io(&self.temporary, "write"))?;
        }
        let offset = self.position + BLOCK;
        self.position = offset + (content.len() + padding) as u64;
        Ok(offset)
    }

    /// Closes the file under its final name; returns its length.
    fn finish(mut self, path: &Path) -> Result<u64> {
        let end = [0; 2 * BLOCK as usize];
        let closed = self.file.write_all(&end).and_then(|()| self.file.flush());
        closed
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, path))
            .map_err(Error::io(path, "write"))?;
        Ok(self.position + 2 * BLOCK)
    }
}

/// A file with one JSON object per line.
struct Lines {
    temporary: PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    fn create(folder: &Path, name: &str) -> Result<Lines> {
        let temporary = folder.join(format!("{name}.tmp"));
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        Ok(Lines { temporary, file: BufWriter::new(file) })
    }

    fn add(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).expect("plain data");
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io(&self.temporary, "write"))
    }

    fn finish(&mut self, path: &Path) -> Result<()> {
        let closed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        closed.and_then(|()| fs::rename(&self.temporary, path)).map_err(Error::io(path, "write"))
    }
}
