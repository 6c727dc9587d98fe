//! What a hub says of one revision of a model: its commit and its files, in either hub's form.
use std::collections::BTreeSet;

use serde::Deserialize;

use super::{HubError, Site, client::Client, s3::Folder};

/// Files beside the weights that an engine reads.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "modules.json",
    INDEX,
];
/// The file that names the shards of the weights.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A revision's files that an engine may need.
pub(super) struct Listing {
    /// Names the snapshot: every file is of this state of the repository.
    pub(super) commit: String,
    /// Config, tokenizer and so on.
    pub(super) small: Vec<Remote>,
    /// Every file that could be weights.
    pub(super) weights: Vec<Remote>,
}

/// A file on the hub.
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) checksum: Option<Checksum>,
    pub(super) url: String,
    /// What it has as long as it is the same, where the server tells that.
    pub(super) tag: Option<String>,
}

/// What tells the right bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Checksum {
    /// Of the bytes.
    Sha256(String),
    /// Git's name of a blob of these bytes.
    GitBlob(String),
}

impl Client {
    /// Asks for `repo` at `revision`.
    pub(super) async fn listing(&self, repo: &str, revision: &str) -> Result<Listing, HubError> {
        let (endpoint, escaped) = (&self.endpoint, revision.replace('/', "%2F"));
        let folder = Folder::new(endpoint, repo);
        let url = match self.site {
            Site::S3 => folder.list(),
            Site::HuggingFace => format!("{endpoint}/api/models/{repo}/revision/{escaped}?blobs=true"),
            Site::ModelScope => {
                format!("{endpoint}/api/v1/models/{repo}/repo/files?Revision={escaped}&Recursive=true")
            }
        };
        let text = self.text(&url).await?;
        let found = match self.site {
            Site::HuggingFace => hugging_face(&text, endpoint, repo),
            Site::ModelScope => model_scope(&text, endpoint, repo, revision),
            Site::S3 => folder.read(&text),
        };
        let (commit, files) = found.map_err(|reason| HubError::Answer {
            site: self.site,
            url,
            reason,
        })?;
        let (small, weights): (Vec<_>, Vec<_>) = files
            .into_iter()
            .filter(|file| is_wanted(&file.name))
            .partition(|file| !is_weights(&file.name));
        if weights.is_empty() {
            return Err(HubError::NoWeights(self.site.name_of(repo)));
        }
        Ok(Listing {
            commit,
            small,
            weights,
        })
    }
}

