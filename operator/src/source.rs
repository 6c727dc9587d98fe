//! Where a model is: `spec.model.source`, taken apart.
use crate::invalid::Invalid;

/// Which hub a model is on. The engine has the like of it: depending on the engine for three names would bring candle along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// `hf://`
    HuggingFace,
    /// `modelscope://`
    ModelScope,
    /// `s3://`, of which a folder of a bucket is the repository.
    S3,
}

impl Site {
    /// How the engine calls the hub, in the model's name and in the names of its flags.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::ModelScope => "modelscope",
            Self::S3 => "s3",
        }
    }

    /// The branch that the engine takes where the spec names none.
    #[must_use]
    pub const fn default_revision(self) -> &'static str {
        match self {
            Self::HuggingFace => "main",
            Self::ModelScope => "master",
            Self::S3 => "latest",
        }
    }
}

/// Where the model is, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Inside the engine.
    Embedded(String),
    /// On a hub, `ORGANISATION/NAME`, or in a bucket, `BUCKET/FOLDER`.
    Hub(Site, String),
    /// In a PersistentVolumeClaim.
    Claim {
        /// Name of the claim.
        claim: String,
        /// Directory inside it, without a leading slash; empty for its root.
        path: String,
    },
    /// In an image that the kubelet mounts as a volume: its reference.
    Image(String),
}

// === impl Source ===

impl Source {
    /// Reads `spec.model.source`.
    ///
    /// # Errors
    /// [`Invalid::Source`]: it has another form.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refused = || Invalid::Source(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
        match scheme {
            "embedded" if rest == "nano" => Ok(Self::Embedded(text.to_owned())),
            "hf" | "modelscope"
                if rest.split('/').filter(|part| !part.is_empty()).count() == 2
                    && rest.matches('/').count() == 1 =>
            {
                let site = match scheme {
                    "hf" => Site::HuggingFace,
                    _ => Site::ModelScope,
                };
                Ok(Self::Hub(site, rest.to_owned()))
            }
            "s3" if !rest.is_empty() && rest.split('/').all(|part| !part.is_empty() && part != "..") => {
                Ok(Self::Hub(Site::S3, rest.to_owned()))
            }
            "pvc"
                if !rest.is_empty() && !rest.starts_with('/') && rest.split('/').all(|part| part != "..") =>
            {
                let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
                Ok(Self::Claim {
                    claim: claim.to_owned(),
                    path: path.trim_matches('/').to_owned(),
                })
            }
            "oci" if !rest.is_empty() => Ok(Self::Image(rest.to_owned())),
            _ => Err(refused()),
        }
    }

    /// The name that clients use where the spec has none.
    #[must_use]
    pub fn default_name(&self) -> String {
        match self {
            Self::Embedded(_) => "qwen3-nano".to_owned(),
            Self::Hub(Site::S3, folder) => folder.rsplit('/').next().unwrap_or(folder).to_owned(),
            Self::Hub(_, repository) => repository.clone(),
            Self::Image(reference) => {
                let last = reference.rsplit('/').next().unwrap_or(reference);
                last.split(['@', ':']).next().unwrap_or(last).to_owned()
            }
            Self::Claim { claim, path } => path
                .rsplit('/')
                .next()
                .filter(|part| !part.is_empty())
                .unwrap_or(claim)
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_taken_apart() {
        let claim = |path: &str| Source::Claim {
            claim: "weights".into(),
            path: path.into(),
        };
        for (text, source, name) in [
            (
                "embedded://nano",
                Source::Embedded("embedded://nano".into()),
                "qwen3-nano",
            ),
            (
                "hf://Qwen/Qwen3-0.6B",
                Source::Hub(Site::HuggingFace, "Qwen/Qwen3-0.6B".into()),
                "Qwen/Qwen3-0.6B",
            ),
            (
                "oci://registry.example:5000/models/qwen3-4b:v1",
                Source::Image("registry.example:5000/models/qwen3-4b:v1".into()),
                "qwen3-4b",
            ),
            (
                "modelscope://Qwen/Qwen3-0.6B",
                Source::Hub(Site::ModelScope, "Qwen/Qwen3-0.6B".into()),
                "Qwen/Qwen3-0.6B",
            ),
            (
                "s3://models/qwen/4b",
                Source::Hub(Site::S3, "models/qwen/4b".into()),
                "4b",
            ),
            ("pvc://weights/qwen/4b/", claim("qwen/4b"), "4b"),
            ("pvc://weights", claim(""), "weights"),
        ] {
            let parsed = Source::parse(text).unwrap();
            assert_eq!(parsed, source);
            assert_eq!(parsed.default_name(), name);
        }
    }

    #[test]
    fn other_sources_are_refused() {
        for text in [
            "",
            "nano",
            "embedded://big",
            "hf://Qwen",
            "hf://a/b/c",
            "modelscope://a",
            "pvc://",
            "pvc:///x",
            "pvc://a/../b",
            "s3://",
            "s3://b/../k",
        ] {
            assert_eq!(Source::parse(text), Err(Invalid::Source(text.into())), "{text}");
        }
    }
}
