//! Training on several ranks, started by mpirun over TCP on this machine: workers and servers in processes of their own.
#![cfg(feature = "mpi")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{done, json, snapshot, text};
use rand::Rng;
use striate::network::checkpoint;
use striate::rng;

/// Two workers and two servers.
const RANKS: usize = 4;

/// After so long a job that lost a rank has ended.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// A folder with frames in `f` and a config.
fn frames() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), "synth --out v --videos 12 --seconds 2 --size 64x48 --fps 12");
    done(folder.path(), "sample v --out f --size 24 --per-video 24 --grey");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml"), folder.path().join("tiny.toml"))
        .unwrap();
    folder
}

/// `mpirun`, of so many ranks that share few cores.
fn start(folder: &Path, ranks: usize, line: &str) -> Child {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]);
    command.args(["--mca", "btl", "self,tcp", "-n", &ranks.to_string()]);
    command.arg(assert_cmd::cargo::cargo_bin!("striate")).args(line.split_whitespace()).current_dir(folder);
    // Each in a group of its own, so that a signal to one test's ranks reaches no other's.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("mpirun: scripts/setup mpi installs it")
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

/// The process of each rank of a job, in order.
fn ranks_of(mpirun: &Child) -> Vec<u32> {
    let children = format!("/proc/{0}/task/{0}/children", mpirun.id());
    let ranks = fs::read_to_string(children).unwrap_or_default();
    ranks.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn held_out(summary: &serde_json::Value) -> Vec<f64> {
    let stages = summary["stages"].as_array().unwrap();
    stages.iter().map(|stage| stage["validation_loss"].as_f64().unwrap()).collect()
}

const LINE: &str = "train tiny.toml --frames f --quiet --set training.steps=[1000,1000] \
    --set training.checkpoint_steps=100";

#[test]
fn two_servers_and_two_workers_come_to_the_loss_of_threads() {
    let folder = frames();
    let threads = held_out(&json(folder.path(), &format!("{LINE} --threads 2 --out threads")));
    for (name, settings, replicas) in
        [("whole", "", 2), ("halves", " --set training.push_as=bf16", 2), ("split", " --split 2", 1)]
    {
        let job = start(folder.path(), RANKS, &format!("{LINE} --out {name} --servers 2 --json{settings}"));
        let output = finish(job);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((summary["steps"].as_u64(), summary["replicas"].as_u64()), (Some(2000), Some(replicas)));
        assert_close(name, &summary, &threads);
    }
}

/// The losses of a run on ranks are within 3 % of those of one on threads.
fn assert_close(name: &str, summary: &serde_json::Value, threads: &[f64]) {
    for (ranks, threads) in held_out(summary).into_iter().zip(threads) {
        assert!((ranks / threads - 1.0).abs() < 0.03, "{name}: {ranks} on ranks, {threads} on threads");
    }
}

/// Two hosts: network namespaces, each with an address of its own, joined by a cable.
struct Hosts {
    /// Before the address in a namespace's name.
    prefix: String,
}

impl Hosts {
    const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

    /// None where this user or machine cannot have them.
    fn new() -> Option<Hosts> {
        let hosts = Hosts { prefix: format!("striate-{}-", std::process::id()) };
        let [one, two] = Self::ADDRESSES.map(|address| hosts.name(address));
        let ip = |line: String| {
            let output = Command::new("ip").args(line.split_whitespace()).output();
            output.is_ok_and(|output| output.status.success())
        };
        let made = ip(format!("netns add {one}"))
            && ip(format!("netns add {two}"))
            && ip(format!("link add cable netns {one} type veth peer name cable netns {two}"))
            && Self::ADDRESSES.iter().zip([one, two]).all(|(address, name)| {
                ip(format!("-n {name} addr add {address}/24 dev cable"))
                    && ip(format!("-n {name} link set cable up"))
                    && ip(format!("-n {name} link set lo up"))
            });
        made.then_some(hosts)
    }

    fn name(&self, address: &str) -> String {
        format!("{}{address}", self.prefix)
    }

    /// Bytes that the first host received over the cable.
    fn received(&self) -> u64 {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(Self::ADDRESSES[0]), "cat", "/proc/net/dev"]);
        let counts = text(&command.output().unwrap().stdout);
        let cable = counts.lines().find_map(|line| line.trim().strip_prefix("cable:")).unwrap();
        cable.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for address in Self::ADDRESSES {
            // Where they were not made there is nothing to remove.
            let _ = Command::new("ip").args(["netns", "del", &self.name(address)]).output();
        }
    }
}

