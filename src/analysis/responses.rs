//! Values of many units for many pictures, streamed out of the network.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{BATCH, UnitName};
use crate::dataset::{Dataset, available_memory};
use crate::frames::labels::Truth;
use crate::geometry::Kind;
use crate::network::preprocess::{Inputs, Whitening};
use crate::network::{Network, Unit};
use crate::rng;

/// A value to be read off the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Stage, from 0; in files from 1.
    #[serde(with = "from_1")]
    pub stage: usize,
    /// Which value.
    pub kind: Kind,
    /// Of which unit.
    pub unit: Unit,
}

impl Probe {
    /// The unit's name.
    pub fn name(&self) -> UnitName {
        UnitName { stage: self.stage + 1, unit: self.unit }
    }
}

/// How files number stages.
pub(super) mod from_1 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(stage: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*stage as u64 + 1)
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<usize, D::Error> {
        let number = usize::deserialize(deserializer)?;
        number.checked_sub(1).ok_or_else(|| serde::de::Error::custom("stages count from 1"))
    }
}

/// Some pictures of a set, as the network takes them.
pub struct Shown<'a> {
    /// The set.
    pub inputs: &'a Inputs<'a>,
    /// Numbers of the pictures in it.
    pub pictures: &'a [usize],
}

/// Sets of pictures of which some are chosen, and which of those show the thing that is looked for.
pub struct Labelled {
    /// Each set, and the numbers of the pictures chosen from it.
    pub sets: Vec<(Dataset, Vec<usize>)>,
    /// For the chosen pictures of all sets, one after another.
    pub positive: Vec<bool>,
    /// For the positive ones of them, if it is known.
    pub truths: Option<Vec<Truth>>,
}

impl Labelled {
    /// The sets, preprocessed as a network takes them; at once where a quarter of the free memory holds them all.
    pub fn inputs<'a>(&'a self, whitening: &'a Whitening) -> Vec<Inputs<'a>> {
        let budget = (available_memory() / 4) as usize / self.sets.len().max(1);
        self.sets.iter().map(|(dataset, _)| Inputs::new(dataset, whitening, budget)).collect()
    }

    /// The chosen ones of them.
    pub fn shown<'a>(&'a self, inputs: &'a [Inputs<'a>]) -> Vec<Shown<'a>> {
        let sets = inputs.iter().zip(&self.sets);
        sets.map(|(inputs, (_, pictures))| Shown { inputs, pictures }).collect()
    }

    /// Changes with the pictures, their order, and which of them are chosen.
    pub fn fingerprint(&self) -> String {
        let of_set = |(dataset, chosen): &(Dataset, Vec<usize>)| {
            let numbers: Vec<u8> = chosen.iter().flat_map(|&number| (number as u64).to_le_bytes()).collect();
            format!("{}-{:016x}", dataset.fingerprint(), rng::stable_hash(&numbers))
        };
        self.sets.iter().map(of_set).collect::<Vec<_>>().join(" ")
    }

    /// How many show the thing.
    pub fn positives(&self) -> usize {
        self.positive.iter().filter(|positive| **positive).count()
    }
}

/// What some probes gave for some pictures.
pub struct Responses {
    /// `[batch][probe, picture of the batch]`.
    batches: Vec<Vec<f32>>,
    /// Pictures of each batch.
    lens: Vec<usize>,
}

impl Responses {
    /// Reads `probes` for all pictures of `sets`, one set after the other. `progress` is told of pictures done.
    pub fn new(
        network: &Network,
        sets: &[Shown],
        probes: &[Probe],
        progress: impl Fn(usize) + Sync,
    ) -> Responses {
        let last = probes.iter().map(|probe| probe.stage).max().unwrap_or(0);
        Self::of_batches(
            sets,
            || network.workspace(BATCH),
            |work, inputs, pictures| {
                inputs.load(pictures, work);
                network.forward(work, last);
                progress(pictures.len());
                let of = |probe: &Probe| work.unit_values(network, probe.stage, probe.kind, probe.unit);
                probes.iter().flat_map(of).copied().collect()
            },
        )
    }

    /// The same of whatever gives values `[probe, picture]` for preprocessed pictures, one a row.
    pub fn of_vectors(
        sets: &[Shown],
        values: impl Fn(&[f32]) -> Vec<f32> + Sync,
        progress: impl Fn(usize) + Sync,
    ) -> Responses {
        Self::of_batches(sets, Vec::new, |rows, inputs, pictures| {
            rows.clear();
            pictures.iter().for_each(|&picture| rows.extend(inputs.picture(picture)));
            progress(pictures.len());
            values(rows)
        })
    }

    fn of_batches<W>(
        sets: &[Shown],
        begin: impl Fn() -> W + Sync + Send,
        read: impl Fn(&mut W, &Inputs, &[usize]) -> Vec<f32> + Sync,
    ) -> Responses {
        let batches: Vec<(&Inputs, &[usize])> = sets
            .iter()
            .flat_map(|set| set.pictures.chunks(BATCH).map(|pictures| (set.inputs, pictures)))
            .collect();
        let lens = batches.iter().map(|(_, pictures)| pictures.len()).collect();
        let one = |work: &mut W, &(inputs, pictures): &(&Inputs, &[usize])| read(work, inputs, pictures);
        Responses { batches: batches.par_iter().map_init(begin, one).collect(), lens }
    }

    /// A probe's value for each picture, in order, into `values`.
    pub fn of(&self, probe: usize, values: &mut Vec<f32>) {
        values.clear();
        for (batch, &len) in self.batches.iter().zip(&self.lens) {
            values.extend_from_slice(&batch[probe * len..][..len]);
        }
    }
}
