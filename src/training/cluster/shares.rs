//! Which server holds which weights.

use std::ops::Range;

use crate::network::Network;

/// The blocks of weights that each server holds: of every stage some side by side, about as many weights for each server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Of each stage, the first block of each server; then the number of blocks.
    firsts: Vec<Vec<usize>>,
}

impl Shares {
    /// Of a network whose blocks are divided as those of `network`, among so many servers.
    pub fn new(network: &Network, servers: usize) -> Shares {
        let of_stage = |blocks: &[usize]| {
            let all: usize = blocks.iter().sum();
            // A block belongs to the server in whose share of the weights its middle lies.
            let mut before = 0;
            let servers_of = blocks.iter().map(|&len| {
                let middle = 2 * before + len;
                before += len;
                (middle * servers / (2 * all)).min(servers - 1)
            });
            let servers_of: Vec<usize> = servers_of.collect();
            (0..=servers).map(|server| servers_of.partition_point(|&of| of < server)).collect()
        };
        let sizes = |stage: &crate::network::Stage| -> Vec<usize> {
            let size = |block: &crate::network::weights::Block| block.place.cols.len() * block.maps().1;
            stage.blocks.all().iter().map(size).collect()
        };
        Shares { firsts: network.stages.iter().map(|stage| of_stage(&sizes(stage))).collect() }
    }

    /// The blocks of a stage (from 0) that a server holds.
    pub fn of(&self, stage: usize, server: usize) -> Range<usize> {
        self.firsts[stage][server]..self.firsts[stage][server + 1]
    }

    /// The server that holds a block of a stage (from 0).
    pub fn server(&self, stage: usize, block: usize) -> usize {
        self.firsts[stage].partition_point(|&first| first <= block) - 1
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.firsts[0].len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn every_block_has_one_server_and_servers_have_about_as_many_weights() {
        let config = RunConfig::parse(include_str!("../../../configs/faces32.toml"), &[]).unwrap();
        let network = Network::new(&config, 1).unwrap();
        for servers in [1, 2, 3, 7, 100] {
            let shares = Shares::new(&network, servers);
            assert_eq!(shares.servers(), servers);
            for (number, stage) in network.stages.iter().enumerate() {
                let blocks = stage.blocks.all().len();
                let mut next = 0;
                for server in 0..servers {
                    let share = shares.of(number, server);
                    assert_eq!(share.start, next, "of {servers} servers, {server}");
                    next = share.end;
                    assert!(share.clone().all(|block| shares.server(number, block) == server));
                    let fair = blocks as f64 / servers as f64;
                    assert!((share.len() as f64 - fair).abs() <= 1.5, "{} blocks of {fair}", share.len());
                }
                assert_eq!(next, blocks);
            }
        }
    }
}