#[test]
fn two_hosts_with_addresses_of_their_own_come_to_the_loss_of_threads() {
    let Some(hosts) = Hosts::new() else {
        println!("skipped: no network namespaces here (ip netns, as root)");
        return;
    };
    let folder = frames();
    let threads = held_out(&json(folder.path(), &format!("{LINE} --threads 2 --out threads")));
    // What mpirun calls in place of ssh: HOST COMMAND...
    let agent = folder.path().join("agent");
    let on_host = |host: &str, command: &str| {
        format!("ip netns exec {}{host} unshare --uts sh -c \"hostname {host}; {command}\"", hosts.prefix)
    };
    fs::write(&agent, format!("#!/bin/sh\nhost=$1\nshift\nexec {}\n", on_host("$host", "$*"))).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let [one, two] = Hosts::ADDRESSES;
    let program = assert_cmd::cargo::cargo_bin!("striate");
    let line = format!(
        "exec mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 --mca btl self,tcp --mca plm_rsh_agent {} \
         --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 -H {one}:2,{two}:2 -n {RANKS} {} {LINE} \
         --out hosts --servers 2 --json",
        agent.display(),
        program.display(),
    );
    let mut command = Command::new("sh");
    command.args(["-c", &on_host(one, &line)]).current_dir(folder.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary = serde_json::from_slice(&output.stdout).unwrap();
    assert_close("two hosts", &summary, &threads);
    // The second host has the servers: weights come from there in each of 2,000 steps.
    assert!(hosts.received() > 10_000_000, "{} bytes", hosts.received());
}

#[test]
fn a_rank_that_is_killed_is_named_and_the_run_goes_on_from_its_checkpoint() {
    let folder = frames();
    let whole = held_out(&json(folder.path(), &format!("{LINE} --threads 2 --out threads")));
    let moments = if std::env::var_os("STRIATE_SOAK").is_some() { 20 } else { 4 };
    let (mut rng, mut kills, mut rounds) = (rng::stream(1, "moments", 0), 0, 0);
    while kills < moments {
        let out = folder.path().join(format!("killed{rounds}"));
        // Two replicas, or one that is split.
        let split = 1 + rounds % 2;
        let line = format!("{LINE} --out killed{rounds} --servers 2 --split {split} --resume --json");
        let summary = loop {
            let job = start(folder.path(), RANKS, &line);
            std::thread::sleep(Duration::from_millis(rng.random_range(500..4000)));
            let ranks = ranks_of(&job);
            // Workers and servers in turn.
            let victim = kills % RANKS;
            let killed = ranks.get(victim).is_some_and(|pid| {
                Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success()
            });
            let since = Instant::now();
            let output = finish(job);
            for found in checkpoint::all(&out) {
                let checks = checkpoint::check(&found).unwrap();
                assert!(checks.iter().all(|check| check.problem.is_none()), "{checks:?}");
            }
            if output.status.success() {
                break serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
            }
            let said = text(&output.stderr) + &text(&output.stdout);
            assert!(killed && said.contains(&format!("rank {victim} ")), "rank {victim} was killed: {said}");
            assert!(since.elapsed() < ENDS_WITHIN, "ended {:?} after rank {victim}", since.elapsed());
            kills += 1;
        };
        assert_close("after kills", &summary, &whole);
        assert!(!snapshot(&out).keys().any(|path| path.to_string_lossy().contains("partial")));
        rounds += 1;
    }
    println!("killed a rank at {kills} moments in {rounds} runs; all came to the loss of threads");
}

#[test]
fn what_ranks_cannot_do_is_said_once() {
    let folder = frames();
    for (ranks, line, code, wanted) in [
        (2, "--servers 2", 1, "2 servers among 2 ranks"),
        (4, "--servers 1 --split 2", 1, "3 workers (4 ranks, 1 servers) cannot be replicas of 2"),
        (3, "--servers 1 --split 2 --set training.global_clip=1", 2, "training.global_clip"),
        (2, "--set training.mode=sync", 2, "training.mode"),
    ] {
        let output = finish(start(folder.path(), ranks, &format!("{LINE} --out refused {line}")));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(wanted), "{line}: {said}");
    }
    // Alone, and without mpirun, it is a run on threads.
    let alone = finish(start(folder.path(), 1, &format!("{LINE} --out alone --json")));
    assert!(alone.status.success(), "{}", text(&alone.stderr));
    let output = common::run(folder.path(), &format!("{LINE} --out alone2 --servers 1"));
    assert!(text(&output.stderr).contains("mpirun -n N"), "{}", text(&output.stderr));
}
