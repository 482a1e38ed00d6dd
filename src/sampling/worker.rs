//! The worker process: requests on its standard input, frames on its standard output.
//!
//! The first line in is the [`Job`]; every further one names a file. For each, frames go out as they are found, and
//! then one message with the findings. libav may crash here, hang or ask for any amount of memory.

use std::ffi::OsString;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Findings, Frame, Job};

/// A line to the worker.
#[derive(Serialize, Deserialize)]
pub(super) struct Task {
    /// Bytes of the path, which need not be UTF-8.
    pub path: Vec<u8>,
    pub name: String,
}

/// A message of the worker.
pub(super) enum Message {
    Frame { json: Vec<u8>, picture: Vec<u8>, perceptual_hash: u64 },
    Done(Findings),
}

const FRAME: u8 = 1;
const DONE: u8 = 2;

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
    let mut lines = io::stdin().lock().lines();
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let Some(job) = lines.next() else { return Ok(()) };
    let job: Job = serde_json::from_str(&job?)?;
    for line in lines {
        let task: Task = serde_json::from_str(&line?)?;
        let path = PathBuf::from(OsString::from_vec(task.path));
        let findings = job.sample(&path, &task.name, |frame| write_frame(&mut out, &frame))?;
        let findings = serde_json::to_vec(&findings)?;
        out.write_all(&[DONE])?;
        out.write_all(&(findings.len() as u32).to_le_bytes())?;
        out.write_all(&findings)?;
        out.flush()?;
    }
    Ok(())
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

/// Reads the next message.
pub(super) fn read_message(from: &mut impl Read) -> io::Result<Message> {
    fn number(from: &mut impl Read) -> io::Result<u32> {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
    // Grows as bytes arrive, since a worker that a file took over may claim any length.
    fn bytes(from: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
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
            let (json, picture) = (bytes(from, json_length)?, bytes(from, picture_length)?);
            Ok(Message::Frame { json, picture, perceptual_hash: u64::from_le_bytes(hash) })
        }
        DONE => {
            let length = number(from)?;
            Ok(Message::Done(serde_json::from_slice(&bytes(from, length)?)?))
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("message {other} of a worker"))),
    }
}
