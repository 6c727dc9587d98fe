//! Images of the programs that run as pods: one static program each, loaded into containerd without a registry.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::node;
use crate::image::{self, Entry, Image};
use crate::paths::Paths;
use crate::shell;

/// A program of target/cluster/bin that runs as a pod.
#[derive(Clone, Copy, Debug)]
pub struct PodImage(&'static str);

/// Holds a pod's namespaces.
pub const PAUSE: PodImage = PodImage("pause");

/// All others.
pub const ADDONS: &[PodImage] = &[
    PodImage("coredns"),
    PodImage("prometheus-operator"),
    PodImage("prometheus-config-reloader"),
    PodImage("prometheus"),
    PodImage("alertmanager"),
    PodImage("webhook"),
    PodImage("node-exporter"),
];

impl PodImage {
    /// NAME:TAG in manifests.
    pub fn reference(self) -> String {
        format!("cluster-{}:local", self.0)
    }
}

/// Loads images of cluster programs, unless the same build was loaded before.
pub fn load(paths: &Paths, images: &[PodImage]) -> Result<()> {
    for image in images {
        let link = paths.program(image.0);
        // The cache folder is named by what was built: the link's target identifies the program.
        let build = fs::read_link(&link).with_context(|| format!("{} is missing", link.display()))?;
        load_once(paths, &image.reference(), &build.display().to_string(), |tar| {
            let files = vec![
                Entry::Folder("bin".into(), 0o755),
                Entry::Copy(format!("bin/{}", image.0), link),
                Entry::Folder("etc".into(), 0o755),
                Entry::Text("etc/passwd".into(), "nobody:x:65534:65534::/:/nologin\n".into()),
                Entry::Folder("tmp".into(), 0o1777),
            ];
            let image = Image {
                name: image.reference(),
                entrypoint: vec![format!("/bin/{}", image.0)],
                user: "65534:65534".into(),
                files,
                ..Image::default()
            };
            image::write(&image, tar).map(drop)
        })?;
    }
    Ok(())
}

/// Loads an image tar that exists already, unless the cluster has that identity of it.
pub fn load_tar(paths: &Paths, reference: &str, identity: &str, tar: &Path) -> Result<()> {
    let marker = marker(paths, reference)?;
    if fs::read_to_string(&marker).is_ok_and(|loaded| loaded == identity) {
        return Ok(());
    }
    shell::output(node::ctr(paths).args(["images", "import"]).arg(tar))?;
    fs::write(marker, identity)?;
    Ok(())
}

fn load_once(
    paths: &Paths,
    reference: &str,
    identity: &str,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if fs::read_to_string(marker(paths, reference)?).is_ok_and(|loaded| loaded == identity) {
        return Ok(());
    }
    let tar = paths.cluster().join("image.tar");
    write(&tar)?;
    load_tar(paths, reference, identity, &tar)?;
    Ok(fs::remove_file(tar)?)
}

/// Remembers what was loaded; it goes when the cluster goes.
fn marker(paths: &Paths, reference: &str) -> Result<std::path::PathBuf> {
    let folder = paths.cluster().join("loaded");
    fs::create_dir_all(&folder)?;
    Ok(folder.join(reference.replace(['/', ':'], "_")))
}
