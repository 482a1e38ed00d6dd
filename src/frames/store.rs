//! Finds pictures at random in frame sets, in other people's tar shards and in folders of pictures.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use serde::Deserialize;
use walkdir::WalkDir;

use super::layout::{FRAME_TABLE, SUMMARY, read_summary};
use super::record::PLACE_COLUMNS;
use super::table::TableReader;
use crate::error::{Error, Result};
use crate::rng;
use crate::video::still;

const PICTURE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// A compressed picture longer than this is refused.
const MAX_BYTES: u64 = 1 << 30;

/// Pictures on disk, each found by its number, by any number of threads at once.
///
/// Only names and places are in memory; every picture is read when it is asked for.
#[derive(Debug)]
pub struct FrameStore {
    files: Vec<Holder>,
    entries: Vec<Entry>,
    warnings: Vec<String>,
}

/// What pictures lie in: a tar file, or a folder that they lie below.
#[derive(Debug)]
struct Holder {
    path: PathBuf,
    is_tar: bool,
}

impl Holder {
    fn tar(path: PathBuf) -> Holder {
        Holder { path, is_tar: true }
    }

    fn folder(path: PathBuf) -> Holder {
        Holder { path, is_tar: false }
    }
}

#[derive(Debug)]
struct Entry {
    file: u32,
    /// Name of the tar member, or path relative to the folder.
    member: Box<str>,
    picture: Span,
    json: Option<Span>,
}

/// What a row of the table says about where a frame lies.
#[derive(Deserialize)]
struct Place {
    shard: String,
    member: String,
    offset: u64,
    length: u64,
    json_offset: u64,
    json_length: u64,
}

/// Part of a tar file.
#[derive(Debug, Clone, Copy)]
struct Span {
    offset: u64,
    length: u64,
}

impl FrameStore {
    /// Opens a folder written by [`FrameWriter`](super::FrameWriter), a folder of tar shards or one of them, a
    /// folder of pictures with all folders below it, or a single picture.
    ///
    /// A damaged shard counts as far as it can be read, with a line in [`warnings`](Self::warnings).
    ///
    /// # Errors
    /// If there is no such path, or no picture there.
    pub fn open(path: &Path) -> Result<FrameStore> {
        let meta = path.metadata().map_err(Error::io(path, "read"))?;
        let mut store = FrameStore { files: Vec::new(), entries: Vec::new(), warnings: Vec::new() };
        if !meta.is_dir() && has_ending(path, &PICTURE_ENDINGS) {
            let Some(member) = path.file_name().and_then(|name| name.to_str()) else {
                return Err(Error::bad_file(path, "its name is not UTF-8"));
            };
            store.files.push(Holder::folder(path.parent().unwrap_or(Path::new("")).into()));
            let picture = Span { offset: 0, length: meta.len() };
            store.entries.push(Entry { file: 0, member: member.into(), picture, json: None });
            return Ok(store);
        }
        if !meta.is_dir() {
            if !has_ending(path, &["tar"]) {
                return Err(Error::bad_file(path, "is neither a folder nor a .tar file"));
            }
            store.scan(path)?;
            return store.unless_empty(path, "the tar file holds no picture");
        }
        let mut shards = Vec::new();
        for entry in path.read_dir().map_err(Error::io(path, "read"))? {
            let entry = entry.map_err(Error::io(path, "read"))?.path();
            if has_ending(&entry, &["tar"]) && entry.is_file() {
                shards.push(entry);
            }
        }
        shards.sort();
        if path.join(SUMMARY).is_file() {
            match store.read_table(path) {
                Ok(true) => return store.unless_empty(path, "the frame set holds no frame"),
                Ok(false) => {
                    let count = shards.len();
                    let problem = format!("the frame set is incomplete; reading its {count} finished shards");
                    store.warnings.push(format!("{}: {problem}", path.display()));
                }
                Err(problem) => {
                    store.entries.clear();
                    store.files.clear();
                    store.warnings.push(format!("{problem}; reading the shards instead"));
                }
            }
        }
        if shards.is_empty() {
            store.walk(path)?;
            return store.unless_empty(path, "the folder holds neither tar shards nor pictures");
        }
        for shard in &shards {
            store.scan(shard)?;
        }
        store.unless_empty(path, "the tar shards hold no picture")
    }

