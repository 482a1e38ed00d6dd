//! Worker processes, seen from the program that feeds them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::inputs::Input;
use super::worker::{Message, Task, read_message};
use super::{Findings, Job};
use crate::error::{Error, Result};
use crate::frames::Spool;

/// How worker processes are started and what they may take.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// A program that calls [`serve`](super::serve) with the last two arguments: bytes of memory and the process
    /// number of its parent.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
    /// Longest time for a file.
    pub time: TimeLimit,
    /// Most memory of a worker, in bytes.
    pub memory_bytes: u64,
}

/// Longest time that a worker may take for a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TimeLimit {
    /// The same for every file.
    Fixed(Duration),
    /// A minute, and 50 s for each megabyte, at most six hours: no film is as slow as that, and a small hostile file ends
    /// soon.
    BySize,
}

impl TimeLimit {
    fn of(self, bytes: u64) -> Duration {
        match self {
            TimeLimit::Fixed(limit) => limit,
            TimeLimit::BySize => {
                let by_size = Duration::from_secs(60) + Duration::from_micros(bytes.saturating_mul(50));
                by_size.min(Duration::from_secs(6 * 3600))
            }
        }
    }
}

/// An input after its turn.
pub(super) struct Done {
    pub findings: Findings,
    pub spool: Spool,
    /// Length of the file.
    pub bytes: Option<u64>,
    pub seconds: f64,
}

pub(super) enum Turn {
    Done(Box<Done>),
    /// The run was asked to stop before the input was through.
    Stopped,
}

/// Samples one input after the other, with a worker process of its own if inputs are isolated.
pub(super) struct Slot<'a> {
    job: &'a Job,
    isolation: Option<&'a Isolation>,
    folder: &'a Path,
    stop: &'a AtomicBool,
    worker: Option<Worker<'a>>,
}

impl<'a> Slot<'a> {
    /// `folder` is for temporary files.
    pub fn new(
        job: &'a Job,
        isolation: Option<&'a Isolation>,
        folder: &'a Path,
        stop: &'a AtomicBool,
    ) -> Self {
        Slot { job, isolation, folder, stop, worker: None }
    }

    /// # Errors
    /// If frames cannot be put aside, or no worker can be started.
    pub fn sample(&mut self, input: &Input) -> Result<Turn> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Turn::Stopped);
        }
        let start = Instant::now();
        let bytes = input.path.metadata().ok().map(|meta| meta.len());
        let mut spool = Spool::new(self.folder);
        let findings = match (&input.problem, self.isolation) {
            (Some(problem), _) => Findings { problem: Some(problem.clone()), ..Findings::default() },
            (None, Some(isolation)) => {
                let limit = isolation.time.of(bytes.unwrap_or(0));
                match self.ask(isolation, input, limit, &mut spool)? {
                    Some(findings) => findings,
                    None => return Ok(Turn::Stopped),
                }
            }
            (None, None) => {
                let sampled = self.job.sample(&input.path, &input.name, |frame| {
                    let json = serde_json::to_vec(&frame.metadata)?;
                    spool.push(&json, &frame.picture, frame.perceptual_hash)
                });
                sampled.map_err(Error::io(self.folder, "write a temporary file in"))?
            }
        };
        Ok(Turn::Done(Box::new(Done { findings, spool, bytes, seconds: start.elapsed().as_secs_f64() })))
    }

    /// Has a worker sample the input; `None` if the run is to stop.
    fn ask(
        &mut self,
        isolation: &Isolation,
        input: &Input,
        limit: Duration,
        spool: &mut Spool,
    ) -> Result<Option<Findings>> {
        loop {
            let mut worker = match self.worker.take() {
                Some(worker) => worker,
                None => Worker::start(isolation, self.job, self.stop)
                    .map_err(Error::io(&isolation.program, "run"))?,
            };
            let fresh = !worker.used;
            worker.used = true;
            let answer = worker.sample(input, limit, |json, picture, hash| {
                spool.push(json, picture, hash).map_err(Error::io(self.folder, "write a temporary file in"))
            })?;
            let problem = match answer {
                Answer::Findings(findings) => {
                    // One that has met a damaged file may be damaged itself.
                    if findings.problem.is_none() && findings.damage.is_none() {
                        self.worker = Some(worker);
                    }
                    return Ok(Some(findings));
                }
                Answer::Stopped => return Ok(None),
                Answer::TimeOut => {
                    let limit = limit.as_secs_f64();
                    format!("took longer than the time limit of {limit:.0} s")
                }
                Answer::Died(error) => {
                    let problem = worker.cause_of_death(&error, isolation.memory_bytes);
                    if !fresh {
                        // Perhaps a file before this one did the harm: it gets a chance of its own.
                        *spool = Spool::new(self.folder);
                        continue;
                    }
                    problem
                }
            };
            return Ok(Some(Findings { problem: Some(problem), ..Findings::default() }));
        }
    }
}

