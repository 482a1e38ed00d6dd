//! A worker's end: weights that come from servers and gradients that go to them, while it learns.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::lead::Desk;
use super::letters::{Kind, Letter};
use super::pack::pack;
use super::shares::Shares;
use super::{LEADER, Post, REST, Ranks};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::network::shared::Fetched;
use crate::network::{Network, WeightUpdate};
use crate::training::server::{Gradients, Own, ParameterServer, Push, When};

/// Letters that wait to be sent: so many that threads which pack gradients do not wait for the post, so few that they take
/// little memory.
const OUTBOX: usize = 16;

/// The parameter server, as a worker sees it. A [`Courier`] carries its letters.
///
/// Weights travel while the worker learns: it asks for new ones every P minibatches, after its push, takes them when they have come,
/// and waits for them only where it would have to ask again. What it learned on its own meanwhile comes back to it with the push.
pub struct Remote<'a> {
    config: &'a RunConfig,
    ranks: Ranks,
    rank: usize,
    shares: &'a Shares,
    out: Outbox,
    inbox: Mutex<Inbox>,
}

/// Where a worker's letters to other ranks go.
#[derive(Clone)]
pub struct Outbox(SyncSender<(usize, Letter)>);

impl Outbox {
    /// Sends a letter to a rank.
    ///
    /// # Errors
    /// The courier has gone.
    pub fn send(&self, to: usize, letter: Letter) -> Result<()> {
        self.0.send((to, letter)).map_err(|_| ended())
    }
}

/// What has come and what was asked for.
struct Inbox {
    letters: Receiver<Result<(usize, Letter)>>,
    /// Weights that have come, until all are here.
    blocks: Vec<(usize, Letter)>,
    /// Servers of which more is to come.
    missing: usize,
    /// Updates that the first server had seen when it was asked.
    updates: u64,
    /// How stale pushes were.
    ages: Vec<u64>,
}

/// Carries the letters of a worker, on a thread of its own.
pub struct Courier<'a> {
    out: Receiver<(usize, Letter)>,
    inbox: Sender<Result<(usize, Letter)>>,
    /// For letters that are neither weights nor for the desk.
    office: Sender<Result<(usize, Letter)>>,
    /// For rows of maps.
    rows: Sender<Result<(usize, Letter)>>,
    /// The leader's, whose courier answers those who want a number.
    desk: Option<&'a Desk>,
    /// After so long a rank that does not answer is given up.
    patience: Duration,
}

/// What else comes to a worker.
pub struct Mail {
    /// Letters that are neither weights, nor rows, nor for the leader's desk.
    pub office: Receiver<Result<(usize, Letter)>>,
    /// Rows of maps, from the other parts of its replica.
    pub rows: Receiver<Result<(usize, Letter)>>,
}

impl<'a> Remote<'a> {
    /// Of a worker, a `rank` among `ranks`, its courier, and what else comes; the leader has a `desk`. A server that does not answer for
    /// so long is given up.
    pub fn new(
        config: &'a RunConfig,
        (ranks, rank): (Ranks, usize),
        shares: &'a Shares,
        desk: Option<&'a Desk>,
        patience: Duration,
    ) -> (Remote<'a>, Courier<'a>, Mail) {
        let (to_post, out) = sync_channel(OUTBOX);
        let (inbox, letters) = channel();
        let inbox_state = Inbox { letters, blocks: Vec::new(), missing: 0, updates: 0, ages: Vec::new() };
        let ((office, to_office), (rows, of_rows)) = (channel(), channel());
        let inbox_state = Mutex::new(inbox_state);
        let remote = Remote { config, ranks, rank, shares, out: Outbox(to_post), inbox: inbox_state };
        let mail = Mail { office: to_office, rows: of_rows };
        (remote, Courier { out, inbox, office, rows, desk, patience }, mail)
    }

    /// Where letters to other ranks go.
    pub fn outbox(&self) -> Outbox {
        self.out.clone()
    }

    fn send(&self, server: usize, letter: Letter) -> Result<()> {
        self.out.send(self.ranks.server(server), letter)
    }

    /// Asks all servers for weights.
    fn ask(&self, inbox: &mut Inbox, end: usize) -> Result<()> {
        inbox.missing = self.ranks.servers;
        let letter = || Letter::new(Kind::Fetch, &[end as u64]);
        (0..self.ranks.servers).try_for_each(|server| self.send(server, letter()))
    }

