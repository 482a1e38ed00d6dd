//! `striate worker`: not for users; samples one file after the other for `striate sample`.

use std::process::ExitCode;

use clap::Args;

/// Samples files for `striate sample`, in a process of its own.
#[derive(Args)]
pub struct WorkerArgs {
    /// Most memory, in bytes.
    memory_bytes: u64,
    /// Process that it works for.
    parent: i32,
}

pub fn run(args: WorkerArgs) -> anyhow::Result<ExitCode> {
    striate::sampling::serve(args.memory_bytes, args.parent)?;
    Ok(ExitCode::SUCCESS)
}
