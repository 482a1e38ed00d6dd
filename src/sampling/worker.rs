//! The worker process: requests on its standard input, frames on its standard output.
//!
//! The first line in is the [`Job`]; every further one names a file. For each, frames go out as they are found, and
//! then one message with the findings. libav may crash here, hang or ask for any amount of memory.

use std::ffi::{OsString, c_int};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Findings, Frame, Job};
use crate::frames::FrameMetadata;

/// A line to the worker.
#[derive(Serialize, Deserialize)]
pub(super) struct Task {
    /// Bytes of the path, which need not be UTF-8.
    pub path: Vec<u8>,
    pub name: String,
}

/// A message of the worker.
pub(super) enum Message {
    Frame {
        json: Vec<u8>,
        picture: Vec<u8>,
        perceptual_hash: u64,
    },
    Done(Findings),
    /// The worker itself cannot go on, say because there is no room for temporary files.
    Failed(String),
}

/// Longest JSON and longest picture that a worker sends.
const MAX_JSON: u32 = 1 << 20;
const MAX_PICTURE: u32 = 1 << 28;

const FRAME: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;

/// Serves requests until the standard input ends: what the hidden command `worker` does.
///
/// `memory_bytes` bounds the memory of this process. It ends with its parent, whose process number is `parent`.
///
/// # Errors
/// If a pipe breaks, or a request is not valid.
pub fn serve(memory_bytes: u64, parent: i32) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
        // It went before we asked to go with it.
        return Ok(());
    }
    let limit = |bytes: u64| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Data, limit(memory_bytes))?;
    keep_memory();
    let mut lines = io::stdin().lock().lines();
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let Some(job) = lines.next() else { return Ok(()) };
    let job: Job = serde_json::from_str(&job?)?;
    for line in lines {
        let task: Task = serde_json::from_str(&line?)?;
        let path = PathBuf::from(OsString::from_vec(task.path));
        let (tag, text) = match job.sample(&path, &task.name, |frame| write_frame(&mut out, &frame)) {
            Ok(findings) => (DONE, serde_json::to_vec(&findings)?),
            Err(e) => (FAILED, e.to_string().into_bytes()),
        };
        out.write_all(&[tag])?;
        out.write_all(&(text.len() as u32).to_le_bytes())?;
        out.write_all(&text)?;
        out.flush()?;
    }
    Ok(())
}

/// Has the allocator keep what is freed: every frame needs the same again, and to get pages from the system and give them
/// back takes a tenth of the time of a small frame.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: glibc's own function; parameters are those of its malloc.h. If it refuses, all works as before.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, 32 << 20);
            mallopt(M_TRIM_THRESHOLD, 64 << 20);
        }
    }
}

fn write_frame(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let json = serde_json::to_vec(&frame.metadata)?;
    out.write_all(&[FRAME])?;
    out.write_all(&(json.len() as u32).to_le_bytes())?;
    out.write_all(&(frame.picture.len() as u32).to_le_bytes())?;
    out.write_all(&frame.perceptual_hash.to_le_bytes())?;
    out.write_all(&json)?;
    out.write_all(&frame.picture)
}

fn nonsense(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads the next message; [`io::ErrorKind::InvalidData`] if it is none.
pub(super) fn read_message(from: &mut impl Read) -> io::Result<Message> {
    fn number(from: &mut impl Read) -> io::Result<u32> {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
    // A worker that a file took over may claim any length.
    fn bytes(from: &mut impl Read, length: u32, most: u32) -> io::Result<Vec<u8>> {
        if length > most {
            return Err(nonsense(format!("{length} bytes, at most {most} are sensible")));
        }
        let mut bytes = Vec::new();
        let read = from.by_ref().take(length.into()).read_to_end(&mut bytes)?;
        if read < length as usize { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }
    let mut tag = [0];
    from.read_exact(&mut tag)?;
    match tag[0] {
        FRAME => {
            let (json_length, picture_length) = (number(from)?, number(from)?);
            let mut hash = [0; 8];
            from.read_exact(&mut hash)?;
            let json = bytes(from, json_length, MAX_JSON)?;
            let picture = bytes(from, picture_length, MAX_PICTURE)?;
            serde_json::from_slice::<FrameMetadata>(&json).map_err(|e| nonsense(e.to_string()))?;
            Ok(Message::Frame { json, picture, perceptual_hash: u64::from_le_bytes(hash) })
        }
        tag @ (DONE | FAILED) => {
            let length = number(from)?;
            let findings = bytes(from, length, MAX_JSON)?;
            if tag == FAILED {
                return Ok(Message::Failed(String::from_utf8_lossy(&findings).into_owned()));
            }
            serde_json::from_slice(&findings).map(Message::Done).map_err(|e| nonsense(e.to_string()))
        }
        other => Err(nonsense(format!("there is no message {other}"))),
    }
}
