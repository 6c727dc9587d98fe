//! The cluster's programs: built from pinned Go modules into a cache, linked into target/cluster/bin.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::paths::{self, Paths};
use crate::progress::{self, Step};
use crate::shell;

/// Version that the Kubernetes programs report; the one in tests/cluster/modules/kubernetes/go.mod.
const KUBERNETES_LDFLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";

/// Programs of one Go module under tests/cluster/modules.
#[derive(Debug)]
pub struct Family {
    /// Folder of the module.
    pub name: &'static str,
    /// Go packages with a main function; the last part of a path names the program.
    packages: &'static [&'static str],
    /// Where the program's package does not tell its name: (built as, wanted as).
    renamed: &'static [(&'static str, &'static str)],
    tags: &'static str,
    ldflags: &'static str,
    /// Folders of a module's source that the cluster needs as well: (module, folder).
    assets: &'static [(&'static str, &'static str)],
}

const CRANE: &str = "crane";
/// Pretends to be nodes and pods by the thousand.
pub const KWOK: &str = "kwok";
/// OpenTelemetry's collector, which takes spans and writes them to a file.
pub const COLLECTOR: &str = "collector";
/// Families that a plain cluster does without.
const EXTRA: [&str; 3] = [CRANE, KWOK, COLLECTOR];

const PLAIN: Family = Family {
    name: "",
    packages: &[],
    renamed: &[],
    tags: "",
    ldflags: "-s -w",
    assets: &[],
};

/// Everything the cluster runs or offers, in the order it is built.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "kubernetes",
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubectl",
            "k8s.io/kubernetes/cmd/kubelet",
        ],
        ldflags: KUBERNETES_LDFLAGS,
        ..PLAIN
    },
    Family {
        name: "etcd",
        packages: &["go.etcd.io/etcd/server/v3"],
        renamed: &[("server", "etcd")],
        ..PLAIN
    },
    Family {
        name: "containerd",
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        ..PLAIN
    },
    Family {
        name: "local",
        packages: &["cluster/local/pause", "cluster/local/webhook"],
        ..PLAIN
    },
    Family {
        name: "grafana",
        packages: &["cluster/grafana/dashboard-check"],
        ..PLAIN
    },
    Family {
        name: "coredns",
        packages: &["github.com/coredns/coredns"],
        ..PLAIN
    },
    Family {
        name: "helm",
        packages: &["helm.sh/helm/v4/cmd/helm"],
        ..PLAIN
    },
    Family {
        name: "alertmanager",
        packages: &[
            "github.com/prometheus/alertmanager/cmd/alertmanager",
            "github.com/prometheus/alertmanager/cmd/amtool",
        ],
        ..PLAIN
    },
    Family {
        name: "prometheus-operator",
        packages: &[
            "github.com/prometheus-operator/prometheus-operator/cmd/operator",
            "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
        ],
        renamed: &[("operator", "prometheus-operator")],
        assets: &[
            (
                "github.com/prometheus-operator/prometheus-operator",
                "example/prometheus-operator-crd",
            ),
            (
                "github.com/prometheus-operator/prometheus-operator",
                "example/rbac/prometheus-operator",
            ),
        ],
        ..PLAIN
    },
    Family {
        name: "prometheus",
        packages: &[
            "github.com/prometheus/prometheus/cmd/prometheus",
            "github.com/prometheus/prometheus/cmd/promtool",
        ],
        // Every other service discovery doubles the build and is not used here.
        tags: "remove_all_sd,enable_kubernetes_sd",
        ..PLAIN
    },
    Family {
        name: "node-exporter",
        packages: &["github.com/prometheus/node_exporter"],
        renamed: &[("node_exporter", "node-exporter")],
        ..PLAIN
    },
    Family {
        name: CRANE,
        packages: &["github.com/google/go-containerregistry/cmd/crane"],
        ..PLAIN
    },
    Family {
        name: KWOK,
        packages: &["sigs.k8s.io/kwok/cmd/kwok"],
        assets: &[
            ("sigs.k8s.io/kwok", "kustomize/stage/node/fast"),
            ("sigs.k8s.io/kwok", "kustomize/stage/node/heartbeat-with-lease"),
            ("sigs.k8s.io/kwok", "kustomize/stage/pod/fast"),
        ],
        ..PLAIN
    },
    Family {
        name: COLLECTOR,
        packages: &["cluster/collector/otelcol"],
        ..PLAIN
    },
];

impl Family {
    fn module(&self, paths: &Paths) -> PathBuf {
        paths.cluster_sources().join("modules").join(self.name)
    }

    /// Names the build by everything that goes into it.
    fn key(&self, module: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        for file in sources(module)? {
            let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            feed(
                &mut hash,
                file.strip_prefix(module)
                    .unwrap_or(&file)
                    .as_os_str()
                    .as_encoded_bytes(),
            );
            feed(&mut hash, &content);
        }
        for text in [
            self.packages.join(" ").as_str(),
            self.tags,
            self.ldflags,
            std::env::consts::ARCH,
        ] {
            feed(&mut hash, text);
        }
        for pair in self.renamed.iter().chain(self.assets) {
            feed(&mut hash, pair.0);
            feed(&mut hash, pair.1);
        }
        Ok(hex(&hash.finalize())[..12].to_owned())
    }