fn hugging_face(text: &str, endpoint: &str, repo: &str) -> Result<(String, Vec<Remote>), String> {
    #[derive(Deserialize)]
    struct Revision {
        sha: String,
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sibling {
        rfilename: String,
        size: u64,
        blob_id: Option<String>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        sha256: String,
    }
    let Revision { sha, siblings } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !is_commit(&sha) {
        return Err(format!("{sha:?} is not a commit"));
    }
    let remote = |file: Sibling| Remote {
        url: format!("{endpoint}/{repo}/resolve/{sha}/{}", file.rfilename),
        name: file.rfilename,
        size: file.size,
        checksum: match file.lfs {
            Some(lfs) => Some(Checksum::Sha256(lfs.sha256)),
            None => file.blob_id.filter(|id| is_commit(id)).map(Checksum::GitBlob),
        },
        tag: None,
    };
    let files = siblings.into_iter().map(remote).collect();
    Ok((sha, files))
}

fn model_scope(text: &str, endpoint: &str, repo: &str, asked: &str) -> Result<(String, Vec<Remote>), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Envelope {
        message: Option<String>,
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Data {
        files: Vec<Entry>,
        latest_committer: Option<Latest>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Latest {
        short_id: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        path: String,
        r#type: String,
        #[serde(default)]
        size: u64,
        sha256: Option<String>,
        revision: Option<String>,
    }
    let Envelope { message, data } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let data = data.ok_or_else(|| message.unwrap_or_else(|| "it has no Data".into()))?;
    let short = data.latest_committer.and_then(|latest| latest.short_id);
    let commits = || data.files.iter().filter_map(|file| file.revision.as_deref());
    // The branch's commit comes abbreviated; a file that it changed tells the whole.
    let commit = match short.filter(|short| is_hex(short) && short.len() >= 7) {
        _ if is_commit(asked) => asked.to_owned(),
        Some(short) => commits()
            .find(|commit| is_commit(commit) && commit.starts_with(&short))
            .map_or(short, str::to_owned),
        None => return Err("it does not say which commit it is of".into()),
    };
    let remote = |file: Entry| {
        // A file's own commit cannot move while the download runs, the branch can.
        let revision = file.revision.filter(|revision| is_commit(revision));
        let revision = revision.as_deref().unwrap_or(&commit);
        Remote {
            url: format!(
                "{endpoint}/api/v1/models/{repo}/repo?Revision={revision}&FilePath={}",
                file.path
            ),
            name: file.path,
            size: file.size,
            checksum: file
                .sha256
                .filter(|sum| sum.len() == 64 && is_hex(sum))
                .map(Checksum::Sha256),
            tag: None,
        }
    };
    let blobs = data.files.into_iter().filter(|file| file.r#type == "blob");
    let files = blobs.map(remote).collect();
    Ok((commit, files))
}

/// Keeps the files of `weights` that make up the model: those that the index names, or the single one.
pub(super) fn choose(weights: Vec<Remote>, index: Option<&str>) -> Result<Vec<Remote>, String> {
    let names = match index {
        Some(text) => crate::source::shards(text).map_err(|reason| format!("{INDEX}: {reason}"))?,
        None => BTreeSet::from(["model.safetensors".to_owned()]),
    };
    if let Some(missing) = names
        .iter()
        .find(|name| !weights.iter().any(|file| file.name == **name))
    {
        return Err(format!("{missing} is missing"));
    }
    Ok(weights
        .into_iter()
        .filter(|file| names.contains(&file.name))
        .collect())
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Whether an engine may need the file.
pub(super) fn is_wanted(name: &str) -> bool {
    SMALL_FILES.contains(&name) || is_weights(name)
}

/// Bytes as digits of 16.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Safetensors of the top directory, by a name that is safe in a path and in a URL.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "83ee97c66e841048bedc5c02c15ce2f3ed259feb";
    const OLDER: &str = "f194f50981eaaa6019bbec5049a4c7e1fd294110";

    fn scope(latest: &str, asked: &str) -> Result<(String, Vec<Remote>), String> {
        let text = format!(
            r#"{{"Code": 200, "Success": true, "Message": "success", "Data": {{"Files": [
                {{"Type": "tree", "Path": "sub", "Size": 0, "Sha256": ""}},
                {{"Type": "blob", "Path": "config.json", "Size": 7, "Sha256": "{}", "Revision": "{OLDER}"}},
                {{"Type": "blob", "Path": "README.md", "Size": 3, "Revision": "{HEAD}"}}], "LatestCommitter": {latest}}}}}"#,
            "0A".repeat(32)
        );
        model_scope(&text, "http://hub", "org/tiny", asked)
    }

    #[test]
    fn a_branch_of_modelscope_is_one_commit() {
        let (commit, files) = scope(r#"{"Id": "", "ShortId": "83ee97c6"}"#, "master").unwrap();
        assert_eq!(commit, HEAD);
        let [config, readme] = &files[..] else {
            panic!("two blobs")
        };
        let url = format!("http://hub/api/v1/models/org/tiny/repo?Revision={OLDER}&FilePath=config.json");
        assert_eq!((&config.url, config.size), (&url, 7));
        assert_eq!(config.checksum, Some(Checksum::Sha256("0A".repeat(32))));
        assert_eq!(readme.checksum, None);
        assert_eq!(
            scope(r#"{"ShortId": "aabbccdd"}"#, "master").unwrap().0,
            "aabbccdd"
        );
        assert_eq!(scope("null", OLDER).unwrap().0, OLDER);
    }

    #[test]
    fn what_is_no_listing_is_told() {
        let error = |text| {
            model_scope(text, "http://hub", "org/tiny", "master")
                .err()
                .unwrap()
        };
        assert_eq!(
            error(r#"{"Code": 10010, "Success": false, "Message": "no such revision"}"#),
            "no such revision"
        );
        assert!(scope("{}", "master").err().unwrap().contains("which commit"));
        assert!(
            scope(r#"{"ShortId": "../../etc"}"#, "master")
                .err()
                .unwrap()
                .contains("which commit")
        );
        let error = hugging_face(r#"{"sha": "../x", "siblings": []}"#, "http://hub", "org/tiny");
        assert!(error.err().unwrap().contains("is not a commit"));
    }

    #[test]
    fn only_the_weights_of_the_model_are_chosen() {
        let remote = |name: &str| Remote {
            name: name.into(),
            size: 1,
            checksum: None,
            url: String::new(),
            tag: None,
        };
        let files = || {
            ["model.safetensors", "model-1.safetensors", "adapter.safetensors"]
                .map(remote)
                .into()
        };
        let names = |chosen: Vec<Remote>| chosen.into_iter().map(|file| file.name).collect::<Vec<_>>();
        assert_eq!(names(choose(files(), None).unwrap()), ["model.safetensors"]);
        let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
        assert_eq!(
            names(choose(files(), Some(index)).unwrap()),
            ["model-1.safetensors"]
        );
        let index = r#"{"weight_map": {"a": "model-2.safetensors"}}"#;
        assert_eq!(
            choose(files(), Some(index)).err().unwrap(),
            "model-2.safetensors is missing"
        );
    }
}
