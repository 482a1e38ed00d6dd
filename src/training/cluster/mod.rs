//! More than one process: workers, each a replica that learns from minibatches of its own, and servers, which hold the weights
//! in shares (paper §4.1; Dean et al. 2012).
//!
//! Ranks `0..workers` are workers, those after them servers. Workers side by side may be one replica, split among them by position. A worker fetches weights of all servers every P minibatches and
//! pushes its gradients every G; none waits for another. [`Post`] carries their letters. What a worker
//! learns with knows it as a [`ParameterServer`](crate::training::server::ParameterServer), and not that it is far away.

pub mod follow;
pub mod group;
pub mod job;
pub mod lead;
pub mod letters;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod pack;
pub mod remote;
pub mod serve;
pub mod shares;

use letters::Letter;

/// Ranks of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    /// Those that learn.
    pub workers: usize,
    /// Workers of each replica, which is split among them by position.
    pub parts: usize,
    /// Those that hold weights.
    pub servers: usize,
}

impl Ranks {
    /// The rank of a server, counted from 0.
    pub fn server(&self, number: usize) -> usize {
        self.workers + number
    }

    /// Replicas that learn.
    pub fn replicas(&self) -> usize {
        self.workers / self.parts
    }

    /// The worker that has the first part of the replica of this worker.
    pub fn head(&self, worker: usize) -> usize {
        worker - self.part(worker)
    }

    /// Which part of its replica a worker has.
    pub fn part(&self, worker: usize) -> usize {
        worker % self.parts
    }

    /// What a rank is.
    pub fn role(&self, rank: usize) -> &'static str {
        if rank < self.workers { "worker" } else { "server" }
    }

    /// The ranks of all servers.
    pub fn of_servers(&self) -> std::ops::Range<usize> {
        self.workers..self.workers + self.servers
    }
}

/// The rank of the worker that leads.
pub const LEADER: usize = 0;

/// How long a rank rests that has nothing to do.
const REST: std::time::Duration = std::time::Duration::from_micros(50);

/// A rank's letters to others and from them, none of which waits. Those from one rank to another arrive in the order in which
/// they were sent.
pub trait Post {
    /// Sends a letter; it is on its way then, and may not be there.
    fn send(&mut self, to: usize, letter: Letter);

    /// The next letter that is there, and the rank that it is from.
    fn receive(&mut self) -> Option<(usize, Letter)>;

    /// How many letters to a rank are still on their way.
    fn on_the_way(&mut self, to: usize) -> usize;
}

#[cfg(test)]
mod tests;
