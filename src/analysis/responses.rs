//! Values of many units for many pictures, streamed out of the network.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::geometry::Kind;
use crate::network::preprocess::Inputs;
use crate::network::{Network, Unit};

/// Pictures that go through the network together.
const BATCH: usize = 96;

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
        let batches: Vec<(&Inputs, &[usize])> = sets
            .iter()
            .flat_map(|set| set.pictures.chunks(BATCH).map(|pictures| (set.inputs, pictures)))
            .collect();
        let read = |work: &mut _, (inputs, pictures): &(&Inputs, &[usize])| {
            inputs.load(pictures, work);
            network.forward(work, last);
            progress(pictures.len());
            let of = |probe: &Probe| work.unit_values(network, probe.stage, probe.kind, probe.unit);
            probes.iter().flat_map(of).copied().collect()
        };
        let lens = batches.iter().map(|(_, pictures)| pictures.len()).collect();
        let batches = batches.par_iter().map_init(|| network.workspace(BATCH), read).collect();
        Responses { batches, lens }
    }

    /// A probe's value for each picture, in order, into `values`.
    pub fn of(&self, probe: usize, values: &mut Vec<f32>) {
        values.clear();
        for (batch, &len) in self.batches.iter().zip(&self.lens) {
            values.extend_from_slice(&batch[probe * len..][..len]);
        }
    }
}