/// A running worker process; it is killed when dropped.
struct Worker<'a> {
    child: Child,
    tasks: ChildStdin,
    messages: BufReader<Messages<'a>>,
    complaints: File,
    used: bool,
}

enum Answer {
    Findings(Findings),
    TimeOut,
    Died(io::Error),
    Stopped,
}

impl<'a> Worker<'a> {
    fn start(isolation: &Isolation, job: &Job, stop: &'a AtomicBool) -> io::Result<Worker<'a>> {
        let complaints = tempfile::tempfile()?;
        let mut child = Command::new(&isolation.program)
            .args(&isolation.arguments)
            .arg(isolation.memory_bytes.to_string())
            .arg(std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone()?)
            .spawn()?;
        let (tasks, pipe) = (child.stdin.take(), child.stdout.take());
        let mut tasks = tasks.expect("its input is a pipe");
        let mut line = serde_json::to_vec(job)?;
        line.push(b'\n');
        // If it is dead already, the first task finds out.
        let _ = tasks.write_all(&line);
        let messages = Messages { pipe: pipe.expect("its output is a pipe"), deadline: Instant::now(), stop };
        let messages = BufReader::with_capacity(1 << 16, messages);
        Ok(Worker { child, tasks, messages, complaints, used: false })
    }

    fn sample(
        &mut self,
        input: &Input,
        limit: Duration,
        mut sink: impl FnMut(&[u8], &[u8], u64) -> Result<()>,
    ) -> Result<Answer> {
        let task = Task { path: input.path.as_os_str().as_bytes().to_vec(), name: input.name.clone() };
        let mut line = serde_json::to_vec(&task).expect("plain data");
        line.push(b'\n');
        if let Err(e) = self.tasks.write_all(&line) {
            return Ok(Answer::Died(e));
        }
        let messages = self.messages.get_mut();
        messages.deadline = Instant::now() + limit;
        let stop = messages.stop;
        loop {
            match read_message(&mut self.messages) {
                Ok(Message::Frame { json, picture, perceptual_hash }) => {
                    sink(&json, &picture, perceptual_hash)?
                }
                Ok(Message::Done(findings)) => return Ok(Answer::Findings(findings)),
                // Not the file's fault, so it must not be on record as skipped.
                Ok(Message::Failed(why)) => {
                    return Err(Error::Mismatch(format!("a worker process cannot go on: {why}")));
                }
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(Answer::Stopped),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(Answer::TimeOut),
                Err(e) => return Ok(Answer::Died(e)),
            }
        }
    }

    /// Why it no longer answers.
    fn cause_of_death(&mut self, error: &io::Error, memory_bytes: u64) -> String {
        if error.kind() == io::ErrorKind::InvalidData {
            return format!("its worker process answered nonsense: {error}");
        }
        // It closed its pipes, so it is about to end.
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let mut words = String::new();
        let mut complaints = Vec::new();
        let start = self.complaints.seek(SeekFrom::Start(0));
        if start.and_then(|_| (&self.complaints).take(1 << 16).read_to_end(&mut complaints)).is_ok() {
            words = String::from_utf8_lossy(&complaints).trim().lines().take(2).collect::<Vec<_>>().join(" ");
        }
        let megabytes = memory_bytes / 1_000_000;
        match self.child.wait() {
            Ok(_) if words.contains("memory allocation of") => {
                format!("needs more memory than the limit of {megabytes} MB")
            }
            Ok(status) => match (status.signal(), words.is_empty()) {
                (Some(9), _) => "its worker process was killed, perhaps because memory ran out".into(),
                (Some(signal), true) => format!("crashed the decoder ({})", signal_name(signal)),
                (Some(signal), false) => format!("crashed the decoder ({}): {words}", signal_name(signal)),
                (None, _) => format!("ended its worker process ({status}): {words}"),
            },
            Err(e) => format!("ended its worker process: {e}"),
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "illegal instruction",
        6 => "abort",
        7 => "bus error",
        8 => "division by zero",
        11 => "segmentation fault",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal}, {name}")
}

/// What a worker writes, read until a deadline or until the run is to stop.
struct Messages<'a> {
    pipe: ChildStdout,
    deadline: Instant,
    stop: &'a AtomicBool,
}

impl Read for Messages<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("the run is to stop"));
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let slice = left.min(Duration::from_millis(200));
            let slice = Timespec { tv_sec: 0, tv_nsec: slice.subsec_nanos().into() };
            let ready = match poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&slice)) {
                Err(rustix::io::Errno::INTR) => 0,
                ready => ready?,
            };
            if ready > 0 {
                return self.pipe.read(buffer);
            }
        }
    }
}

