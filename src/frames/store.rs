//! Finds pictures at random in frame sets, in other people's tar shards and in folders of pictures.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use serde::Deserialize;
use walkdir::WalkDir;

use super::record::PLACE_COLUMNS;
use super::table::TableReader;
use super::writer::{FRAME_TABLE, SUMMARY, read_summary};
use crate::error::{Error, Result};
use crate::video::still;

const PICTURE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// A compressed picture longer than this is refused.
const MAX_BYTES: u64 = 1 << 30;

/// Pictures on disk, each found by its number, by any number of threads at once.
///
/// Only names and places are in memory; every picture is read when it is asked for.
#[derive(Debug)]
pub struct FrameStore {
    /// The tar files, or the folder that the pictures lie below.
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    in_tar: bool,
    warnings: Vec<String>,
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
    /// Opens a folder written by [`FrameWriter`](super::FrameWriter), a folder of tar shards or one of them, or a
    /// folder of pictures with all folders below it.
    ///
    /// A damaged shard counts as far as it can be read, with a line in [`warnings`](Self::warnings).
    ///
    /// # Errors
    /// If there is no such path, or no picture there.
    pub fn open(path: &Path) -> Result<FrameStore> {
        let meta = path.metadata().map_err(Error::io(path, "read"))?;
        let mut store =
            FrameStore { files: Vec::new(), entries: Vec::new(), in_tar: true, warnings: Vec::new() };
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
            store.in_tar = false;
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
                        self.files.push(shard);
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
        self.files.push(path.to_path_buf());
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
        self.files.push(folder.to_path_buf());
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

    /// Name of a picture without its ending; with the path inside the tar or folder.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len), as the other functions do too.
    pub fn key(&self, index: usize) -> &str {
        stem(&self.entries[index].member)
    }

    /// What was wrong with the files on opening, a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
        let bytes = if self.in_tar {
            let Some(span) = entry.json else { return Ok(None) };
            self.read(entry, span, &entry.member)?
        } else {
            let path = self.files[0].join(format!("{}.json", stem(&entry.member)));
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
        let file = &self.files[entry.file as usize];
        if !self.in_tar {
            let path = file.join(member);
            return std::fs::read(&path).map_err(Error::io(&path, "read"));
        }
        let mut bytes = vec![0; span.length as usize];
        let read = File::open(file).and_then(|file| file.read_exact_at(&mut bytes, span.offset));
        read.map_err(|e| self.bad(entry, format!("cannot read: {e}")))?;
        Ok(bytes)
    }

    fn bad(&self, entry: &Entry, problem: String) -> Error {
        let file = &self.files[entry.file as usize];
        if self.in_tar {
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
mod tests {
    use super::*;
    use crate::frames::{
        FrameMetadata, FrameSetSummary, FrameWriter, InputRecord, Outcome, PictureFormat, Region, Spool,
        WriterOptions, merge,
    };
    use std::fs;

    fn picture(shade: u8) -> DynamicImage {
        image::GrayImage::from_pixel(8, 6, image::Luma([shade])).into()
    }

    fn metadata(pts: i64) -> FrameMetadata {
        FrameMetadata {
            source: "videos/a.mp4".into(),
            name: "a.mp4".into(),
            stream: 0,
            pts,
            seconds: 0.1 * pts as f64,
            original_width: 64,
            original_height: 48,
            rotation: 90,
            mirrored: false,
            interlaced: false,
            strategy: "random".into(),
            seed: 1,
            crop: Region { left: 0.0, top: 0.0, width: 64.0, height: 48.0 },
            placed: None,
            brightness: 0.1,
            contrast: 2.0,
            sharpness: 3.0,
            perceptual_hash: format!("{pts:016x}"),
            hash: "0".into(),
        }
    }

    fn input(name: &str) -> InputRecord {
        InputRecord {
            path: format!("videos/{name}"),
            name: name.into(),
            absolute_path: format!("/videos/{name}"),
            key: name.into(),
            outcome: Outcome::Ok,
            reason: None,
            bytes: Some(1),
            codec: None,
            damage: None,
            frames: 0,
            dropped: Default::default(),
            seconds_spent: 0.0,
        }
    }

    fn options(overwrite: bool) -> WriterOptions {
        WriterOptions { frames_per_shard: 4, overwrite, ..WriterOptions::new(PictureFormat::Png) }
    }

    /// Adds the input `name` with `count` grey pictures whose shades start at `first`.
    fn add(writer: &mut FrameWriter, name: &str, first: u8, count: u8) {
        let mut spool = Spool::new(&std::env::temp_dir());
        for i in 0..count {
            let json = serde_json::to_vec(&metadata(i64::from(i))).unwrap();
            let bytes = PictureFormat::Png.encode(&picture(first + i)).unwrap();
            spool.push(&json, &bytes, 0).unwrap();
        }
        writer.add_input(input(name), &mut spool, &vec![true; count.into()]).unwrap();
    }

    /// A set of inputs of three pictures each, at most four to a shard, and `count` pictures in all.
    fn write_set(folder: &Path, first: u8, count: u8, overwrite: bool) -> Result<FrameSetSummary> {
        let settings = serde_json::json!({ "first": first });
        let mut writer = FrameWriter::open(folder, &settings, options(overwrite), |_| {})?;
        for start in (0..count).step_by(3) {
            add(&mut writer, &format!("a{start:02}"), first + start, (count - start).min(3));
        }
        writer.finish()
    }

    fn shade(store: &FrameStore, index: usize) -> u8 {
        store.picture(index).unwrap().to_luma8().get_pixel(3, 3).0[0]
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_frame_set_comes_back_as_written_with_and_without_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/set");
        let summary = write_set(&out, 10, 10, false).unwrap();
        // Of each input all frames in one shard, as long as they fit.
        assert_eq!((summary.frames, summary.shards, summary.inputs), (10, 3, 4));
        let shards = (0..3).flat_map(|i| [format!("frames-{i:05}.tar"), format!("frames-{i:05}_stats.json")]);
        let others = ["frames.json", "frames.parquet", "inputs.parquet", "journal.jsonl"].map(String::from);
        let mut expected: Vec<String> = shards.chain(others).collect();
        expected.sort();
        assert_eq!(names(&out), expected);
        for indexed in [true, false] {
            if !indexed {
                fs::remove_file(out.join(SUMMARY)).unwrap();
            }
            let store = FrameStore::open(&out).unwrap();
            assert_eq!((store.len(), store.warnings()), (10, &[] as &[String]));
            for i in 0..10 {
                let key = format!("a{:02}-{:06}", i / 3 * 3, i % 3);
                assert_eq!((store.key(i), shade(&store, i)), (&*key, 10 + i as u8));
                let found: FrameMetadata =
                    serde_json::from_value(store.metadata(i).unwrap().unwrap()).unwrap();
                assert_eq!(found, metadata(i as i64 % 3));
            }
        }
        assert_eq!(FrameStore::open(&out.join("frames-00002.tar")).unwrap().len(), 4);
    }

    #[test]
    fn a_set_is_replaced_only_when_asked_and_only_by_a_complete_one() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        fs::write(out.join("notes.txt"), "mine").unwrap();
        write_set(out, 10, 10, false).unwrap();
        let before = names(out);
        let refused = write_set(out, 50, 1, false).unwrap_err().to_string();
        assert!(refused.contains("already holds a frame set made otherwise (first: 10 -> 50)"), "{refused}");
        // A writer that is dropped half-way leaves the old set.
        let mut writer = FrameWriter::open(out, &serde_json::json!({}), options(true), |_| {}).unwrap();
        add(&mut writer, "b", 1, 3);
        drop(writer);
        assert_eq!(names(out), before);
        assert_eq!(FrameStore::open(out).unwrap().len(), 10);
        write_set(out, 50, 2, true).unwrap();
        let store = FrameStore::open(out).unwrap();
        assert_eq!((store.len(), shade(&store, 1)), (2, 51));
        assert_eq!(
            names(out),
            [
                "frames-00000.tar",
                "frames-00000_stats.json",
                "frames.json",
                "frames.parquet",
                "inputs.parquet",
                "journal.jsonl",
                "notes.txt"
            ]
        );
    }

    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        names(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
    }

    #[test]
    fn a_set_interrupted_after_any_input_is_continued_to_the_same_bytes() {
        // Sizes that fit, fill and overflow shards of four frames, and nothing at all at the end.
        let sizes = [3u8, 1, 2, 9, 0, 4, 1, 0];
        let settings = serde_json::json!({});
        let folder = tempfile::tempdir().unwrap();
        let open = |out: &Path| FrameWriter::open(out, &settings, options(false), |_| {}).unwrap();
        let go_on = |writer: &mut FrameWriter, upto: usize| {
            for (i, &size) in sizes.iter().enumerate().take(upto) {
                if !writer.is_done(&format!("/videos/v{i}")) {
                    add(writer, &format!("v{i}"), 20 * i as u8, size);
                }
            }
        };
        let whole = folder.path().join("whole");
        let mut writer = open(&whole);
        go_on(&mut writer, sizes.len());
        assert_eq!(writer.finish().unwrap().frames, 20);
        for stop in 0..=sizes.len() {
            let out = folder.path().join(format!("stopped-{stop}"));
            let mut writer = open(&out);
            go_on(&mut writer, stop);
            // Killed: nothing is cleaned up.
            std::mem::forget(writer);
            if stop > 5 {
                // A line that was never finished, a shard that nobody knows of.
                let journal = fs::File::options().append(true).open(out.join("journal.jsonl"));
                std::io::Write::write_all(&mut journal.unwrap(), b"{\"commit\":{\"sha").unwrap();
                fs::write(out.join("frames-00099.tar"), "x").unwrap();
                assert!(FrameStore::open(&out).unwrap().warnings()[0].contains("incomplete"));
            }
            // The lock of the killed process is gone with it; here it is still held by this one.
            let moved = folder.path().join(format!("moved-{stop}"));
            fs::create_dir(&moved).unwrap();
            for (name, bytes) in contents(&out) {
                fs::write(moved.join(name), bytes).unwrap();
            }
            let mut writer = open(&moved);
            go_on(&mut writer, sizes.len());
            writer.finish().unwrap();
            assert!(contents(&moved) == contents(&whole), "stopped after {stop}");
        }
        // And with more inputs; what was there stays as it was.
        let before = contents(&whole);
        let mut writer = open(&whole);
        assert!(writer.was_complete());
        add(&mut writer, "later", 200, 5);
        assert_eq!(writer.finish().unwrap().frames, 25);
        let after = contents(&whole);
        let tars = |all: &[(String, Vec<u8>)]| -> Vec<(String, Vec<u8>)> {
            all.iter().filter(|(name, _)| name.ends_with(".tar")).cloned().collect()
        };
        assert!(tars(&after).starts_with(&tars(&before)));
        assert_eq!(FrameStore::open(&whole).unwrap().len(), 25);
    }

    #[test]
    fn a_complete_set_that_was_interrupted_while_it_grew_is_not_taken_as_complete() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("set");
        write_set(&out, 10, 3, false).unwrap();
        let settings = serde_json::json!({ "first": 10 });
        let open = || FrameWriter::open(&out, &settings, options(false), |_| {}).unwrap();
        let mut writer = open();
        add(&mut writer, "more", 50, 3);
        add(&mut writer, "most", 60, 3);
        // What was committed stays, and the old set can still be read.
        drop(writer);
        assert_eq!(FrameStore::open(&out).unwrap().len(), 3);
        let refused = merge(&[out.clone()], &folder.path().join("merged"), options(false)).unwrap_err();
        assert!(refused.to_string().contains("not complete"), "{refused}");
        let writer = open();
        assert!(!writer.was_complete() && writer.is_done("/videos/more") && !writer.is_done("/videos/most"));
        assert_eq!(writer.finish().unwrap().frames, 6);
        assert_eq!((open().was_complete(), FrameStore::open(&out).unwrap().len()), (true, 6));
    }

    #[test]
    fn a_folder_with_nothing_but_unfinished_files_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("frames.json.tmp"), "{").unwrap();
        assert_eq!(write_set(folder.path(), 10, 3, false).unwrap().frames, 3);
    }

