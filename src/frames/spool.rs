//! Compressed frames of one input on their way into a shard.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

/// So many bytes of a spool stay in memory; more go to an unnamed file, which vanishes with the process.
const IN_MEMORY: usize = 4 << 20;

/// Frames in the order in which they will be stored.
pub struct Spool {
    file: SpooledTempFile,
    end: u64,
    items: Vec<SpooledFrame>,
}

/// A frame in a [`Spool`].
#[derive(Debug, Clone, Copy)]
pub struct SpooledFrame {
    offset: u64,
    /// Length of its JSON in bytes.
    pub json_length: u32,
    /// Length of its picture in bytes.
    pub picture_length: u32,
    /// Perceptual hash of the picture.
    pub perceptual_hash: u64,
}

impl Spool {
    /// An empty spool, whose file, if it needs one, lies in `folder`.
    pub fn new(folder: &Path) -> Spool {
        Spool { file: tempfile::spooled_tempfile_in(IN_MEMORY, folder), end: 0, items: Vec::new() }
    }

    /// Adds a frame: the JSON and the picture as they will be stored.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    ///
    /// # Panics
    /// If either is longer than 4 GiB.
    pub fn push(&mut self, json: &[u8], picture: &[u8], perceptual_hash: u64) -> io::Result<()> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a picture below 4 GiB");
        self.file.write_all(json)?;
        self.file.write_all(picture)?;
        self.items.push(SpooledFrame {
            offset: self.end,
            json_length: length(json),
            picture_length: length(picture),
            perceptual_hash,
        });
        self.end += (json.len() + picture.len()) as u64;
        Ok(())
    }

    /// The frames so far.
    pub fn frames(&self) -> &[SpooledFrame] {
        &self.items
    }

    /// The JSON and the picture of a frame.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn read(&mut self, index: usize) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let item = self.items[index];
        let mut json = vec![0; item.json_length as usize];
        let mut picture = vec![0; item.picture_length as usize];
        self.file.seek(SeekFrom::Start(item.offset))?;
        self.file.read_exact(&mut json)?;
        self.file.read_exact(&mut picture)?;
        Ok((json, picture))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whether_they_fit_in_memory_or_not() {
        let folder = tempfile::tempdir().unwrap();
        for size in [10, 1 << 20] {
            let mut spool = Spool::new(folder.path());
            for i in 0..9u8 {
                spool.push(&[i; 7], &vec![i + 1; size + usize::from(i)], u64::from(i)).unwrap();
            }
            for i in [8u8, 0, 3] {
                let (json, picture) = spool.read(usize::from(i)).unwrap();
                assert_eq!((json, picture), (vec![i; 7], vec![i + 1; size + usize::from(i)]));
                assert_eq!(spool.frames()[usize::from(i)].perceptual_hash, u64::from(i));
            }
        }
    }
}
