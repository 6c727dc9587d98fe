//! How much memory this process may use: the cgroup's limit (v2 and v1) or what the machine has left.
use std::fs;
use std::path::Path;

/// An amount of memory and where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// For messages.
    pub source: &'static str,
}

/// The least of the cgroup's limits and the machine's available memory. `None` where neither can be read.
pub fn system_limit() -> Option<MemoryLimit> {
    limit_under(Path::new("/"))
}

fn limit_under(root: &Path) -> Option<MemoryLimit> {
    let cgroup = cgroup_limit(root).map(|bytes| MemoryLimit {
        bytes,
        source: "cgroup limit",
    });
    let machine = available(root).map(|bytes| MemoryLimit {
        bytes,
        source: "available memory",
    });
    cgroup.into_iter().chain(machine).min_by_key(|limit| limit.bytes)
}

/// The smallest limit on the way from the process's cgroup to the root: each of them binds.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next().unwrap_or(""), fields.next().unwrap_or("/"));
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let group = Path::new(group.trim_start_matches('/'));
        // In a container the path may be the host's, of which only the root is visible: then it alone is read.
        let read = |group: &Path| {
            fs::read_to_string(root.join(mount).join(group).join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        group.ancestors().filter_map(read).collect()
    });
    limits.min()
}

/// MemAvailable: what can be had without swapping, page cache included.
fn available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(files: &[(&str, &str)]) -> Option<MemoryLimit> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_under(root.path())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");

    #[test]
    fn version_2_takes_the_tightest_ancestor() {
        let found = limit(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/engine\n"),
            ("sys/fs/cgroup/pod/engine/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "1000000\n"),
        ]);
        assert_eq!(
            found,
            Some(MemoryLimit {
                bytes: 1_000_000,
                source: "cgroup limit"
            })
        );
    }

    #[test]
    fn version_1_in_a_container_is_read_at_the_root() {
        let found = limit(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/host/path\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n"),
        ]);
        assert_eq!(
            found,
            Some(MemoryLimit {
                bytes: 2_000_000,
                source: "cgroup limit"
            })
        );
    }

    #[test]
    fn without_a_limit_available_memory_counts() {
        let unlimited = (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        let found = limit(&[MEMINFO, ("proc/self/cgroup", "4:memory:/\n"), unlimited]);
        assert_eq!(
            found,
            Some(MemoryLimit {
                bytes: 4_096_000,
                source: "available memory"
            })
        );
        assert_eq!(limit(&[]), None);
    }
}