    /// True if all that was asked for is here, which it waits for if it is to.
    fn has_come(&self, inbox: &mut Inbox, wait: bool) -> Result<bool> {
        while inbox.missing > 0 {
            let letter = match wait {
                true => inbox.letters.recv().map_err(|_| ended())?,
                false => match inbox.letters.try_recv() {
                    Ok(letter) => letter,
                    Err(TryRecvError::Empty) => return Ok(false),
                    Err(TryRecvError::Disconnected) => return Err(ended()),
                },
            };
            let (from, letter) = letter?;
            match letter.kind {
                Kind::Weights => inbox.blocks.push((from, letter)),
                Kind::Fetched => {
                    // The first server counts the updates of all.
                    let mut numbers = letter.numbers();
                    if let Some(updates) = numbers.next().filter(|_| from == self.ranks.server(0)) {
                        inbox.updates = updates;
                        inbox.ages.extend(numbers);
                    }
                    inbox.missing -= 1;
                }
                _ => return Err(foreign(from, &letter)),
            }
        }
        Ok(true)
    }

    /// Makes what has come the worker's own weights.
    fn take(&self, inbox: &mut Inbox, own: &Own) -> Result<()> {
        let (network, blocks) = (own.network.expect("a worker has weights of its own"), &inbox.blocks);
        let with_sums = self.config.training.copies_weights();
        let failed = Mutex::new(None);
        own.rows.each_number(blocks.len(), |number| {
            let (from, letter) = &blocks[number];
            let taken = letter.open().and_then(|([stage, block], bytes)| {
                let block = network.stages.get(stage as usize)?.blocks.all().get(block as usize)?;
                block.write().read_from(with_sums, bytes)
            });
            if taken.is_none() {
                let error = foreign(*from, letter);
                failed.lock().expect("no worker panics").get_or_insert(error);
            }
        });
        inbox.blocks.clear();
        failed.into_inner().expect("no worker panics").map_or(Ok(()), Err)
    }
}

/// What is said of a letter that this version does not write.
pub(super) fn foreign(from: usize, letter: &Letter) -> Error {
    Error::Mismatch(format!("rank {from} sent a letter that makes no sense: {:?}", letter.kind))
}

/// What is said where the courier has gone.
pub(super) fn ended() -> Error {
    Error::Mismatch("the connection to the other ranks has ended".into())
}

impl ParameterServer for Remote<'_> {
    fn in_memory(&self) -> Option<&Network> {
        None
    }

    fn fetch(&self, own: &Own, when: When) -> Result<Option<Fetched>> {
        let inbox = &mut *self.inbox.lock().expect("no worker panics");
        let mut fetched = None;
        if inbox.missing > 0 && self.has_come(inbox, when != When::IfHere)? {
            self.take(inbox, own)?;
            fetched = Some(Fetched::after(inbox.updates));
        }
        if when == When::IfHere {
            return Ok(fetched);
        }
        self.ask(inbox, own.end)?;
        if when == When::Now {
            self.has_come(inbox, true)?;
            self.take(inbox, own)?;
            fetched = Some(Fetched::after(inbox.updates));
        }
        Ok(fetched)
    }

    fn push(&self, push: Push, pushed: &mut dyn FnMut(u64)) -> Result<()> {
        let gradients = push.gradients.expect("a worker has a gradient of its own");
        let failed = Mutex::new(None);
        for stage in push.stages.clone() {
            push.rows.each_number(gradients.blocks(stage), |block| {
                if let Err(error) = self.push_block(gradients, (stage, block), &push) {
                    failed.lock().expect("no worker panics").get_or_insert(error);
                }
            });
        }
        failed.into_inner().expect("no worker panics").map_or(Ok(()), Err)?;
        if self.ranks.head(self.rank) == self.rank {
            // Once for all parts of a replica.
            self.send(0, Letter::new(Kind::Pushed, &[push.fetched.updates()]))?;
        }
        self.inbox.lock().expect("no worker panics").ages.drain(..).for_each(pushed);
        Ok(())
    }

    fn settle(&self, own: &Own, pushed: &mut dyn FnMut(u64)) -> Result<()> {
        // What is asked for now has all in it that was sent before.
        self.fetch(own, When::Now)?;
        self.inbox.lock().expect("no worker panics").ages.drain(..).for_each(pushed);
        Ok(())
    }
}

