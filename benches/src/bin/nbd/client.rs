//! fio with its nbd engine, and what a run of it says.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cells::Cell;
use crate::pki::Pki;
use crate::rivals::{SIZE_BYTES, Server};

/// One run of one cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Requests a second, flushes not counted.
    pub(crate) rate: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Processor time of the server for each request.
    pub(crate) cpu_us: f64,
}

/// Writes every byte once, so that no server answers from a hole.
pub(crate) fn fill(server: &Server, pki: &Pki) -> Result<()> {
    fio(server, pki, &["--rw=write", "--bs=1M", "--iodepth=8"]).map(|_| ())
}

/// Reads every byte once.
pub(crate) fn read_all(server: &Server, pki: &Pki) -> Result<()> {
    fio(server, pki, &["--rw=read", "--bs=4096", "--iodepth=32"]).map(|_| ())
}

pub(crate) fn run(server: &Server, cell: &Cell, pki: &Pki, seconds: f64) -> Result<Run> {
    let before = server.cpu_seconds()?;
    let report = fio(
        server,
        pki,
        &[
            &format!("--rw={}", cell.pattern),
            &format!("--bs={}", cell.block_bytes),
            &format!("--iodepth={}", cell.depth),
            &format!("--fsync={}", cell.flush_every),
            &format!("--runtime={}ms", seconds * 1000.0),
            "--time_based",
            "--rwmixread=70",
            "--randrepeat=0",
            "--norandommap",
        ],
    )?;
    let cpu_seconds = server.cpu_seconds()? - before;
    let job = &report["jobs"][0];
    let (mut requests, mut rate, mut p99_us, mut p999_us) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    for side in ["read", "write"] {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        requests += number(&job[side]["total_ios"]);
        rate += number(&job[side]["iops"]);
        let percentile = |share: &str| number(&job[side]["clat_ns"]["percentile"][share]) / 1000.0;
        p99_us = p99_us.max(percentile("99.000000"));
        p999_us = p999_us.max(percentile("99.900000"));
    }
    ensure!(requests > 0.0, "no request was served");
    Ok(Run { rate, p99_us, p999_us, cpu_us: 1e6 * cpu_seconds / requests })
}

/// Runs fio as a user without rights, whose certificates libnbd then looks for in that user's home.
fn fio(server: &Server, pki: &Pki, options: &[&str]) -> Result<Value> {
    const NOBODY: u32 = 65534;
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--group_reporting"])
        .arg(format!("--uri={}", server.uri))
        .arg(format!("--size={SIZE_BYTES}"))
        .args(options)
        .current_dir(pki.home())
        .env("HOME", pki.home());
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().context("fio could not be started: run tests/clients.sh bench")?;
    if !output.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    // The engine may speak before the report.
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.find('{').map_or("", |at| &text[at..]))?;
    ensure!(report["jobs"][0]["error"] == 0, "a request failed: {}", report["jobs"][0]["error"]);
    Ok(report)
}
