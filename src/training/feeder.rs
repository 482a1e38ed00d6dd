//! Prepares minibatches ahead, on a thread of its own, so that replicas need not wait for them.
//!
//! Minibatches come out in the order of their numbers, and number `n` holds the same whoever takes it. Their buffers go round:
//! who takes one gives another back, so that nothing is allocated on the way.

use std::any::Any;
use std::mem;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};

use crate::error::{Error, Result};
use crate::kernels::Buffer;

/// Where replicas take minibatches from. Dropping it ends the thread.
pub struct Feeder {
    ready: Mutex<Ready>,
    /// Takes buffers back.
    empty: SyncSender<Buffer>,
}

struct Ready {
    queue: Receiver<Result<Buffer>>,
    /// Number of the next minibatch in the queue.
    next: u64,
}

impl Feeder {
    /// Starts a thread in `scope` that makes `prepare` fill a buffer for each of `numbers`, in order, up to `ahead` before they
    /// are taken. Buffers have `len` numbers, 0 at first and later whatever they held before.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        numbers: Range<u64>,
        (ahead, len): (usize, usize),
        mut prepare: impl FnMut(u64, &mut Buffer) -> Result<()> + Send + 'scope,
    ) -> Result<Feeder> {
        let (ready, queue) = sync_channel(ahead);
        // A buffer more than there are: giving one back never blocks.
        let (empty, emptied) = sync_channel(ahead + 1);
        for _ in 0..ahead {
            empty.send(Buffer::zeros(len)).expect("the other end is below");
        }
        let next = numbers.start;
        let work = move || {
            for number in numbers {
                let Ok(mut buffer): Result<Buffer, _> = emptied.recv() else { return };
                let prepared = catch_unwind(AssertUnwindSafe(|| prepare(number, &mut buffer)));
                let prepared = prepared.unwrap_or_else(|panic| Err(panicked(number, &*panic)));
                let failed = prepared.is_err();
                if ready.send(prepared.map(|()| buffer)).is_err() || failed {
                    return;
                }
            }
        };
        let thread = Builder::new().name("feeder".into()).spawn_scoped(scope, work);
        thread.map_err(|e| Error::Mismatch(format!("cannot start the thread that prepares frames: {e}")))?;
        Ok(Feeder { ready: Mutex::new(Ready { queue, next }), empty })
    }

    /// Swaps `input` for the next minibatch, waiting for it if need be, and returns its number; `None` if that is `end` or
    /// more, or if another taker was given the error that ended the feeder.
    ///
    /// # Errors
    /// The minibatch could not be prepared: there will be no further ones.
    pub fn take(&self, end: u64, input: &mut Buffer) -> Result<Option<u64>> {
        let mut ready = self.ready.lock().expect("no taker panics");
        let number = ready.next;
        if number >= end {
            return Ok(None);
        }
        let Ok(prepared) = ready.queue.recv() else { return Ok(None) };
        let prepared = prepared?;
        ready.next += 1;
        drop(ready);
        // After its last minibatch the thread needs no buffer.
        let _ = self.empty.send(mem::replace(input, prepared));
        Ok(Some(number))
    }

    /// Number of the minibatch that is taken next.
    pub fn next(&self) -> u64 {
        self.ready.lock().expect("no taker panics").next
    }
}

fn panicked(number: u64, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::Mismatch(format!("minibatch {number} could not be prepared: {}", text.unwrap_or("it panicked")))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;
    use crate::dataset::Shuffle;

    #[test]
    fn takers_share_every_minibatch_once_in_order_over_epochs_in_the_same_few_buffers() {
        const TAKERS: usize = 4;
        let (mut shuffle, mut indices) = (Shuffle::new(5, 50, 7), Vec::new());
        let mut taken = thread::scope(|scope| {
            let feeder = Feeder::start(scope, 3..903, (5, 7), |number, buffer| {
                shuffle.batch(number, &mut indices);
                buffer.iter_mut().zip(&indices).for_each(|(x, &index)| *x = index as f32);
                Ok(())
            });
            let feeder = feeder.unwrap();
            let take = |end| {
                let (mut input, mut taken, mut places) = (Buffer::zeros(7), Vec::new(), HashSet::new());
                while let Some(number) = feeder.take(end, &mut input).unwrap() {
                    taken.push((number, input.to_vec()));
                    places.insert(input.as_ptr() as usize);
                }
                (taken, places)
            };
            let (mut taken, mut places) = (Vec::new(), HashSet::new());
            // In two stretches, as between checkpoints.
            for end in [400, 903] {
                let of_all: Vec<_> = thread::scope(|scope| {
                    let takers: Vec<_> = (0..TAKERS).map(|_| scope.spawn(|| take(end))).collect();
                    takers.into_iter().map(|taker| taker.join().unwrap()).collect()
                });
                for (of_one, places_of_one) in of_all {
                    assert!(of_one.is_sorted_by_key(|(number, _)| *number));
                    taken.extend(of_one);
                    places.extend(places_of_one);
                }
                assert_eq!(feeder.next(), end);
            }
            assert!(places.len() <= 5 + 2 * TAKERS, "{} buffers", places.len());
            taken
        });
        taken.sort_by_key(|(number, _)| *number);
        assert!(taken.iter().map(|(number, _)| *number).eq(3..903));
        let (mut shuffle, mut wanted) = (Shuffle::new(5, 50, 7), Vec::new());
        for (number, values) in taken {
            shuffle.batch(number, &mut wanted);
            assert!(values.iter().zip(&wanted).all(|(&x, &index)| x == index as f32), "minibatch {number}");
        }
    }

    #[test]
    fn an_error_or_a_panic_reaches_one_taker_and_the_others_end() {
        for panics in [false, true] {
            let outcomes = thread::scope(|scope| {
                let prepare = |number, _: &mut Buffer| match (number, panics) {
                    (20, false) => Err(Error::Mismatch("no frames any more".into())),
                    (20, true) => panic!("no frames any more"),
                    _ => Ok(()),
                };
                let feeder = Feeder::start(scope, 0..1000, (3, 1), prepare).unwrap();
                let take = || -> Result<u64> {
                    let (mut input, mut count) = (Buffer::zeros(1), 0);
                    while feeder.take(1000, &mut input)?.is_some() {
                        count += 1;
                    }
                    Ok(count)
                };
                thread::scope(|scope| {
                    let takers: Vec<_> = (0..3).map(|_| scope.spawn(take)).collect();
                    takers.into_iter().map(|taker| taker.join().unwrap()).collect::<Vec<_>>()
                })
            });
            let errors: Vec<String> =
                outcomes.iter().filter_map(|o| o.as_ref().err()).map(Error::to_string).collect();
            assert!(errors.len() == 1 && errors[0].contains("no frames any more"), "{errors:?}");
        }
    }

    #[test]
    fn a_feeder_that_nobody_takes_from_ends_with_its_scope() {
        thread::scope(|scope| {
            let feeder = Feeder::start(scope, 0..u64::MAX, (2, 1), |_, _| Ok(())).unwrap();
            assert_eq!(feeder.take(9, &mut Buffer::zeros(1)).unwrap(), Some(0));
        });
    }
}
