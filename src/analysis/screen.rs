//! Shows the network pictures that are made on the way, however many.

use rayon::prelude::*;

use crate::dataset::Dataset;
use crate::network::preprocess::Whitening;
use crate::network::{Network, Workspace};

/// A network with its preprocessing, looking at what it is shown with its stages up to one.
#[derive(Clone, Copy)]
pub struct Screen<'a> {
    /// The network.
    pub network: &'a Network,
    /// Its preprocessing.
    pub whitening: &'a Whitening,
    /// The last stage that is wanted, from 0.
    pub last: usize,
}

impl Screen<'_> {
    /// Sends 8-bit pictures, `[picture, channel, row, column]`, through preprocessing and network.
    pub fn show(&self, work: &mut Workspace, pictures: Vec<u8>) {
        let shown = Dataset::from_pixels(self.network.input, pictures);
        let numbers: Vec<usize> = (0..shown.len()).collect();
        work.start(shown.len());
        for (lane, values) in self.whitening.apply_all(&shown, &numbers).outer_iter().enumerate() {
            work.load_picture(lane, values.iter().copied());
        }
        self.network.forward(work, self.last);
    }

    /// Shows batches 0 to `count` of at most `lanes` pictures each and returns what `read` makes of each, in order, whatever
    /// the number of threads.
    pub fn batches<T: Send>(
        &self,
        count: usize,
        lanes: usize,
        pictures: impl Fn(usize) -> Vec<u8> + Sync,
        read: impl Fn(&Workspace, usize) -> T + Sync,
    ) -> Vec<T> {
        let one = |work: &mut Workspace, number: usize| {
            self.show(work, pictures(number));
            read(work, number)
        };
        (0..count).into_par_iter().map_init(|| self.network.workspace(lanes), one).collect()
    }
}
