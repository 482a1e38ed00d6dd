//! A disk that is full.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A file system of a given size, unmounted at the end.
pub struct Disk(TempDir);

impl Disk {
    /// `None`, with a line that says so, where we may not mount one.
    pub fn new(bytes: u64) -> Option<Disk> {
        let disk = Disk(tempfile::tempdir().unwrap());
        match disk.mount(&format!("size={bytes}")) {
            true => Some(disk),
            false => {
                eprintln!("skipped: full disks, since this user may not mount a tmpfs");
                None
            }
        }
    }

    /// Mounts it, or mounts it anew with other `options`.
    pub fn mount(&self, options: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.0.path());
        mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn name(&self) -> &str {
        self.path().to_str().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).stderr(Stdio::null()).status();
    }
}
