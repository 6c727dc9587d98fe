//! Images of operator and engine: FROM scratch, a root prepared here, no docker engine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::{self, pod_images};
use crate::image::{self, Entry, Image};
use crate::paths::Paths;
use crate::progress::step;
use crate::{programs, shell};

/// Version of everything in this workspace, and so the tag of the images.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The engine's image is pulled onto every new GPU node: it has to stay small.
const MAX_ENGINE_BYTES: u64 = 60_000_000;

/// Places of the CA bundle: Debian and Ubuntu, Fedora.
const CA_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// What to do with the images once they are built.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// Push them to this registry and path, e.g. registry.example/team; credentials as docker keeps them.
    #[arg(long, value_name = "REGISTRY/PATH")]
    pub push: Option<String>,
    /// The registry speaks plain HTTP.
    #[arg(long, requires = "push")]
    pub insecure: bool,
    /// Load them into the local cluster.
    #[arg(long)]
    pub load: bool,
    /// Build the engine for NVIDIA GPUs too, as qwen-engine-cuda; needs CUDA's toolkit (nvcc).
    #[arg(long)]
    pub cuda: bool,
}

/// A program and the image that it becomes.
#[derive(Debug)]
struct Program {
    image: &'static str,
    binary: &'static str,
    /// Cargo's target folder, below that of the workspace.
    target: &'static str,
}

const PROGRAMS: [Program; 2] = [
    Program {
        image: "qwen-operator",
        binary: "qwen-operator",
        target: "",
    },
    Program {
        image: "qwen-engine",
        binary: "qwen-engine",
        target: "",
    },
];

const CUDA: Program = Program {
    image: "qwen-engine-cuda",
    binary: "qwen-engine",
    target: "cuda",
};

/// A compute capability that PTX is made for when CUDA_COMPUTE_CAP is not set: GPUs since Ampere run it.
const COMPUTE_CAP: &str = "80";

/// An image that was built.
#[derive(Debug)]
struct Built {
    reference: String,
    identity: String,
    tar: PathBuf,
}

/// Builds both images, then pushes or loads them.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    if options.load {
        cluster::need(paths)?;
    }
    step("build operator and engine", |step| {
        let mut cargo = shell::cargo();
        cargo.current_dir(&paths.root).args([
            "build",
            "--release",
            "--bin=qwen-operator",
            "--bin=qwen-engine",
            "--locked",
            "--color=never",
        ]);
        shell::follow(&mut cargo, |text| step.note(text.trim()))?;
        Ok(String::new())
    })?;
    if options.cuda {
        step(
            "build the engine for GPUs (the first time its kernels take some ten minutes)",
            |step| {
                let mut cargo = shell::cargo();
                cargo
                    .current_dir(&paths.root)
                    .args(["build", "--release", "-p", "qwen-engine"]);
                cargo.args([
                    "--features",
                    "cuda",
                    "--bins",
                    "--locked",
                    "--color=never",
                    "--target-dir",
                ]);
                cargo.arg(paths.cargo_target().join(CUDA.target));
                if std::env::var_os("CUDA_COMPUTE_CAP").is_none() {
                    cargo.env("CUDA_COMPUTE_CAP", COMPUTE_CAP);
                }
                shell::follow(&mut cargo, |text| step.note(text.trim()))?;
                Ok(String::new())
            },
        )?;
    }
    fs::create_dir_all(paths.images())?;
    let mut images = Vec::new();
    for program in PROGRAMS.iter().chain(options.cuda.then_some(&CUDA)) {
        step(&format!("image {}", program.image), |_| {
            let built = build(paths, program)?;
            let bytes = fs::metadata(&built.tar)?.len();
            if program.image == "qwen-engine" && bytes > MAX_ENGINE_BYTES {
                bail!("the engine's image has {bytes} bytes, more than the {MAX_ENGINE_BYTES} allowed")
            }
            let remark = format!("{} MB, {}", (bytes + 500_000) / 1_000_000, built.tar.display());
            images.push(built);
            Ok(remark)
        })?;
    }
    if let Some(prefix) = &options.push {
        programs::install_crane(paths)?;
        for built in &images {
            let target = format!("{}/{}", prefix.trim_end_matches('/'), built.reference);
            step(&format!("push {target}"), |_| {
                push(paths, built, &target, options.insecure)
            })?;
        }
    }
    if options.load {
        for built in &images {
            step(&format!("load {}", built.reference), |_| {
                pod_images::load_tar(paths, &built.reference, &built.identity, &built.tar)?;
                Ok(String::new())
            })?;
        }
    }
    Ok(())
}