    fn unless_empty(self, path: &Path, problem: &str) -> Result<FrameStore> {
        if self.entries.is_empty() {
            let more = self.warnings.first().map_or(String::new(), |warning| format!(" ({warning})"));
            return Err(Error::bad_file(path, format!("{problem}{more}")));
        }
        Ok(self)
    }

    /// Takes the places from the table of a complete set; false if it is not complete.
    fn read_table(&mut self, folder: &Path) -> Result<bool> {
        let summary = read_summary(folder)?;
        if !summary.complete {
            return Ok(false);
        }
        let path = folder.join(FRAME_TABLE);
        let table = TableReader::open(&path)?;
        let mut shards: HashMap<String, (u32, u64)> = HashMap::new();
        for group in 0..table.groups() {
            for place in table.read::<Place>(group, PLACE_COLUMNS)? {
                let wrong = |what: String| Error::bad_file(&path, what);
                let (file, bytes) = match shards.get(&place.shard) {
                    Some(known) => *known,
                    None => {
                        if place.shard.contains('/') {
                            return Err(wrong(format!("`{}` is no name of a shard", place.shard)));
                        }
                        let shard = folder.join(&place.shard);
                        let meta = shard.metadata().map_err(Error::io(&shard, "read"))?;
                        self.files.push(Holder::tar(shard));
                        let known = (self.files.len() as u32 - 1, meta.len());
                        shards.insert(place.shard.clone(), known);
                        known
                    }
                };
                let span = |offset: u64, length: u64| {
                    let inside = offset.checked_add(length).is_some_and(|end| end <= bytes);
                    inside.then_some(Span { offset, length }).ok_or_else(|| {
                        wrong(format!("{} lies past the end of {}", place.member, place.shard))
                    })
                };
                let picture = span(place.offset, place.length)?;
                let json = Some(span(place.json_offset, place.json_length)?);
                self.entries.push(Entry { file, member: place.member.into(), picture, json });
            }
        }
        if self.entries.len() as u64 != summary.frames {
            let problem = format!("has {} rows for {} frames", self.entries.len(), summary.frames);
            return Err(Error::bad_file(&path, problem));
        }
        Ok(true)
    }

