//! What replicas share without waiting for each other (paper §4.1): parameters behind reader-writer locks, and a count of their
//! updates, which tells how old the parameters were that a gradient was made from.
//!
//! `tests/loom` tries every order in which replicas can come to use this file.

#[cfg(loom)]
use loom::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};

/// Parameters that are read and updated together.
pub struct Shared<T>(RwLock<T>);

impl<T> Shared<T> {
    /// With these values.
    pub fn new(values: T) -> Shared<T> {
        Shared(RwLock::new(values))
    }

    /// To read them: never half of an update.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().expect("no replica panics")
    }

    /// To update them in place: no update is lost.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().expect("no replica panics")
    }
}

/// Counts the updates of a set of parameters.
pub struct Clock(AtomicU64);

/// When a replica read the parameters, and what it did to them since.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    at: u64,
    /// The replica's own updates since.
    own: u64,
}

impl Fetched {
    /// After so many updates.
    pub fn after(updates: u64) -> Fetched {
        Fetched { at: updates, own: 0 }
    }

    /// Updates that were counted by then: all of them are in what is read afterwards.
    pub fn updates(&self) -> u64 {
        self.at
    }

    /// To be called after an update of the replica itself.
    pub fn count_own(&mut self) {
        self.own += 1;
    }
}

impl Clock {
    /// At no update.
    #[expect(clippy::new_without_default, reason = "it begins when a run does")]
    pub fn new() -> Clock {
        Clock(AtomicU64::new(0))
    }

    /// To be called before parameters are read.
    pub fn fetch(&self) -> Fetched {
        Fetched { at: self.0.load(Ordering::Acquire), own: 0 }
    }

    /// To be called after an update; returns its staleness: how many updates of others came between the parameters being read
    /// and this update.
    pub fn push(&self, fetched: Fetched) -> u64 {
        self.0.fetch_add(1, Ordering::AcqRel) - fetched.at - fetched.own
    }
}