    #[test]
    fn only_one_process_writes_a_set() {
        let folder = tempfile::tempdir().unwrap();
        let _first =
            FrameWriter::open(folder.path(), &serde_json::json!({}), options(false), |_| {}).unwrap();
        let second = FrameWriter::open(folder.path(), &serde_json::json!({}), options(false), |_| {});
        assert!(second.err().unwrap().to_string().contains("another process"));
    }

    #[test]
    fn merged_sets_hold_all_frames_and_can_be_continued() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let settings = |shard: &str| serde_json::json!({ "size": 8, "shard": shard });
        for (part, name, count) in [("0/2", "x", 5), ("1/2", "y", 2)] {
            let mut writer = FrameWriter::open(&at(name), &settings(part), options(false), |_| {}).unwrap();
            add(&mut writer, name, 10, count);
            writer.finish().unwrap();
        }
        let summary = merge(&[at("x"), at("y")], &at("both"), options(false)).unwrap();
        assert_eq!((summary.frames, summary.inputs, summary.shards), (7, 2, 3));
        let store = FrameStore::open(&at("both")).unwrap();
        assert_eq!((store.len(), store.key(4), store.key(5)), (7, "x-000004", "y-000000"));
        let twice = merge(&[at("x"), at("x")], &at("twice"), options(false)).unwrap_err().to_string();
        assert!(twice.contains("/videos/x") && !at("twice").exists(), "{twice}");
        let plain = serde_json::json!({ "size": 8 });
        assert_eq!(
            FrameWriter::open(&at("both"), &plain, options(false), |_| {}).unwrap().summary().frames,
            7
        );
        write_set(&at("other"), 1, 1, false).unwrap();
        let other = merge(&[at("x"), at("other")], &at("mixed"), options(false)).unwrap_err().to_string();
        assert!(other.contains("first: none -> 1"), "{other}");
    }

    #[test]
    fn an_unfinished_set_leaves_nothing_and_an_impossible_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("set");
        let mut writer = FrameWriter::open(&out, &serde_json::json!({}), options(false), |_| {}).unwrap();
        add(&mut writer, "k", 0, 1);
        drop(writer);
        assert!(!out.exists());
        fs::write(&out, "a file").unwrap();
        let error = write_set(&out.join("below"), 0, 1, false).unwrap_err().to_string();
        assert!(error.contains("below") && error.contains("cannot create"), "{error}");
    }

    #[test]
    fn a_truncated_shard_keeps_what_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        write_set(folder.path(), 10, 4, false).unwrap();
        let shard = folder.path().join("frames-00000.tar");
        let whole = fs::read(&shard).unwrap();
        let table = TableReader::open(&folder.path().join(FRAME_TABLE)).unwrap();
        let cut = table.read::<Place>(0, PLACE_COLUMNS).unwrap()[2].offset as usize + 10;
        fs::write(&shard, &whole[..cut]).unwrap();
        // The index no longer fits, so the shard itself is read.
        let store = FrameStore::open(folder.path()).unwrap();
        assert_eq!(store.len(), 2);
        assert!(
            store.warnings().iter().any(|w| w.contains("a00-000002.png is cut off")),
            "{:?}",
            store.warnings()
        );
        let foreign = folder.path().join("x.tar");
        fs::write(&foreign, &whole[..cut - 600]).unwrap();
        let store = FrameStore::open(&foreign).unwrap();
        assert_eq!((store.len(), store.warnings().len(), shade(&store, 1)), (2, 1, 11));
    }

    #[test]
    fn tars_and_folders_of_other_people_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("pictures/deep")).unwrap();
        picture(1).save(at("pictures/b.png")).unwrap();
        picture(2).save(at("pictures/deep/a.BMP")).unwrap();
        picture(3).to_rgb8().save(at("pictures/a.v2.gif")).unwrap();
        fs::write(at("pictures/b.json"), r#"{"label":"b"}"#).unwrap();
        fs::write(at("pictures/readme.txt"), "no picture").unwrap();
        fs::write(at("pictures/z.jpg"), "no jpeg").unwrap();
        let store = FrameStore::open(&at("pictures")).unwrap();
        let keys: Vec<_> = (0..store.len()).map(|i| store.key(i)).collect();
        assert_eq!(keys, ["a.v2", "b", "deep/a", "z"]);
        assert_eq!([0, 1, 2].map(|i| shade(&store, i)), [3, 1, 2]);
        assert_eq!(store.metadata(1).unwrap().unwrap()["label"], "b");
        assert_eq!(store.metadata(0).unwrap(), None);
        let bad = store.picture(3).unwrap_err().to_string();
        assert!(bad.contains("pictures/z.jpg") && bad.contains("cannot decode"), "{bad}");

        let long = format!("{}/c.webp", "long".repeat(40));
        let mut tar = tar::Builder::new(fs::File::create(at("x.tar")).unwrap());
        tar.append_dir_all("top", at("pictures")).unwrap();
        picture(4).save(at("c.webp")).unwrap();
        tar.append_path_with_name(at("c.webp"), &long).unwrap();
        tar.into_inner().unwrap();
        let store = FrameStore::open(&at("x.tar")).unwrap();
        assert_eq!(store.len(), 5);
        let find = |key: &str| (0..5).find(|&i| store.key(i) == key).unwrap();
        assert_eq!(shade(&store, find(stem(&long))), 4);
        assert_eq!(store.metadata(find("top/b")).unwrap().unwrap()["label"], "b");
        let bad = store.picture(find("top/z")).unwrap_err().to_string();
        assert!(bad.contains("x.tar: member top/z.jpg"), "{bad}");
    }

    #[test]
    fn nothing_to_read_is_an_error_that_says_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: PathBuf| FrameStore::open(&path).unwrap_err().to_string();
        let none = error(folder.path().to_path_buf());
        assert!(none.contains("neither tar shards nor pictures"), "{none}");
        let missing = error(folder.path().join("missing"));
        assert!(missing.contains("missing: cannot read"), "{missing}");
        fs::write(folder.path().join("x.tar"), "no tar at all").unwrap();
        let garbage = error(folder.path().join("x.tar"));
        assert!(garbage.contains("holds no picture") && garbage.contains("damaged"), "{garbage}");
        fs::write(folder.path().join("x.txt"), "text").unwrap();
        assert!(error(folder.path().join("x.txt")).contains("neither a folder nor a .tar"));
    }

    #[test]
    fn a_picture_that_claims_a_monstrous_size_is_refused_unread() {
        // A PNG header for 60,000 x 60,000 pixels, with a correct checksum.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
        let crc = png[12..].iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
        });
        png.extend((!crc).to_be_bytes());
        png.extend(b"\0\0\0\0IDAT");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bomb.png"), png).unwrap();
        let error = FrameStore::open(folder.path()).unwrap().picture(0).unwrap_err().to_string();
        assert!(error.contains("bomb.png") && error.to_lowercase().contains("limit"), "{error}");
    }
}