    /// The finished build's folder in the cache; builds it when it is not there.
    fn ensure(&self, paths: &Paths) -> Result<PathBuf> {
        let module = self.module(paths);
        let folder = paths::cache()?.join(format!("{}-{}", self.name, self.key(&module)?));
        if !folder.exists() {
            let label = format!("build {}", self.name);
            progress::step(&label, |step| self.build(&module, &folder, step))?;
        }
        Ok(folder)
    }

    /// Builds aside and renames at the end: a folder in the cache is always whole.
    fn build(&self, module: &Path, folder: &Path, step: &mut Step) -> Result<String> {
        let aside = folder.with_extension(format!("tmp{}", std::process::id()));
        let bin = aside.join("bin");
        fs::create_dir_all(&bin)?;
        let mut packages = 0;
        let mut go = Command::new("go");
        go.current_dir(module)
            .env("CGO_ENABLED", "0")
            .args(["build", "-v", "-trimpath", "-buildvcs=false"]);
        go.args(["-tags", self.tags, "-ldflags", self.ldflags, "-o"])
            .arg(format!("{}/", bin.display()));
        shell::follow(go.args(self.packages), |text| {
            packages += usize::from(!text.starts_with("go: "));
            step.note(&format!("{packages} packages, {text}"));
        })
        .context("Go could not build it (Go 1.26.6 or newer is needed, and its module proxy)")?;
        for (built, wanted) in self.renamed {
            fs::rename(bin.join(built), bin.join(wanted))
                .with_context(|| format!("go build made no {built}"))?;
        }
        for (name, asset) in self.assets {
            let dir = shell::output(
                Command::new("go")
                    .current_dir(module)
                    .args(["list", "-m", "-f", "{{.Dir}}", name]),
            )?;
            copy_folder(&Path::new(dir.trim()).join(asset), &aside.join(asset))?;
        }
        fs::rename(&aside, folder)?;
        Ok(format!("{packages} packages compiled"))
    }
}

/// Builds what is missing of everything the cluster needs and links it into target/cluster/bin.
pub fn install(paths: &Paths) -> Result<()> {
    FAMILIES
        .iter()
        .filter(|family| !EXTRA.contains(&family.name))
        .try_for_each(|family| link(paths, family))
}

/// Builds crane, which only pushing images needs, and links it too.
pub fn install_crane(paths: &Paths) -> Result<()> {
    install_extra(paths, CRANE)
}

/// Builds a family that a plain cluster does without, and links it too.
pub fn install_extra(paths: &Paths, name: &str) -> Result<()> {
    FAMILIES
        .iter()
        .filter(|family| family.name == name)
        .try_for_each(|family| link(paths, family))
}

/// Links the programs of one family into target/cluster/bin.
fn link(paths: &Paths, family: &Family) -> Result<()> {
    fs::create_dir_all(paths.bin())?;
    for entry in fs::read_dir(family.ensure(paths)?.join("bin"))? {
        let program = entry?.path();
        let link = paths.bin().join(program.file_name().unwrap_or_default());
        if fs::read_link(&link).ok().as_ref() != Some(&program) {
            let _absent = fs::remove_file(&link);
            symlink(&program, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(())
}

/// A folder of source files that came with a family's build.
pub fn asset(paths: &Paths, family: &str, folder: &str) -> Result<PathBuf> {
    let family = FAMILIES
        .iter()
        .find(|f| f.name == family)
        .with_context(|| format!("no program family {family}"))?;
    Ok(family.ensure(paths)?.join(folder))
}

/// Every file of a module, in order.
fn sources(module: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(module).with_context(|| format!("cannot read {}", module.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?)
        } else {
            files.push(path)
        }
    }
    files.sort();
    Ok(files)
}

/// Copies the files of a folder, not its folders.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            continue;
        }
        // Read and written, not copied: the module cache is read-only, and so would the copy be.
        fs::write(to.join(path.file_name().unwrap_or_default()), fs::read(&path)?)?;
    }
    Ok(())
}

/// Length first, so that no two lists of texts feed the same bytes.
fn feed(hash: &mut Sha256, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(family: &Family, files: &[(&str, &str)]) -> String {
        let module = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(module.path().join(name), text).unwrap();
        }
        family.key(module.path()).unwrap()
    }

    #[test]
    fn the_key_changes_with_files_and_flags_and_with_nothing_else() {
        let files = [("go.mod", "module a"), ("go.sum", "b")];
        let first = key_of(&PLAIN, &files);
        assert_eq!(first, key_of(&PLAIN, &files));
        assert_eq!(first.len(), 12);
        assert_ne!(first, key_of(&PLAIN, &[("go.mod", "module "), ("go.sum", "ab")]));
        assert_ne!(first, key_of(&Family { tags: "x", ..PLAIN }, &files));
        assert_ne!(first, key_of(&Family { ldflags: "", ..PLAIN }, &files));
    }

    #[test]
    fn every_family_is_pinned_by_a_committed_module() {
        let paths = Paths::find().unwrap();
        for family in FAMILIES {
            let text = fs::read_to_string(family.module(&paths).join("go.mod")).unwrap();
            for package in family
                .packages
                .iter()
                .filter(|package| !package.starts_with("cluster/"))
            {
                assert!(
                    text.contains(package),
                    "{}: {package} is no tool of its go.mod",
                    family.name
                );
            }
        }
    }

    #[test]
    fn hexadecimal_keeps_leading_zeros() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
    }
}
