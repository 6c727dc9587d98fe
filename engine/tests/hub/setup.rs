//! What most tests of downloads begin with: a hub, a directory, and a look at what came.
use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use qwen_engine::hub::{Hub, HubError, Site};

use crate::stand_in::{Behaviour, COMMIT, Seen, Shared, WEIGHTS, listen};

/// A hub with one model, the behaviour to change, and a directory for downloads.
pub struct Setup {
    pub shared: Shared,
    pub endpoint: String,
    pub kept: tempfile::TempDir,
    pub site: Site,
    /// Bytes of one request, if not the usual ones.
    pub piece: Option<u64>,
}

impl Setup {
    pub async fn new(site: Site) -> Self {
        let weights = (0..3_000_000_u32).flat_map(|i| i.to_le_bytes()).collect();
        let files = [
            ("config.json", b"{\"model_type\": \"qwen3\"}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            (WEIGHTS, weights),
            ("README.md", b"not needed".to_vec()),
            ("pytorch_model.bin", b"not needed".to_vec()),
            ("consolidated.safetensors", b"not needed".to_vec()),
            ("onnx/model.safetensors", b"not needed".to_vec()),
        ];
        let shared = Shared::new(Mutex::new(Behaviour {
            files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into(),
            ..Behaviour::default()
        }));
        Self {
            endpoint: listen("127.0.0.1", shared.clone()).await,
            shared,
            kept: tempfile::tempdir().unwrap(),
            site,
            piece: None,
        }
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.lock().unwrap());
    }

    pub fn hub(&self, token: Option<&str>) -> Hub {
        let hub = Hub::new(self.site, Some(&self.endpoint), token.map(str::to_owned)).unwrap();
        let hub = hub.first_wait(Duration::from_millis(1));
        match self.piece {
            Some(piece) => hub.piece(piece),
            None => hub,
        }
    }

    pub async fn download(&self, token: Option<&str>) -> Result<PathBuf, HubError> {
        let branch = self.site.default_revision();
        self.hub(token)
            .download("org/tiny", branch, self.kept.path(), |_, _| {})
            .await
    }

    /// Where the snapshot is, or will be.
    pub fn snapshot(&self) -> PathBuf {
        let kept = match self.site {
            Site::HuggingFace => self.kept.path().to_owned(),
            Site::ModelScope => self.kept.path().join("modelscope"),
            Site::S3 => self.kept.path().join("s3"),
        };
        kept.join("org--tiny").join(COMMIT)
    }

    /// The requests for weights so far.
    pub fn weights_seen(&self) -> Vec<Seen> {
        let hub = self.shared.lock().unwrap();
        hub.seen
            .iter()
            .filter(|seen| seen.path.ends_with(WEIGHTS))
            .cloned()
            .collect()
    }

    /// Their ranges.
    pub fn ranges(&self) -> Vec<Option<String>> {
        self.weights_seen().into_iter().map(|seen| seen.range).collect()
    }

    pub fn assert_whole(&self, dir: &Path) {
        let hub = self.shared.lock().unwrap();
        for name in [WEIGHTS, "config.json", "tokenizer.json"] {
            assert!(
                std::fs::read(dir.join(name)).unwrap() == hub.files[name],
                "{name}"
            );
        }
        let left = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left
            .filter(|name| name.to_string_lossy().contains(".part"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
