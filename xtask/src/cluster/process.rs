//! Long-running processes of the cluster: each in its own session, with a pid file, a log, and a place in our cgroup.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cgroup;
use crate::paths::Paths;
use crate::shell;

/// How long a process may take to end after SIGTERM before it is killed. Short: an apiserver would wait for its
/// watches, and nothing of a removed cluster is worth that.
const TERM_LIMIT: Duration = Duration::from_secs(3);

/// A process as a pid file names it: the number alone could be another process by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Name of the pid file.
    pub name: String,
    pid: u32,
    /// Start time in clock ticks since boot.
    started: u64,
}

impl Process {
    /// True while this very process runs.
    pub fn alive(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// The pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

fn pid_folder(cluster: &Path) -> PathBuf {
    cluster.join("pids")
}

/// Starts a program in a session of its own; its output goes to logs/NAME.log.
pub fn start(paths: &Paths, name: &str, args: &[String]) -> Result<()> {
    fs::create_dir_all(pid_folder(&paths.cluster()))?;
    fs::create_dir_all(paths.logs())?;
    let log = File::create(paths.logs().join(format!("{name}.log")))?;
    let program = paths.program(name);
    // containerd finds its shim, and the shim finds runc, on PATH.
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", paths.bin().display());
    let child = Command::new("setsid")
        .arg(&program)
        .args(args)
        .env("PATH", path)
        .current_dir(paths.cluster())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let started = start_time(child.id()).with_context(|| format!("{name} ended at once: see its log"))?;
    fs::write(
        pid_folder(&paths.cluster()).join(name),
        format!("{} {started}\n", child.id()),
    )?;
    // After the pid file: should this fail, the process can still be found and ended.
    cgroup::adopt(child.id())
}

/// Every process with a pid file in that cluster folder, alive or not.
pub fn list(cluster: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(pid_folder(cluster)) else {
        return Vec::new();
    };
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(Process {
            name,
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    };
    let mut all: Vec<Process> = entries.flatten().filter_map(|entry| read(entry.path())).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Fails with the end of the log when the process is gone.
pub fn check(paths: &Paths, name: &str) -> Result<()> {
    if list(&paths.cluster())
        .iter()
        .any(|process| process.name == name && process.alive())
    {
        return Ok(());
    }
    let log = paths.logs().join(format!("{name}.log"));
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    bail!(
        "{name} does not run; the end of {}:\n{}",
        log.display(),
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    )
}

/// Ends processes: SIGTERM, then SIGKILL for those that take too long.
pub fn end(processes: &[Process]) -> Result<()> {
    signal(
        "TERM",
        processes
            .iter()
            .filter(|process| process.alive())
            .map(|process| process.pid),
    )?;
    let begun = Instant::now();
    while processes.iter().any(Process::alive) && begun.elapsed() < TERM_LIMIT {
        sleep(Duration::from_millis(50));
    }
    signal(
        "KILL",
        processes
            .iter()
            .filter(|process| process.alive())
            .map(|process| process.pid),
    )
}

/// Processes of a container, by its id as a pod's status has it (`containerd://…`): an image without a shell has
/// nothing else to send a signal by.
///
/// # Errors
/// When this is no container's id, which could name any process.
pub fn of_container(id: &str) -> Result<Vec<u32>> {
    let id = id.rsplit('/').next().unwrap_or_default();
    if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("{id:?} is no id of a container: is it still being created?");
    }
    let pids = fs::read_dir("/proc")?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inside = |pid: &u32| {
        // One that has ended meanwhile is in none.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        cgroups.is_ok_and(|text| text.contains(id))
    };
    Ok(pids.filter(inside).collect())
}

/// Sends a signal to pids; a process that is gone meanwhile is no error.
pub fn signal(name: &str, pids: impl Iterator<Item = u32>) -> Result<()> {
    for pid in pids {
        shell::output(Command::new("sh").args([
            "-c",
            "kill -$0 $1 2>/dev/null || true",
            name,
            &pid.to_string(),
        ]))?;
    }
    Ok(())
}

/// Start time of a process that runs: field 22 of /proc/PID/stat, counted after the name in parentheses.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // A zombie has ended; it only waits for its parent.
    if state == "Z" {
        None
    } else {
        fields.nth(18)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_not_our_process() {
        let pid = std::process::id();
        let started = start_time(pid).unwrap();
        let ours = Process {
            name: "self".into(),
            pid,
            started,
        };
        assert!(ours.alive());
        assert!(
            !Process {
                started: started + 1,
                ..ours
            }
            .alive()
        );
    }

    #[test]
    fn pid_files_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(pid_folder(folder.path())).unwrap();
        fs::write(pid_folder(folder.path()).join("etcd"), "12 345\n").unwrap();
        fs::write(pid_folder(folder.path()).join("broken"), "x").unwrap();
        assert_eq!(
            list(folder.path()),
            [Process {
                name: "etcd".into(),
                pid: 12,
                started: 345
            }]
        );
    }

    #[test]
    fn what_is_no_id_of_a_container_names_no_process() {
        for id in ["", "containerd://", "/", "containerd://abc"] {
            assert!(of_container(id).is_err(), "{id:?}");
        }
        let unknown = format!("containerd://{}", "0".repeat(64));
        assert!(of_container(&unknown).unwrap().is_empty());
    }

    #[test]
    fn ending_asks_before_it_kills() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process {
            name: "sleep".into(),
            pid: child.id(),
            started: start_time(child.id()).unwrap(),
        };
        end(std::slice::from_ref(&process)).unwrap();
        assert!(!process.alive());
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }
}
