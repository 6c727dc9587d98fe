//! Where a model's files come from: a directory, a GGUF file, a hub (`hf://org/name`, `modelscope://org/name`), a bucket (`s3://bucket/folder`), or this program itself (`embedded://nano`).
use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::hub::{self, Hub, HubError, S3Access, Site, Throttle};
use crate::model::{GgufModel, Weights};

/// The files of one model, as text and bytes, or as paths where they are large.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFiles {
    /// Text of config.json.
    pub config: Cow<'static, str>,
    /// Text of generation_config.json, if there is one.
    pub generation_config: Option<Cow<'static, str>>,
    /// Bytes of tokenizer.json.
    pub tokenizer: Cow<'static, [u8]>,
    /// Text of tokenizer_config.json, if there is one.
    pub tokenizer_config: Option<Cow<'static, str>>,
    /// The chat template: chat_template.jinja, else the one in tokenizer_config.json.
    pub chat_template: Option<String>,
    /// The safetensors files in the order of their names, at least one.
    pub weights: Vec<Weights>,
    /// Whether they say that the model makes embeddings (modules.json of sentence-transformers).
    pub pooled: bool,
    /// Which state of a hub's repository they are; `None` for files from elsewhere.
    pub origin: Option<Origin>,
}

/// The state of a repository that was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `hf://org/name`, `modelscope://org/name` or `s3://bucket/folder`.
    pub source: String,
    /// Branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it meant; of a bucket, a checksum of its files' names, sizes and tags.
    pub commit: String,
}

/// How models on a hub are found and where they are kept.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// Branch, tag or commit; `None` means the hub's usual branch.
    pub revision: Option<String>,
    /// Where downloads are kept; `None` means qwen-engine in the user's cache directory.
    pub download_dir: Option<PathBuf>,
    /// The Hugging Face hub.
    pub hugging_face: Access,
    /// ModelScope.
    pub model_scope: Access,
    /// Buckets.
    pub s3: S3Access,
    /// Whether only what is downloaded already may be served.
    pub offline: bool,
    /// Where it is told how often a hub asked to wait.
    pub throttle: Arc<Throttle>,
}

/// How a hub is reached.
#[derive(Clone, Default)]
pub struct Access {
    /// Base URL; `None` means the public one.
    pub endpoint: Option<String>,
    /// Token for gated or private models.
    pub token: Option<String>,
}

