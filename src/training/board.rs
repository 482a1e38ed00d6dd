//! A run as TensorBoard shows it: what the log and the validations say, and the filters now and then.

use std::path::Path;

use super::events::Events;
use super::monitor::LogLine;
use super::validate::Validation;
use crate::config::RunConfig;
use crate::error::Result;
use crate::network::{Network, Weights};
use crate::picture::{filters, png};

/// Folder of the event files in a run's.
pub const EVENTS: &str = "events";

/// Writes the event files of a run.
pub struct Board {
    events: Events,
}

impl Board {
    /// Begins an event file of the run in the folder `run`, which goes on at `step`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(run: &Path, config: &RunConfig, step: u64) -> Result<Board> {
        let mut events = Events::create(&run.join(EVENTS), step)?;
        events.text(step, "config", &format!("```toml\n{}```\n", config.to_toml()))?;
        events.flush()?;
        Ok(Board { events })
    }

    /// Writes a line of the log.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn log(&mut self, line: &LogLine) -> Result<()> {
        let mut values = vec![
            ("speed/images per second".to_owned(), line.images_per_second),
            ("speed/share of peak".to_owned(), line.peak_share),
            ("speed/stall seconds".to_owned(), line.stall_seconds),
            ("rate".to_owned(), line.rate),
            ("skipped".to_owned(), line.skipped as f64),
        ];
        for stage in &line.stages {
            let of_stage = [
                ("loss", stage.loss),
                ("reconstruction", stage.reconstruction),
                ("sparsity", stage.sparsity),
                ("unexplained", stage.unexplained),
                ("balance", stage.balance),
            ];
            let norms = [
                ("gradient", stage.gradient_norm),
                ("encoder", stage.encoder_norm),
                ("decoder", stage.decoder_norm),
            ];
            values.extend(of_stage.map(|(name, value)| (format!("{name}/stage {}", stage.stage), value)));
            // A line of few steps may have none.
            let seen = norms.into_iter().filter(|(_, norm)| *norm > 0.0);
            values.extend(seen.map(|(name, norm)| (format!("norm/{name} stage {}", stage.stage), norm)));
        }
        self.events.scalars(line.step, &values)?;
        if !line.staleness.is_empty() {
            let edges: Vec<f64> = (0..=line.staleness.len()).map(|age| age as f64 - 0.5).collect();
            self.events.histogram(line.step, "staleness", &edges, &line.staleness)?;
        }
        self.events.flush()
    }

    /// Writes a validation, and the filters of the first stage if `pictures`, where they are all here.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn validation(&mut self, validation: &Validation, network: &Network, pictures: bool) -> Result<()> {
        let mut values = Vec::new();
        for stage in &validation.stages {
            let share = |count: usize| count as f64 / stage.units.max(1) as f64;
            let of_stage = [
                ("validation loss", stage.loss),
                ("validation unexplained", stage.unexplained),
                ("dead units", share(stage.dead)),
                ("saturated units", share(stage.saturated)),
                ("dead filters", stage.dead_filters as f64),
            ];
            values.extend(of_stage.map(|(name, value)| (format!("{name}/stage {}", stage.stage), value)));
        }
        self.events.scalars(validation.step, &values)?;
        if pictures && network.is_whole() {
            for (name, which) in [("encoder", Weights::Encoder), ("decoder", Weights::Decoder)] {
                let tag = format!("filters/{name} 1");
                self.events.image(validation.step, &tag, &png(&filters(network, which)))?;
            }
        }
        self.events.flush()
    }
}
