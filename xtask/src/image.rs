//! Container images from nothing: one layer, one configuration, written as a docker-archive tar.
//!
//! Equal content gives an equal file, so digests tell whether an image changed.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::programs::hex;

/// An image to write.
#[derive(Debug, Default)]
pub struct Image {
    /// NAME:TAG.
    pub name: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// UID:GID the program runs as.
    pub user: String,
    /// KEY=VALUE.
    pub env: Vec<String>,
    /// Labels, by the names of the OCI image specification.
    pub labels: Vec<(String, String)>,
    /// What the image contains.
    pub files: Vec<Entry>,
}

/// One thing in an image; paths have no leading slash, and folders come before what is in them.
#[derive(Debug)]
pub enum Entry {
    /// A folder with its mode.
    Folder(String, u32),
    /// A file whose content is here.
    Text(String, String),
    /// A file of this machine (links are followed), executable or not as it is there.
    Copy(String, PathBuf),
}

/// Writes the image to `tar` and returns its identity (the digest of its configuration).
///
/// # Errors
/// When a file cannot be read or the tar cannot be written.
pub fn write(image: &Image, tar: &Path) -> Result<String> {
    let layer_path = tar.with_extension("layer");
    let diff_id = write_layer(&image.files, &layer_path)?;
    let config = config(image, &diff_id).to_string();
    let config_digest = hex(&Sha256::digest(config.as_bytes()));
    let (config_name, layer_name) = (format!("{config_digest}.json"), format!("{diff_id}.tar"));
    let manifest =
        json!([{ "Config": config_name, "RepoTags": [image.name], "Layers": [layer_name] }]).to_string();

    let aside = tar.with_extension("tmp");
    let mut archive = tar::Builder::new(BufWriter::new(create(&aside)?));
    append(
        &mut archive,
        "manifest.json",
        0o644,
        manifest.len() as u64,
        manifest.as_bytes(),
    )?;
    append(
        &mut archive,
        &config_name,
        0o644,
        config.len() as u64,
        config.as_bytes(),
    )?;
    let layer = File::open(&layer_path)?;
    append(&mut archive, &layer_name, 0o644, layer.metadata()?.len(), layer)?;
    archive.into_inner()?.flush()?;
    fs::remove_file(&layer_path)?;
    fs::rename(&aside, tar)?;
    Ok(format!("sha256:{config_digest}"))
}

fn config(image: &Image, diff_id: &str) -> Value {
    let labels: serde_json::Map<String, Value> = image
        .labels
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.clone())))
        .collect();
    let architecture = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": image.user,
            "Env": image.env,
            "Entrypoint": image.entrypoint,
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created_by": "cargo xtask images" }],
    })
}

/// Writes the layer's tar and returns its SHA-256.
fn write_layer(files: &[Entry], path: &Path) -> Result<String> {
    let mut archive = tar::Builder::new(BufWriter::new(create(path)?));
    for entry in files {
        match entry {
            Entry::Folder(name, mode) => {
                let mut header = header(*mode, 0);
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, format!("{name}/"), std::io::empty())?;
            }
            Entry::Text(name, text) => append(&mut archive, name, 0o644, text.len() as u64, text.as_bytes())?,
            Entry::Copy(name, from) => {
                let file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
                let metadata = file.metadata()?;
                let executable =
                    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
                append(
                    &mut archive,
                    name,
                    if executable { 0o755 } else { 0o644 },
                    metadata.len(),
                    file,
                )?;
            }
        }
    }
    let mut file = archive.into_inner()?.into_inner()?;
    file.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn create(path: &Path) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    mode: u32,
    size: u64,
    data: impl Read,
) -> Result<()> {
    let mut header = header(mode, size);
    archive
        .append_data(&mut header, name, data)
        .with_context(|| format!("cannot add {name} to the image"))
}

/// Owner root and time 0, whoever builds it and whenever.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn sample(text: &str) -> Image {
        Image {
            name: "sample:1".into(),
            entrypoint: vec!["/bin/sample".into()],
            user: "65532:65532".into(),
            files: vec![
                Entry::Folder("tmp".into(), 0o1777),
                Entry::Text("etc/name".into(), text.into()),
            ],
            ..Image::default()
        }
    }

    fn unpack(tar: &Path) -> HashMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(tar).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn manifest_configuration_and_layer_name_each_other_by_digest() {
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("sample.tar");
        let id = write(&sample("x"), &tar).unwrap();
        let files = unpack(&tar);
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "sample:1");
        let config = &files[manifest[0]["Config"].as_str().unwrap()];
        assert_eq!(id, format!("sha256:{}", hex(&Sha256::digest(config))));
        let layer = &files[manifest[0]["Layers"][0].as_str().unwrap()];
        let config: Value = serde_json::from_slice(config).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", hex(&Sha256::digest(layer)))
        );
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/sample");
        let layer_path = folder.path().join("layer");
        fs::write(&layer_path, layer).unwrap();
        assert_eq!(unpack(&layer_path)["etc/name"], b"x");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            2,
            "nothing is left beside the image"
        );
    }

    #[test]
    fn equal_content_is_an_equal_image() {
        let folder = tempfile::tempdir().unwrap();
        let [first, again, other] = ["a.tar", "b.tar", "c.tar"].map(|name| folder.path().join(name));
        let id = write(&sample("x"), &first).unwrap();
        assert_eq!(id, write(&sample("x"), &again).unwrap());
        assert_eq!(fs::read(first).unwrap(), fs::read(again).unwrap());
        assert_ne!(id, write(&sample("y"), &other).unwrap());
    }
}
