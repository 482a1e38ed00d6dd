//! One tar file of a frame set: `key.jpg` and `key.json` of each frame, side by side.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::FrameRecord;
use crate::error::{Error, Result};

/// Tar files consist of blocks of this size.
pub(super) const BLOCK: u64 = 512;

/// File name of a shard.
pub(super) fn shard_name(number: u64) -> String {
    format!("frames-{number:05}.tar")
}

/// Bytes that a member of a tar file takes.
pub(super) fn member_size(length: u64) -> u64 {
    BLOCK + length.next_multiple_of(BLOCK)
}

/// A tar file that is being written; it has its final name only once it is complete.
pub(super) struct Shard {
    /// Its final name.
    pub name: String,
    /// Where it is written.
    pub temporary: PathBuf,
    file: BufWriter<File>,
    /// Bytes so far.
    pub position: u64,
    /// The frames in it.
    pub records: Vec<FrameRecord>,
}

impl Shard {
    pub fn create(folder: &Path, number: u64) -> Result<Shard> {
        let name = shard_name(number);
        let temporary = folder.join(format!("{name}.tmp"));
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        let file = BufWriter::with_capacity(1 << 18, file);
        Ok(Shard { name, temporary, file, position: 0, records: Vec::new() })
    }

    /// Adds a picture and its JSON.
    pub fn add(&mut self, key: &str, extension: &str, picture: &[u8], json: &[u8]) -> Result<()> {
        let member = format!("{key}.{extension}");
        let offset = self.append(&member, picture)?;
        let json_offset = self.append(&format!("{key}.json"), json)?;
        let metadata = serde_json::from_slice(json).expect("the sampler writes valid JSON");
        self.records.push(FrameRecord {
            key: key.to_string(),
            shard: self.name.clone(),
            member,
            offset,
            length: picture.len() as u64,
            json_offset,
            json_length: json.len() as u64,
            metadata,
        });
        Ok(())
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

    /// Writes the end of the file and waits until the disk has it. It still has its temporary name.
    pub fn close(mut self) -> Result<ClosedShard> {
        let end = [0; 2 * BLOCK as usize];
        let closed = self.file.write_all(&end).and_then(|()| self.file.flush());
        let closed = closed.and_then(|()| self.file.get_ref().sync_all());
        closed.map_err(Error::io(&self.temporary, "write"))?;
        let bytes = self.position + 2 * BLOCK;
        Ok(ClosedShard { name: self.name, temporary: self.temporary, bytes, records: self.records })
    }
}

/// A complete tar file under its temporary name.
pub(super) struct ClosedShard {
    pub name: String,
    pub temporary: PathBuf,
    pub bytes: u64,
    pub records: Vec<FrameRecord>,
}

impl ClosedShard {
    /// Gives the file its final name.
    pub fn publish(&self, folder: &Path) -> Result<()> {
        let path = folder.join(&self.name);
        fs::rename(&self.temporary, &path).map_err(Error::io(&path, "write"))
    }
}

/// The frames of a shard that [`Shard`] wrote, and its length in bytes.
pub(super) fn read_records(path: &Path) -> Result<(Vec<FrameRecord>, u64)> {
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
    let contents = file.try_clone().map_err(Error::io(path, "read"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut records = Vec::new();
    let mut picture: Option<(String, u64, u64)> = None;
    for member in archive.entries_with_seek().map_err(Error::io(path, "read"))? {
        let member = member.map_err(Error::io(path, "read"))?;
        let member_name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let (offset, length) = (member.raw_file_position(), member.size());
        let wrong = |what: &str| Error::bad_file(path, format!("member {member_name}: {what}"));
        let Some(key) = member_name.strip_suffix(".json") else {
            picture = Some((member_name, offset, length));
            continue;
        };
        let (member, offset, length, json_offset, json_length) = match picture.take() {
            Some((member, start, size)) if member.split('.').next() == Some(key) => {
                (member, start, size, offset, length)
            }
            _ => return Err(wrong("stands without its picture")),
        };
        let mut json = vec![0; usize::try_from(json_length.min(1 << 20)).expect("a megabyte")];
        contents.read_exact_at(&mut json, json_offset).map_err(Error::io(path, "read"))?;
        let metadata =
            serde_json::from_slice(&json).map_err(|e| wrong(&format!("is not as expected: {e}")))?;
        let (key, shard) = (key.to_string(), name.clone());
        records.push(FrameRecord { key, shard, member, offset, length, json_offset, json_length, metadata });
    }
    Ok((records, bytes))
}

/// Gives a file a second name, or copies it where the file system has no links.
pub(super) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(drop).map_err(Error::io(to, "write"))
}