    /// Finds the pictures of a tar file, as far as it can be read.
    fn scan(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
        let number = self.files.len() as u32;
        self.files.push(Holder::tar(path.to_path_buf()));
        let first = self.entries.len();
        let mut metadata: HashMap<String, Span> = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::new(file));
        let mut problem = None;
        let members = archive.entries_with_seek().map_err(Error::io(path, "read"))?;
        for member in members {
            let member = match member {
                Ok(member) => member,
                Err(e) => {
                    problem = Some(e.to_string());
                    break;
                }
            };
            if !member.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
            let span = Span { offset: member.raw_file_position(), length: member.size() };
            if span.offset.checked_add(span.length).is_none_or(|end| end > bytes) {
                problem = Some(format!("member {name} is cut off"));
                break;
            }
            let as_path = Path::new(&name);
            if hidden(as_path) {
                continue;
            }
            if has_ending(as_path, &["json"]) {
                metadata.insert(sample_key(&name).to_string(), span);
            } else if has_ending(as_path, &PICTURE_ENDINGS) {
                self.entries.push(Entry { file: number, member: name.into(), picture: span, json: None });
            }
        }
        if problem.is_none() && !ends_with_zeros(path).map_err(Error::io(path, "read"))? {
            problem = Some("the file ends too early".into());
        }
        for entry in &mut self.entries[first..] {
            entry.json = metadata.get(sample_key(&entry.member)).copied();
        }
        if let Some(problem) = problem {
            let kept = self.entries.len() - first;
            self.warnings.push(format!("{}: damaged after {kept} pictures: {problem}", path.display()));
        }
        Ok(())
    }

    /// Finds the pictures below a folder.
    fn walk(&mut self, folder: &Path) -> Result<()> {
        self.files.push(Holder::folder(folder.to_path_buf()));
        let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.path())) {
            match entry {
                Ok(entry) if entry.file_type().is_file() && has_ending(entry.path(), &PICTURE_ENDINGS) => {
                    let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
                    let Some(member) = relative.to_str() else {
                        let path = entry.path().display();
                        self.warnings.push(format!("{path}: left out, its name is not UTF-8"));
                        continue;
                    };
                    let picture = Span { offset: 0, length: entry.metadata().map_or(0, |meta| meta.len()) };
                    self.entries.push(Entry { file: 0, member: member.into(), picture, json: None });
                }
                Ok(_) => {}
                Err(e) if e.loop_ancestor().is_some() => {}
                Err(e) => self.warnings.push(e.to_string()),
            }
        }
        Ok(())
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true of an open store: one without pictures is refused.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Which of `readers` reads a picture where each reads its own: all of a shard the same one, where there are enough shards;
    /// else those side by side.
    pub fn reader(&self, index: usize, readers: usize) -> usize {
        if self.files.len() >= readers && self.files.iter().all(|file| file.is_tar) {
            self.entries[index].file as usize % readers
        } else {
            index * readers / self.entries.len()
        }
    }

    /// Name of a picture without its ending; with the path inside the tar or folder.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len), as the other functions do too.
    pub fn key(&self, index: usize) -> &str {
        stem(&self.entries[index].member)
    }

    /// Leaves only the pictures whose key matches.
    ///
    /// # Errors
    /// There are none; it names `path`, the pattern, and one key that there is.
    pub fn matching(self, path: &Path, pattern: &glob::Pattern) -> Result<FrameStore> {
        let (count, some) = (self.len(), self.key(0));
        let problem = format!("none of the {count} pictures has a key like `{pattern}`; one key is `{some}`");
        let matching: Vec<bool> = (0..count).map(|index| pattern.matches(self.key(index))).collect();
        self.only(path, |index| matching[index], &problem)
    }

    /// These pictures, and after them those of another store.
    #[must_use]
    pub fn and(mut self, other: FrameStore) -> FrameStore {
        let before = self.files.len() as u32;
        self.files.extend(other.files);
        let moved = |entry: Entry| Entry { file: before + entry.file, ..entry };
        self.entries.extend(other.entries.into_iter().map(moved));
        self.warnings.extend(other.warnings);
        self
    }

    /// Leaves only the pictures of which `keep` is true, given their numbers.
    ///
    /// # Errors
    /// There are none; `path` has this problem then.
    pub fn only(mut self, path: &Path, keep: impl Fn(usize) -> bool, problem: &str) -> Result<FrameStore> {
        let mut index = 0;
        self.entries.retain(|_| {
            index += 1;
            keep(index - 1)
        });
        self.unless_empty(path, problem)
    }

    /// Leaves out the pictures with these keys.
    ///
    /// # Errors
    /// There are none of them, or none but them; it names `path` and one key of either.
    pub fn without(self, path: &Path, keys: &HashSet<String>) -> Result<FrameStore> {
        let (count, some) = (self.len(), self.key(0).to_owned());
        let left: Vec<bool> = (0..count).map(|index| !keys.contains(self.key(index))).collect();
        if left.iter().all(|left| *left) {
            let named = keys.iter().min().map_or("nothing".into(), |key| format!("`{key}`"));
            let problem = format!(
                "none of the {count} pictures is named to be left out: their keys are like `{some}`, named is {named}"
            );
            return Err(Error::bad_file(path, problem));
        }
        self.only(path, |index| left[index], &format!("all of the {count} pictures are named to be left out"))
    }

    /// What was wrong with the files on opening, a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// A number that changes when pictures or tar files are added, removed, renamed or written to, but not when all are moved
    /// to another place: it is made of names, places, lengths and times of change, and no picture is read.
    pub fn identity(&self) -> String {
        let stamp = |path: &Path| {
            let meta = path.metadata().ok()?;
            let since = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some((meta.len(), since.as_nanos()))
        };
        let mut hash = 0;
        let mut add = |name: &str, numbers: &dyn std::fmt::Debug| {
            hash = rng::stable_hash(format!("{hash} {name:?} {numbers:?}").as_bytes());
        };
        for Holder { path, .. } in self.files.iter().filter(|file| file.is_tar) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            add(&name, &stamp(path));
        }
        for Entry { file, member, picture, .. } in &self.entries {
            let Holder { path, is_tar } = &self.files[*file as usize];
            match is_tar {
                true => add(member, &(file, picture.offset, picture.length)),
                false => add(member, &stamp(&path.join(&**member))),
            }
        }
        format!("{hash:016x}")
    }

    /// Reads and decodes a picture, turned upright if it says how.
    ///
    /// # Errors
    /// If it cannot be read or decoded or is unreasonably large; the error names the shard and the member.
    pub fn picture(&self, index: usize) -> Result<DynamicImage> {
        let entry = &self.entries[index];
        let bytes = self.read(entry, entry.picture, &entry.member)?;
        still::decode(&bytes).map_err(|e| self.bad(entry, format!("cannot decode the picture: {e}")))
    }

    /// The JSON that lies beside a picture, if there is any.
    ///
    /// # Errors
    /// If it cannot be read or is not valid JSON.
    pub fn metadata(&self, index: usize) -> Result<Option<serde_json::Value>> {
        let entry = &self.entries[index];
        let holder = &self.files[entry.file as usize];
        let bytes = if holder.is_tar {
            let Some(span) = entry.json else { return Ok(None) };
            self.read(entry, span, &entry.member)?
        } else {
            let path = holder.path.join(format!("{}.json", stem(&entry.member)));
            match std::fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                read => read.map_err(Error::io(&path, "read"))?,
            }
        };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|e| self.bad(entry, format!("its JSON is not valid: {e}")))
    }

    fn read(&self, entry: &Entry, span: Span, member: &str) -> Result<Vec<u8>> {
        if span.length > MAX_BYTES {
            return Err(self.bad(entry, format!("has {} bytes, at most {MAX_BYTES} are read", span.length)));
        }
        let Holder { path: file, is_tar } = &self.files[entry.file as usize];
        if !is_tar {
            let path = file.join(member);
            return std::fs::read(&path).map_err(Error::io(&path, "read"));
        }
        let mut bytes = vec![0; span.length as usize];
        let read = File::open(file).and_then(|file| file.read_exact_at(&mut bytes, span.offset));
        read.map_err(|e| self.bad(entry, format!("cannot read: {e}")))?;
        Ok(bytes)
    }

    fn bad(&self, entry: &Entry, problem: String) -> Error {
        let Holder { path: file, is_tar } = &self.files[entry.file as usize];
        if *is_tar {
            Error::bad_file(file, format!("member {}: {problem}", entry.member))
        } else {
            Error::bad_file(file.join(&*entry.member), problem)
        }
    }
}

/// Whether a tar file has its end mark; without it, the file was cut.
fn ends_with_zeros(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let Some(start) = file.metadata()?.len().checked_sub(512) else { return Ok(false) };
    let mut block = [1; 512];
    file.read_exact_at(&mut block, start)?;
    Ok(block == [0; 512])
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| endings.contains(&ending.as_str()))
}

/// Such as the `._` files that macOS puts beside others.
fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// A name without its ending.
fn stem(name: &str) -> &str {
    match name.rfind('.') {
        Some(dot) if !name[dot..].contains('/') => &name[..dot],
        _ => name,
    }
}

/// What the members of one WebDataset sample share: everything up to the first dot of the file name.
fn sample_key(name: &str) -> &str {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    name[start..].find('.').map_or(name, |dot| &name[..start + dot])
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