impl Remote<'_> {
    fn push_block(&self, gradients: &Gradients, (stage, block): (usize, usize), push: &Push) -> Result<()> {
        let (factor, minibatches) = push.step.made_of();
        let head = [stage as u64, block as u64, push.step.number(), factor.to_bits(), minibatches];
        let mut letter = Letter::new(Kind::Gradients, &head);
        let empty = gradients.edit(stage, block, |arrays| {
            let empty = arrays.iter().all(|array| array.is_empty());
            for array in arrays {
                pack(array, push.scale, self.config.training.push_as, &mut letter.bytes);
            }
            empty
        });
        if empty {
            // Another part of the replica has it.
            return Ok(());
        }
        self.send(self.shares.server(stage, block), letter)
    }
}

impl Courier<'_> {
    /// Carries letters until the [`Remote`] is dropped, which servers are told then, or a rank falls silent: a server that owes an
    /// answer or, where the leader looks, a worker.
    pub fn run(self, ranks: Ranks, post: &mut impl Post) {
        // Since when each rank owes a letter.
        let mut owing: Vec<Option<Instant>> = vec![None; ranks.workers + ranks.servers];
        let mut told = None::<Instant>;
        let mut held: Option<(usize, Letter, Instant)> = None;
        loop {
            let mut moved = false;
            while let Some((from, letter)) = post.receive() {
                moved = true;
                let owes = match from < ranks.workers {
                    true => self.desk.is_some(),
                    false => letter.kind != Kind::Fetched && owing[from].is_some(),
                };
                owing[from] = owes.then(Instant::now);
                self.deliver(from, letter, post);
            }
            if held.is_none() {
                match self.out.try_recv() {
                    Ok((to, letter)) => held = Some((to, letter, Instant::now())),
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return part(ranks, post),
                }
            }
            if let Some((to, letter, _)) = held.take_if(|(to, ..)| post.on_the_way(*to) < OUTBOX) {
                moved = true;
                if letter.kind == Kind::Fetch {
                    owing[to] = Some(Instant::now());
                }
                post.send(to, letter);
            }
            if self.desk.is_none() && told.is_none_or(|told| told.elapsed() > self.patience / 10) {
                told = Some(Instant::now());
                post.send(LEADER, Letter::new(Kind::Alive, &[]));
            }
            let late = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() > self.patience);
            let full = held.as_ref().filter(|(_, _, since)| late(&Some(*since))).map(|(to, ..)| *to);
            if let Some(rank) = full.or(owing.iter().position(late)) {
                let (role, seconds) = (ranks.role(rank), self.patience.as_secs());
                let silent = format!("rank {rank}, a {role}, has not answered for {seconds} s");
                // Nobody there: it has ended already.
                let _ = self.inbox.send(Err(Error::Mismatch(silent.clone())));
                let _ = self.rows.send(Err(Error::Mismatch(silent.clone())));
                let _ = self.office.send(Err(Error::Mismatch(silent)));
                return;
            }
            if !moved {
                thread::sleep(REST);
            }
        }
    }

    /// Gives a letter to whom it is for.
    fn deliver(&self, from: usize, letter: Letter, post: &mut impl Post) {
        match (letter.kind, self.desk) {
            (Kind::Number, Some(desk)) => {
                let number: Vec<u64> = desk.take().into_iter().collect();
                post.send(from, Letter::new(Kind::Take, &number));
            }
            (Kind::Alive, _) => {}
            // Nobody there: it has ended already.
            (Kind::Weights | Kind::Fetched, _) => drop(self.inbox.send(Ok((from, letter)))),
            (Kind::Rows, _) => drop(self.rows.send(Ok((from, letter)))),
            _ => drop(self.office.send(Ok((from, letter)))),
        }
    }
}

/// Tells servers that there is no more to come, and waits until they are told.
fn part(ranks: Ranks, post: &mut impl Post) {
    let servers = ranks.of_servers();
    for server in servers.clone() {
        post.send(server, Letter::new(Kind::Done, &[]));
    }
    while servers.clone().any(|server| post.on_the_way(server) > 0) {
        // What is still to come is for nobody, but it has to be received.
        if post.receive().is_none() {
            thread::sleep(REST);
        }
    }
}
