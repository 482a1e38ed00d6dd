//! Whether every value of a config is valid, and fits the others.

use super::{Mode, Objective, Preprocess, RunConfig, Schedule};
use crate::error::{Error, Result};

impl RunConfig {
    /// Refuses the first value that is not valid.
    pub(super) fn check(&self) -> Result<()> {
        fn ensure(ok: bool, key: &str, got: impl ToString, want: impl ToString) -> Result<()> {
            match ok {
                true => Ok(()),
                false => {
                    Err(Error::Setting { key: key.into(), got: got.to_string(), want: want.to_string() })
                }
            }
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let at_least_0 = |x: f64| x.is_finite() && x >= 0.0;
        let side = 1..=16_384;

        let i = &self.input;
        ensure(matches!(i.channels, 1 | 3), "input.channels", i.channels, "1 (grey) or 3 (RGB)")?;
        ensure(side.contains(&i.height), "input.height", i.height, "1 to 16384 pixels")?;
        ensure(side.contains(&i.width), "input.width", i.width, "1 to 16384 pixels")?;
        let most = 16_384 - i.height.max(i.width);
        ensure(
            i.margin <= most,
            "input.margin",
            i.margin,
            format!("at most {most} pixels beside {}x{}", i.width, i.height),
        )?;
        ensure(positive(i.floor), "input.floor", i.floor, "a number above 0")?;
        ensure(
            i.conv_size % 2 == 1 && i.conv_size <= 31,
            "input.conv_size",
            i.conv_size,
            "an odd number up to 31",
        )?;
        ensure(
            i.lcn_size % 2 == 1 && (3..=31).contains(&i.lcn_size),
            "input.lcn_size",
            i.lcn_size,
            "an odd number from 3 to 31",
        )?;
        ensure(
            i.preprocess != Preprocess::Lcn || i.height.min(i.width) >= 3,
            "input.preprocess",
            format!("\"lcn\" for pictures of {}x{}", i.width, i.height),
            "another one for pictures of fewer than 3 pixels a side",
        )?;
        if i.preprocess == Preprocess::Zca {
            let pixels = i.channels * i.height * i.width;
            ensure(
                pixels <= 12_288,
                "input.preprocess",
                format!("\"zca\" for {pixels} values a picture"),
                "\"conv\" above 12288 values (zca needs their covariance)",
            )?;
        }

        ensure(!self.stages.is_empty(), "stages", "empty", "at least one [[stages]] entry")?;
        for (number, s) in self.stages.iter().enumerate().map(|(n, s)| (n + 1, s)) {
            let key = |name| format!("stages.{number}.{name}");
            let count = |name, value: usize| {
                ensure((1..=65_536).contains(&value), &key(name), value, "a whole number from 1 to 65536")
            };
            count("maps", s.maps)?;
            count("field", s.field)?;
            count("stride", s.stride)?;
            count("pool", s.pool)?;
            count("pool_stride", s.pool_stride)?;
            ensure(s.lcn % 2 == 1 || s.lcn == 0, &key("lcn"), s.lcn, "an odd side, or 0 for none")?;
            ensure(s.lcn <= 99, &key("lcn"), s.lcn, "at most 99")?;
            ensure(at_least_0(s.sparsity_weight), &key("sparsity_weight"), s.sparsity_weight, "0 or more")?;
            ensure(positive(s.epsilon), &key("epsilon"), s.epsilon, "a number above 0")?;
            ensure(positive(s.lcn_floor), &key("lcn_floor"), s.lcn_floor, "a number above 0")?;
        }

        let t = &self.training;
        let want = match t.schedule {
            Schedule::Greedy => self.stages.len(),
            Schedule::Together => 1,
        };
        ensure(
            t.steps.len() == want,
            "training.steps",
            format!("a list of {}", t.steps.len()),
            format!("{want} numbers (greedy: one for each stage; together: one)"),
        )?;
        ensure(
            t.steps.iter().all(|&steps| steps > 0),
            "training.steps",
            "0 for a stage",
            "1 or more steps each",
        )?;
        ensure(
            t.schedule == Schedule::Together || t.objective == Objective::Local,
            "training.objective",
            format!("\"{}\" with schedule \"greedy\"", t.objective.name()),
            "\"local\" (a joint objective needs schedule = \"together\")",
        )?;
        ensure((1..=65_536).contains(&t.batch), "training.batch", t.batch, "1 to 65536 frames")?;
        ensure(t.replicas <= 1024, "training.replicas", t.replicas, "at most 1024, or 0 for one per core")?;
        ensure(
            t.mode == Mode::Async || t.replicas > 0,
            "training.replicas",
            "0 with mode \"sync\"",
            "1 or more: the result depends on it",
        )?;
        ensure(positive(t.rate), "training.rate", t.rate, "a number above 0")?;
        ensure(
            (0.0..=1.0).contains(&t.rate_hold),
            "training.rate_hold",
            t.rate_hold,
            "a fraction from 0 to 1",
        )?;
        ensure((0.0..=1.0).contains(&t.rate_end), "training.rate_end", t.rate_end, "a fraction from 0 to 1")?;
        ensure(
            at_least_0(t.decoder_norm_bound),
            "training.decoder_norm_bound",
            t.decoder_norm_bound,
            "0 or more",
        )?;
        ensure(
            (0.0..1.0).contains(&t.encoder_decay),
            "training.encoder_decay",
            t.encoder_decay,
            "0 to below 1",
        )?;
        ensure(at_least_0(t.max_step), "training.max_step", t.max_step, "0 or more")?;
        ensure((0.0..1.0).contains(&t.momentum), "training.momentum", t.momentum, "0 to below 1")?;
        ensure(at_least_0(t.gradient_clip), "training.gradient_clip", t.gradient_clip, "0 or more")?;
        ensure(at_least_0(t.global_clip), "training.global_clip", t.global_clip, "0 or more")?;
        for (key, steps) in [("fetch_every", t.fetch_every), ("push_every", t.push_every)] {
            let key = format!("training.{key}");
            ensure((1..=1_000_000).contains(&steps), &key, steps, "1 to 1000000 steps")?;
            let sync = || format!("{steps} with mode \"sync\"");
            ensure(
                t.mode == Mode::Async || steps == 1,
                &key,
                sync(),
                "1 (replicas change the weights together)",
            )?;
        }
        ensure(
            t.global_clip == 0.0 || t.fetch_every == 1,
            "training.global_clip",
            format!("{} with fetch_every {}", t.global_clip, t.fetch_every),
            "0, or fetch_every = 1 (a replica's own weights change before the norm of all gradients is known)",
        )?;
        ensure((0.0..=0.5).contains(&t.held_out), "training.held_out", t.held_out, "a share from 0 to 0.5")?;
        ensure(
            t.loss_jump == 0.0 || (t.loss_jump.is_finite() && t.loss_jump > 1.0),
            "training.loss_jump",
            t.loss_jump,
            "a factor above 1, or 0 for never",
        )?;
        ensure(
            (1..=1000).contains(&t.keep_last),
            "training.keep_last",
            t.keep_last,
            "1 to 1000 checkpoints",
        )?;
        ensure(t.log_every >= 1, "training.log_every", t.log_every, "1 or more steps")?;
        ensure(
            t.checkpoint_minutes.is_finite() && t.checkpoint_minutes > 0.0,
            "training.checkpoint_minutes",
            t.checkpoint_minutes,
            "a number above 0",
        )?;
        self.try_shapes().map(|_| ())
    }
}