/// Does `work` for 0, 1... on several threads, each with a state of its own, and gives the results to `take` in this
/// order, on this thread, until it returns false.
///
/// Threads begin nothing that lies more than [`window`] beyond what is taken. Returns whether `take` never returned false; if
/// it did, fails or panics, `stop` is set, so that work can end early.
pub(super) fn in_order<S, T: Send>(
    count: usize,
    threads: usize,
    stop: &AtomicBool,
    new_state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> T + Sync,
    mut take: impl FnMut(usize, T) -> Result<bool>,
) -> Result<bool> {
    struct State<T> {
        started: usize,
        taken: usize,
        stop: bool,
        done: BTreeMap<usize, std::thread::Result<T>>,
    }
    let state = Mutex::new(State { started: 0, taken: 0, stop: false, done: BTreeMap::new() });
    let changed = Condvar::new();
    let lock = || state.lock().expect("no thread panics while it holds the lock");
    let wait = |guard| changed.wait(guard).expect("no thread panics while it holds the lock");
    let window = window(threads);
    std::thread::scope(|scope| {
        // The scope waits for its threads on every way out, so they must be told on every way out.
        let mut release = OnDrop {
            armed: true,
            action: || {
                stop.store(true, Ordering::Relaxed);
                lock().stop = true;
                changed.notify_all();
            },
        };
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                let mut own = new_state();
                loop {
                    let mut now = lock();
                    while !now.stop && now.started < count && now.started >= now.taken + window {
                        now = wait(now);
                    }
                    if now.stop || now.started == count {
                        return;
                    }
                    let index = now.started;
                    now.started += 1;
                    drop(now);
                    // A bug must reach the waiting thread instead of leaving it to wait for ever.
                    let result =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut own, index)));
                    lock().done.insert(index, result);
                    changed.notify_all();
                }
            });
        }
        for index in 0..count {
            let mut now = lock();
            let result = loop {
                match now.done.remove(&index) {
                    Some(result) => break result,
                    None => now = wait(now),
                }
            };
            now.taken = index + 1;
            drop(now);
            changed.notify_all();
            let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let go_on = take(index, result);
            if !matches!(go_on, Ok(true)) {
                return go_on;
            }
        }
        release.armed = false;
        Ok(true)
    })
}

/// How many inputs may be begun or done beyond the one that is to be written next: enough that a long film does not leave
/// the other threads idle at once, few enough for the number of files that a process may have open.
fn window(threads: usize) -> usize {
    (32 * threads).min(256).max(threads)
}