// Not derived: a token is not for logs.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Access");
        shown.field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Why a model could not be found; one sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such scheme, directory or embedded model.
    #[error(
        "model {0:?} is not a directory, a .gguf file, hf://org/name, modelscope://org/name, s3://bucket/folder or embedded://nano; check the name"
    )]
    Unknown(String),
    /// A path that leads nowhere.
    #[error("there is no file or directory {0}; check the path")]
    NoPath(String),
    /// A directory with nothing but GGUF.
    #[error("{dir} has no config.json but a GGUF file; name that file itself: {file}")]
    GgufInside {
        /// The directory.
        dir: PathBuf,
        /// The file in it.
        file: PathBuf,
    },
    /// A file that every model needs is not there or cannot be read.
    #[error(
        "cannot read {path}: {reason}; a model needs config.json, tokenizer.json and model.safetensors (or its shards and their index)"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The index names no files or is not an index.
    #[error("{path} is not an index of safetensors files: {reason}")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A GGUF file that cannot be served.
    #[error("cannot serve {path}: {reason}; use the GGUF file of a Qwen3 model")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file's tokenizer cannot be read.
    #[error(
        "{path} needs the tokenizer.json of its model beside it, and that cannot be read: {reason}; put it into the same directory"
    )]
    NoTokenizer {
        /// The GGUF file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// No place to keep downloads.
    #[error("there is no cache directory for downloads (HOME is not set); give --download-dir")]
    NoDownloadDir,
    /// The hub failed.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// Finds the files of `spec`, downloading them if they are on the hub. `progress` gets bytes done and bytes in all.
pub async fn resolve(
    spec: &str,
    options: &SourceOptions,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<ModelFiles, SourceError> {
    match spec.split_once("://") {
        Some(("embedded", "nano")) => Ok(embedded_nano()),
        Some(("hf", repo)) if is_repo(repo) => download(Site::HuggingFace, repo, options, progress).await,
        Some(("modelscope", repo)) if is_repo(repo) => {
            download(Site::ModelScope, repo, options, progress).await
        }
        Some(("s3", name)) if is_folder(name) => {
            download(Site::S3, name.trim_end_matches('/'), options, progress).await
        }
        Some(_) => Err(SourceError::Unknown(spec.into())),
        None if spec.ends_with(".gguf") && Path::new(spec).is_file() => gguf(Path::new(spec)),
        None if Path::new(spec).is_dir() => directory(Path::new(spec)),
        None if is_path(spec) && !Path::new(spec).exists() => Err(SourceError::NoPath(spec.into())),
        // A bare org/name is a model on the hub, as in vLLM's command line.
        None if is_repo(spec) => {
            if !options.offline {
                tracing::info!("there is no directory {spec} here; the hub is asked for it");
            }
            download(Site::HuggingFace, spec, options, progress).await
        }
        None => Err(SourceError::Unknown(spec.into())),
    }
}

async fn download(
    site: Site,
    repo: &str,
    options: &SourceOptions,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<ModelFiles, SourceError> {
    let kept = options
        .download_dir
        .clone()
        .or_else(default_download_dir)
        .ok_or(SourceError::NoDownloadDir)?;
    let revision = options.revision.as_deref().unwrap_or(site.default_revision());
    let snapshot = if options.offline {
        hub::offline(site, repo, revision, &kept)?
    } else {
        let of = |access: &Access| Hub::new(site, access.endpoint.as_deref(), access.token.clone());
        let hub = match site {
            Site::HuggingFace => of(&options.hugging_face)?,
            Site::ModelScope => of(&options.model_scope)?,
            Site::S3 => Hub::of_buckets(options.s3.clone())?,
        };
        let hub = hub.throttle(options.throttle.clone());
        hub.download(repo, revision, &kept, progress).await?
    };
    let origin = Origin {
        source: site.name_of(repo),
        revision: revision.to_owned(),
        commit: hub::commit_of(&snapshot),
    };
    Ok(ModelFiles {
        origin: Some(origin),
        ..directory(&snapshot)?
    })
}

/// Whether `text` is `org/name` in the hub's alphabet; so it is also safe as a part of a path.
fn is_repo(text: &str) -> bool {
    text.matches('/').count() == 1 && text.split('/').all(is_part)
}

/// Whether `text` is `bucket` or `bucket/folder/…` of characters that a URL and a path take as they are.
fn is_folder(text: &str) -> bool {
    text.trim_end_matches('/').split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Whether `text` can only mean a file or a directory.
fn is_path(text: &str) -> bool {
    text.starts_with(['.', '/', '~']) || text.ends_with(".gguf") || text.matches('/').count() > 1
}

/// Where downloads and quantized weights are kept unless a flag says otherwise; `None` without a home.
pub fn default_download_dir() -> Option<PathBuf> {
    let home = || {
        std::env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(|home| Path::new(&home).join(".cache"))
    };
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(home)?;
    Some(cache.join("qwen-engine"))
}

/// The demo model of examples/nano, compiled in: it needs no file and no download.
fn embedded_nano() -> ModelFiles {
    let tokenizer_config = include_str!("../../examples/nano/model/tokenizer_config.json");
    ModelFiles {
        config: include_str!("../../examples/nano/model/config.json").into(),
        generation_config: Some(include_str!("../../examples/nano/model/generation_config.json").into()),
        tokenizer: Cow::Borrowed(include_bytes!("../../examples/nano/model/tokenizer.json")),
        tokenizer_config: Some(tokenizer_config.into()),
        chat_template: template_of(tokenizer_config).unwrap_or_default(),
        weights: vec![Weights::Embedded(include_bytes!(
            "../../examples/nano/model/model.safetensors"
        ))],
        pooled: false,
        origin: None,
    }
}

fn directory(dir: &Path) -> Result<ModelFiles, SourceError> {
    if let (false, Some(file)) = (dir.join("config.json").exists(), gguf_in(dir)) {
        return Err(SourceError::GgufInside {
            dir: dir.into(),
            file,
        });
    }
    let (tokenizer_config, chat_template) = templates(dir)?;
    let tokenizer = dir.join("tokenizer.json");
    Ok(ModelFiles {
        config: required(dir, "config.json")?.into(),
        generation_config: optional(dir, "generation_config.json")?.map(Cow::from),
        tokenizer: fs::read(&tokenizer)
            .map_err(|error| unreadable(tokenizer, error))?
            .into(),
        tokenizer_config: tokenizer_config.map(Cow::from),
        chat_template,
        weights: weights(dir)?,
        pooled: optional(dir, "modules.json")?.is_some_and(|text| text.contains(".Pooling")),
        origin: None,
    })
}

/// The first GGUF file in a directory.
fn gguf_in(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "gguf"))
        .min()
}

/// One GGUF file: it holds its own config, and the tokenizer lies beside it.
fn gguf(path: &Path) -> Result<ModelFiles, SourceError> {
    let model = GgufModel::read(path).map_err(|reason| SourceError::Gguf {
        path: path.into(),
        reason,
    })?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let (tokenizer_config, chat_template) = templates(dir)?;
    let tokenizer = fs::read(dir.join("tokenizer.json")).map_err(|error| SourceError::NoTokenizer {
        path: path.into(),
        reason: error.to_string(),
    })?;
    Ok(ModelFiles {
        config: model.config.into(),
        generation_config: optional(dir, "generation_config.json")?.map(Cow::from),
        tokenizer: tokenizer.into(),
        chat_template: chat_template.or(model.chat_template),
        tokenizer_config: tokenizer_config.map(Cow::from),
        weights: vec![Weights::File(path.into())],
        pooled: model.pooled,
        origin: None,
    })
}

/// The one file or the shards that the index names; other safetensors beside them do not belong to the model.
fn weights(dir: &Path) -> Result<Vec<Weights>, SourceError> {
    let path = dir.join("model.safetensors.index.json");
    let Some(text) = optional(dir, "model.safetensors.index.json")? else {
        return Ok(vec![Weights::File(existing(dir.join("model.safetensors"))?)]);
    };
    let bad = |reason: String| SourceError::Index {
        path: path.clone(),
        reason,
    };
    let names = shards(&text).map_err(bad)?;
    names
        .into_iter()
        .map(|name| existing(dir.join(name)).map(Weights::File))
        .collect()
}

/// The files that an index of safetensors names. Errors say what is wrong with it.
pub fn shards(index: &str) -> Result<BTreeSet<String>, String> {
    let index: serde_json::Value = serde_json::from_str(index).map_err(|error| error.to_string())?;
    let map = index["weight_map"].as_object().ok_or("it has no weight_map")?;
    let names = map.values().map(|name| {
        name.as_str()
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
    });
    let names: BTreeSet<String> = names
        .collect::<Option<_>>()
        .ok_or("its weight_map holds something that is not a file name")?;
    if names.is_empty() {
        return Err("its weight_map is empty".into());
    }
    Ok(names)
}

fn existing(path: PathBuf) -> Result<PathBuf, SourceError> {
    match fs::metadata(&path) {
        Ok(found) if found.is_file() => Ok(path),
        Ok(_) => Err(SourceError::File {
            path,
            reason: "it is not a file".into(),
        }),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn required(dir: &Path, name: &str) -> Result<String, SourceError> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(|error| unreadable(path, error))
}

fn optional(dir: &Path, name: &str) -> Result<Option<String>, SourceError> {
    let path = dir.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn unreadable(path: PathBuf, error: std::io::Error) -> SourceError {
    SourceError::File {
        path,
        reason: error.to_string(),
    }
}

/// The text of tokenizer_config.json, and the chat template, which a file of its own may hold.
fn templates(dir: &Path) -> Result<(Option<String>, Option<String>), SourceError> {
    let config = optional(dir, "tokenizer_config.json")?;
    let beside = optional(dir, "chat_template.jinja")?;
    let inside = template_of(config.as_deref().unwrap_or("{}")).map_err(|error| SourceError::File {
        path: dir.join("tokenizer_config.json"),
        reason: format!("it is not JSON: {error}"),
    })?;
    Ok((config, beside.or(inside)))
}

/// The template in tokenizer_config.json: a text, or a list of named ones with one named default.
fn template_of(tokenizer_config: &str) -> serde_json::Result<Option<String>> {
    let config: serde_json::Value = serde_json::from_str(tokenizer_config)?;
    let template = &config["chat_template"];
    let named = || template.as_array()?.iter().find(|one| one["name"] == "default")?["template"].as_str();
    Ok(template.as_str().or_else(named).map(str::to_owned))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
