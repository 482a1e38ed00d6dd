//! Letters as messages of MPI, two-sided, of which none waits.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::slice;

use mpi::Threading;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::request::{Request, StaticScope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};

use super::Post;
use super::letters::{Kind, Letter};
use crate::error::{Error, Result};

/// A rank's post over MPI. It belongs to the thread that made it: no other may speak to MPI.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Letters on their way from here, in the order of sending, each with the rank that it goes to.
    sent: Vec<(usize, Flight)>,
    /// Letters that have begun to arrive, in the order in which they were found.
    arriving: VecDeque<(usize, Kind, Flight)>,
    /// Ends MPI when dropped: last of all.
    _universe: Universe,
}

/// A message under way, and the memory that it is in.
struct Flight {
    bytes: ManuallyDrop<Vec<u8>>,
    request: Option<Request<'static, [u8], StaticScope>>,
}

impl Flight {
    /// Of a message that `begin` begins to read from `bytes`, or to write into them.
    fn new(
        mut bytes: Vec<u8>,
        begin: impl FnOnce(&'static mut [u8]) -> Request<'static, [u8], StaticScope>,
    ) -> Flight {
        // SAFETY: the memory of a vector stays where it is when the vector moves. It is used by nothing else, and not freed, until the
        // request is complete: `finish` gives it back then, and dropping a flight before leaks it.
        let memory = unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr(), bytes.len()) };
        Flight { request: Some(begin(memory)), bytes: ManuallyDrop::new(bytes) }
    }

    /// True if it is complete.
    fn is_complete(&mut self) -> bool {
        self.request = self.request.take().and_then(|request| request.test().err());
        self.request.is_none()
    }

    /// What it carried, once it is complete.
    fn finish(mut self) -> Vec<u8> {
        assert!(self.request.is_none(), "a message that is complete");
        // SAFETY: taken once, since this is the end of the flight, and nothing else uses it any more.
        unsafe { ManuallyDrop::take(&mut self.bytes) }
    }
}

impl Mpi {
    /// Joins the job that this process was started in, by `mpirun` or a cluster's launcher.
    ///
    /// # Errors
    /// MPI was begun in this process before, or cannot be used beside other threads.
    pub fn join() -> Result<Mpi> {
        let begun = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, threading) =
            begun.ok_or_else(|| Error::Mismatch("MPI was begun in this process before".into()))?;
        if threading < Threading::Funneled {
            let problem = format!("this MPI cannot be used beside other threads ({threading:?})");
            return Err(Error::Mismatch(problem));
        }
        let world = universe.world();
        Ok(Mpi { world, sent: Vec::new(), arriving: VecDeque::new(), _universe: universe })
    }

    /// The rank of this process.
    pub fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.world.size() as usize
    }

    /// Ends the job, all of its ranks, with an exit code.
    pub fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }
}

impl Post for Mpi {
    fn send(&mut self, to: usize, letter: Letter) {
        let process = self.world.process_at_rank(to as i32);
        let begin = |bytes: &'static mut [u8]| {
            process.immediate_send_with_tag(StaticScope, &*bytes, letter.kind.tag())
        };
        self.sent.push((to, Flight::new(letter.bytes, begin)));
    }

    fn receive(&mut self) -> Option<(usize, Letter)> {
        while let Some((message, status)) = self.world.any_process().immediate_matched_probe() {
            let (from, len) =
                (status.source_rank() as usize, status.count(u8::equivalent_datatype()) as usize);
            let kind = Kind::of_tag(status.tag()).unwrap_or(Kind::Unknown);
            let begin = |bytes: &'static mut [u8]| message.immediate_matched_receive_into(StaticScope, bytes);
            self.arriving.push_back((from, kind, Flight::new(vec![0; len], begin)));
        }
        // The first that is complete, but for those that another of the same rank is before.
        let mut passed = Vec::new();
        for at in 0..self.arriving.len() {
            let (from, _, flight) = &mut self.arriving[at];
            if !passed.contains(from) && flight.is_complete() {
                let (from, kind, flight) = self.arriving.remove(at)?;
                return Some((from, Letter { kind, bytes: flight.finish() }));
            }
            passed.push(*from);
        }
        None
    }

    fn on_the_way(&mut self, to: usize) -> usize {
        let complete = self.sent.extract_if(.., |(_, flight)| flight.is_complete());
        complete.for_each(|(_, flight)| drop(flight.finish()));
        self.sent.iter().filter(|(rank, _)| *rank == to).count()
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // MPI ends with the universe: whatever is under way has to be complete before.
        for (_, flight) in &mut self.sent {
            if let Some(request) = flight.request.take() {
                request.wait();
            }
        }
        self.sent.drain(..).for_each(|(_, flight)| drop(flight.finish()));
    }
}