/// Does something at the end of its life, unless it was disarmed.
struct OnDrop<F: FnMut()> {
    armed: bool,
    action: F,
}

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if self.armed {
            (self.action)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn results_come_in_order_and_never_far_ahead() {
        let (ahead, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for threads in [1, 3, 8] {
            let mut seen = Vec::new();
            let work = |_: &mut (), i: usize| {
                most.fetch_max(ahead.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(if i == 0 { 20_000 } else { 10 }));
                i * i
            };
            let all = in_order(
                200,
                threads,
                &AtomicBool::new(false),
                || (),
                work,
                |i, square| {
                    ahead.fetch_sub(1, Ordering::SeqCst);
                    seen.push((i, square));
                    Ok(true)
                },
            );
            assert!(all.unwrap());
            assert_eq!(seen, (0..200).map(|i| (i, i * i)).collect::<Vec<_>>());
        }
        assert!(most.into_inner() <= window(8));
    }

    #[test]
    fn an_error_while_writing_or_a_wish_to_stop_ends_the_work() {
        for stop in [true, false] {
            let started = AtomicUsize::new(0);
            let told = AtomicBool::new(false);
            let result = in_order(
                1_000_000,
                4,
                &told,
                || (),
                |_, _| started.fetch_add(1, Ordering::SeqCst),
                |i, _| match i {
                    5 if stop => Ok(false),
                    5 => Err(Error::Mismatch("full".into())),
                    _ => Ok(true),
                },
            );
            assert_eq!(result.is_err(), !stop);
            assert!(result.is_err() || !result.unwrap());
            assert!(started.into_inner() < 300 && told.into_inner());
        }
    }

    #[test]
    fn a_panic_while_writing_ends_the_work_instead_of_waiting_for_ever() {
        let told = AtomicBool::new(false);
        let run = || in_order(1000, 3, &told, || (), |_, i| i, |i, _| Ok(i < 5 || panic!("a bug")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        assert!(told.into_inner());
    }

    /// What comes of two files if the worker is this shell script; it is given the files' names on its input.
    fn by_script(script: &str) -> Vec<String> {
        let job = Job {
            seed: 0,
            strategy: crate::video::sampler::Strategy::Keyframes,
            streams: crate::video::sampler::Streams::Best,
            interlaced: crate::video::Interlaced::Field,
            shape: crate::frames::Shape {
                part: Default::default(),
                width: 8,
                height: 8,
                fit: crate::frames::Fit::Crop,
                colour: crate::frames::Colour::Grey,
            },
            format: crate::frames::PictureFormat::Png,
            filters: Default::default(),
        };
        let isolation = Isolation {
            program: "sh".into(),
            arguments: vec!["-c".into(), format!("read job; {script}").into()],
            time: TimeLimit::Fixed(Duration::from_secs(1)),
            memory_bytes: 1 << 30,
        };
        let (folder, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let mut slot = Slot::new(&job, Some(&isolation), folder.path(), &stop);
        let outcome = |name: &str| {
            let path = PathBuf::from(name);
            let input = Input { path: path.clone(), name: name.into(), absolute: name.into(), problem: None };
            match slot.sample(&input).unwrap() {
                Turn::Done(done) => done.findings.problem.unwrap_or_else(|| "ok".into()),
                Turn::Stopped => "stopped".into(),
            }
        };
        ["a", "b"].map(outcome).into()
    }

    #[test]
    fn a_worker_that_crashes_hangs_or_answers_nonsense_costs_the_file_and_no_other() {
        // Findings of a file that is fine, as the protocol has them: a tag, a length, JSON.
        let fine = r#"{"problem":null,"codec":"x","damage":null,"dropped":{"small":0,"dark":0,"uniform":0,"blurred":0,"duplicate":0,"duplicate_across":0,"known":0}}"#;
        let length = format!("\\{:03o}\\{:03o}\\0\\0", fine.len() % 256, fine.len() / 256);
        let done = format!(r"printf '\002{length}%s' '{fine}'");
        assert_eq!(by_script(&format!("while read file; do {done}; done")), ["ok", "ok"]);
        let crash = by_script("read file; kill -SEGV $$");
        assert_eq!(crash, ["crashed the decoder (signal 11, segmentation fault)"; 2]);
        assert_eq!(by_script("read file; sleep 60"), ["took longer than the time limit of 1 s"; 2]);
        let words = by_script("read file; echo memory allocation of 9 bytes failed >&2; kill -ABRT $$");
        assert_eq!(words, ["needs more memory than the limit of 1073 MB"; 2]);
        // A worker that has done a file gets a second chance at the next, from a fresh worker.
        let second = format!("read file; case $file in *97*) {done}; read file;; esac; kill -SEGV $$");
        assert_eq!(by_script(&second), ["ok", "crashed the decoder (signal 11, segmentation fault)"]);
        for nonsense in [
            r"printf 'hello world, this is no message'",
            // A frame of 2 bytes of JSON that is none, and one that claims 4 GB.
            r"printf '\001\002\000\000\000\001\000\000\00012345678{xP'",
            r"printf '\001\377\377\377\377\377\377\377\37712345678'",
            r"printf '\002\377\377\377\377'",
        ] {
            for outcome in by_script(&format!("read file; {nonsense}; sleep 9")) {
                assert!(outcome.starts_with("its worker process answered nonsense"), "{nonsense}: {outcome}");
            }
        }
    }
}
