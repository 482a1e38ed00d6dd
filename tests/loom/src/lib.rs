//! Every order in which replicas can come to use `src/network/shared.rs`, within loom's bounds.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path tests/loom/Cargo.toml`
#![cfg(all(loom, test))]

#[path = "../../../src/network/shared.rs"]
mod shared;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use shared::{Clock, Shared};

/// Two blocks of parameters; each holds a weight and what the optimiser remembers of it, which always agree.
struct Store {
    blocks: [Shared<(u64, u64)>; 2],
    clock: Clock,
}

impl Store {
    fn new() -> Arc<Store> {
        let block = || Shared::new((0, 0));
        Arc::new(Store { blocks: [block(), block()], clock: Clock::new() })
    }

    /// What a replica reads: each block as it is at some moment.
    fn read(&self) -> [u64; 2] {
        [0, 1].map(|number| {
            let block = self.blocks[number].read();
            assert_eq!(block.0, block.1, "half an update was seen");
            block.0
        })
    }

    /// An update of every block, in place.
    fn update(&self) {
        for block in &self.blocks {
            let mut block = block.write();
            block.0 += 1;
            block.1 += 1;
        }
    }
}

#[test]
fn no_update_is_lost_and_none_is_seen_in_half() {
    loom::model(|| {
        let store = Store::new();
        let replicas: Vec<_> = (0..2)
            .map(|_| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    let before = store.read();
                    store.update();
                    let after = store.read();
                    // Its own update is in what it reads afterwards, in every block.
                    assert!(after.iter().zip(before).all(|(after, before)| *after > before));
                })
            })
            .collect();
        replicas.into_iter().for_each(|replica| replica.join().unwrap());
        assert_eq!(store.read(), [2, 2]);
    });
}

#[test]
fn staleness_counts_the_updates_of_others_and_never_its_own() {
    loom::model(|| {
        let (clock, total) = (Arc::new(Clock::new()), Arc::new(AtomicU64::new(0)));
        let replicas: Vec<_> = (0..2)
            .map(|_| {
                let (clock, total) = (Arc::clone(&clock), Arc::clone(&total));
                thread::spawn(move || {
                    // Fetched once, pushed twice, as with `fetch_every = 2`.
                    let mut fetched = clock.fetch();
                    for _ in 0..2 {
                        let staleness = clock.push(fetched);
                        fetched.count_own();
                        assert!(staleness <= 2, "{staleness} updates of one other replica that makes two");
                        total.fetch_add(staleness, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        replicas.into_iter().for_each(|replica| replica.join().unwrap());
        // Whoever fetches first has both of the other's updates come after that, or some before its own.
        assert!(total.load(Ordering::Relaxed) <= 6);
        assert_eq!(clock.fetch().updates(), 4);
    });
}

#[test]
fn an_update_that_was_counted_is_read() {
    loom::model(|| {
        let store = Store::new();
        let writer = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                let fetched = store.clock.fetch();
                store.update();
                store.clock.push(fetched);
            })
        };
        let fetched = store.clock.fetch();
        let seen = store.read();
        assert!(seen.iter().all(|&updates| updates >= fetched.updates()), "{seen:?}");
        writer.join().unwrap();
    });
}