fn build(paths: &Paths, program: &Program) -> Result<Built> {
    let target = paths.cargo_target().join(program.target);
    let binary = target.join("release").join(program.binary);
    let reference = format!("{}:{VERSION}", program.image);
    let libraries = libraries(&shell::output(Command::new("ldd").arg(&binary))?)?;
    let folders: BTreeSet<_> = libraries
        .iter()
        .filter_map(|path| Path::new(path).parent()?.to_str())
        .collect();
    let folders: Vec<_> = folders.into_iter().collect();
    let image = Image {
        name: reference.clone(),
        entrypoint: vec![format!("/usr/bin/{}", program.binary)],
        user: "65532:65532".into(),
        env: vec![
            "PATH=/usr/bin".into(),
            "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".into(),
            // CUDA's are in none of the loader's own places.
            format!("LD_LIBRARY_PATH={}", folders.join(":")),
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility".into(),
        ],
        labels: vec![
            ("org.opencontainers.image.title".into(), program.image.into()),
            ("org.opencontainers.image.version".into(), VERSION.into()),
            ("org.opencontainers.image.licenses".into(), "Apache-2.0".into()),
        ],
        files: root(program.binary, &binary, &libraries)?,
    };
    let tar = paths.images().join(format!("{}.tar", program.image));
    let identity = image::write(&image, &tar)?;
    Ok(Built {
        reference,
        identity,
        tar,
    })
}

/// The root file system: program, its libraries, CA bundle, a user, and a place for temporary files.
fn root(program: &str, binary: &Path, libraries: &[String]) -> Result<Vec<Entry>> {
    let bundle = CA_BUNDLES.iter().find(|path| Path::new(path).exists());
    let bundle = bundle.context("this machine has no CA bundle: install the package ca-certificates")?;
    let mut files = vec![
        Entry::Folder("tmp".into(), 0o1777),
        Entry::Text(
            "etc/passwd".into(),
            "root:x:0:0::/:/nologin\nnonroot:x:65532:65532::/tmp:/nologin\n".into(),
        ),
        Entry::Text("etc/group".into(), "root:x:0:\nnonroot:x:65532:\n".into()),
        Entry::Copy("etc/ssl/certs/ca-certificates.crt".into(), bundle.into()),
        Entry::Copy(format!("usr/bin/{program}"), binary.to_owned()),
    ];
    let copy = |path: PathBuf| Entry::Copy(path.display().to_string().trim_start_matches('/').into(), path);
    files.extend(libraries.iter().map(|path| copy(path.into())));
    // The compiler of kernels opens its second half by name.
    for path in libraries.iter().filter(|path| path.contains("libnvrtc.so")) {
        let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.display().to_string().contains("libnvrtc-builtins.so") {
                files.push(copy(path));
            }
        }
    }
    Ok(files)
}

/// Paths of shared libraries and the loader in what ldd prints.
fn libraries(ldd: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for text in ldd.lines() {
        // The driver's library comes from the node.
        if text.contains("libcuda.so") {
            continue;
        }
        if text.contains("not found") {
            bail!("a shared library is missing on this machine: {}", text.trim())
        }
        // `libc.so.6 => /lib/…/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`
        found.extend(
            text.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(str::to_owned),
        );
    }
    Ok(found)
}

fn push(paths: &Paths, built: &Built, target: &str, insecure: bool) -> Result<String> {
    let mut crane = Command::new(paths.program("crane"));
    crane.arg("push").arg(&built.tar).arg(target);
    if insecure {
        crane.arg("--insecure");
    }
    Ok(shell::output(&mut crane)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ff)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x0)\n\t/lib64/ld-linux-x86-64.so.2 (0x0)\n";
        assert_eq!(
            libraries(text).unwrap(),
            ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(libraries("\tstatically linked\n").unwrap(), [] as [&str; 0]);
        assert!(libraries("\tlibx.so => not found\n").is_err());
        let driver = "\tlibcuda.so.1 => not found\n";
        assert_eq!(libraries(driver).unwrap(), [] as [&str; 0], "comes from the node");
    }

    #[test]
    fn the_root_has_the_program_and_no_more_than_it_needs() {
        let files = root("sample", Path::new("/bin/sh"), &["/lib/libx.so".into()]).unwrap();
        let names: Vec<&str> = files
            .iter()
            .map(|entry| match entry {
                Entry::Folder(name, _) | Entry::Text(name, _) | Entry::Copy(name, _) => name.as_str(),
            })
            .collect();
        assert!(
            names.contains(&"usr/bin/sample") && names.contains(&"etc/ssl/certs/ca-certificates.crt"),
            "{names:?}"
        );
        assert!(names.iter().all(|name| !name.starts_with('/')), "{names:?}");
    }
}
