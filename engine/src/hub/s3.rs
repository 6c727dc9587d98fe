//! Buckets with the interface of S3: requests signed by AWS's Signature Version 4, and the list of a folder's files.
use std::fmt::{Debug, Formatter};

use jiff::{Timestamp, tz::TimeZone};
use reqwest::Url;
use ring::hmac::{HMAC_SHA256, Key, Tag, sign};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::listing::{Remote, hex, is_wanted};

/// What stands for the bucket in an endpoint; without it the bucket begins the path.
const BUCKET: &str = "{bucket}";

/// How buckets are reached.
#[derive(Clone, Default)]
pub struct S3Access {
    /// Base URL; `None` means AWS.
    pub endpoint: Option<String>,
    /// Region of the bucket, by default us-east-1, which most other servers take too.
    pub region: Option<String>,
    /// A key's name and its secret; none for public buckets.
    pub key: Option<(String, String)>,
    /// What temporary keys bring besides.
    pub session_token: Option<String>,
}

// Not derived: secrets are not for logs.
impl Debug for S3Access {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("S3Access");
        shown.field("endpoint", &self.endpoint);
        shown.field("region", &self.region).finish_non_exhaustive()
    }
}

impl S3Access {
    pub(super) fn region(&self) -> &str {
        let region = self.region.as_deref().filter(|region| !region.is_empty());
        region.unwrap_or("us-east-1")
    }

    /// The headers that sign a GET of `url`, with these among them.
    pub(super) fn signed(
        &self,
        url: &Url,
        more: Vec<(&'static str, String)>,
        now: Timestamp,
    ) -> Vec<(&'static str, String)> {
        let mut headers = more;
        let Some((id, secret)) = &self.key else {
            return headers;
        };
        let time = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        // Of no body.
        let body = hex(&Sha256::digest(b""));
        headers.extend([
            ("x-amz-content-sha256", body.clone()),
            ("x-amz-date", time.clone()),
        ]);
        let token = self.session_token.iter().filter(|token| !token.is_empty());
        headers.extend(token.map(|token| ("x-amz-security-token", token.clone())));
        headers.sort();
        let host = match (url.host_str().unwrap_or_default(), url.port()) {
            (host, None) => host.to_owned(),
            (host, Some(port)) => format!("{host}:{port}"),
        };
        let mut all = vec![("host", host)];
        all.extend(headers.iter().cloned());
        all.sort();
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = all
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let query = url.query().unwrap_or_default();
        let request = format!("GET\n{}\n{query}\n{lines}\n{names}\n{body}", url.path());
        let scope = format!("{day}/{}/s3/aws4_request", self.region());
        let request = hex(&Sha256::digest(request));
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{request}");
        let mut key = hmac(format!("AWS4{secret}").as_bytes(), day);
        for part in [self.region(), "s3", "aws4_request"] {
            key = hmac(key.as_ref(), part);
        }
        let signature = hex(hmac(key.as_ref(), &text).as_ref());
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={names},Signature={signature}");
        headers.push(("authorization", authorization));
        headers
    }
}

fn hmac(key: &[u8], text: &str) -> Tag {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes())
}

/// Where the files of `BUCKET/FOLDER` are, and where they are listed.
pub(super) struct Folder {
    base: String,
    prefix: String,
}

impl Folder {
    pub(super) fn new(endpoint: &str, name: &str) -> Self {
        let (bucket, folder) = name.split_once('/').unwrap_or((name, ""));
        let folder = folder.trim_matches('/');
        Self {
            base: match endpoint.contains(BUCKET) {
                true => format!("{}/", endpoint.replace(BUCKET, bucket)),
                false => format!("{endpoint}/{bucket}/"),
            },
            prefix: match folder {
                "" => String::new(),
                folder => format!("{folder}/"),
            },
        }
    }

    /// The query's fields are in the order in which they are signed.
    pub(super) fn list(&self) -> String {
        let prefix = self.prefix.replace('/', "%2F");
        format!("{}?delimiter=%2F&list-type=2&prefix={prefix}", self.base)
    }

    /// The files that an engine may need, and a name for their state in the form of a commit.
    pub(super) fn read(&self, listing: &str) -> Result<(String, Vec<Remote>), String> {
        if !listing.contains("<ListBucketResult") {
            return Err("it is no list of a bucket".to_owned());
        }
        if text_of(listing, "IsTruncated") == Some("true") {
            return Err("the folder has more than 1000 files; give the model one of its own".to_owned());
        }
        let mut files = Vec::new();
        for object in listing.split("<Contents>").skip(1) {
            let field = |name| text_of(object, name).ok_or_else(|| format!("a file has no {name}"));
            let key = field("Key")?;
            // A name that would need an escape is none that is wanted.
            let Some(name) = key.strip_prefix(&self.prefix).filter(|name| is_wanted(name)) else {
                continue;
            };
            let size = field("Size")?.parse().map_err(|_| format!("{key} has no size"))?;
            let tag = field("ETag")?
                .replace("&quot;", "")
                .replace("&#34;", "")
                .replace('"', "");
            files.push(Remote {
                name: name.to_owned(),
                size,
                checksum: None,
                url: format!("{}{key}", self.base),
                tag: Some(format!("\"{tag}\"")),
            });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let mut state = Sha1::new();
        for Remote { name, size, tag, .. } in &files {
            state.update(format!("{name} {size} {}\n", tag.as_deref().unwrap_or_default()));
        }
        Ok((hex(&state.finalize()), files))
    }
}

/// The text of the first element of this name.
fn text_of<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    #[test]
    fn signatures_are_those_of_the_documentation() {
        let access = S3Access {
            key: Some((
                "AKIAIOSFODNN7EXAMPLE".to_owned(),
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            )),
            ..S3Access::default()
        };
        let now = "2013-05-24T00:00:00Z".parse().unwrap();
        let range = vec![("range", "bytes=0-9".to_owned())];
        for (path, more, signature) in [
            (
                "/test.txt",
                range,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "/?lifecycle=",
                vec![],
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "/?max-keys=2&prefix=J",
                vec![],
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let url = format!("https://examplebucket.s3.amazonaws.com{path}")
                .parse()
                .unwrap();
            let headers = access.signed(&url, more, now);
            let (_, authorization) = headers.last().unwrap();
            assert!(
                authorization.ends_with(&format!("Signature={signature}")),
                "{authorization}"
            );
        }
        let open = S3Access::default();
        let url = "https://examplebucket.s3.amazonaws.com/".parse().unwrap();
        assert_eq!(open.signed(&url, vec![], now), []);
    }

    #[test]
    fn a_list_is_read_and_its_state_follows_every_file() {
        let folder = Folder::new("http://s3:9000", "models/qwen/4b/");
        assert_eq!(
            folder.list(),
            "http://s3:9000/models/?delimiter=%2F&list-type=2&prefix=qwen%2F4b%2F"
        );
        let object = |name: &str, tag: &str| {
            format!(
                "<Contents><Key>qwen/4b/{name}</Key><Size>7</Size><ETag>&quot;{tag}&quot;</ETag></Contents>"
            )
        };
        let list = |objects: &str| {
            format!(
                "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
            )
        };
        let text = list(
            &[
                object("model.safetensors", "a-2"),
                object("config.json", "b"),
                object("a &amp; b", "c"),
            ]
            .concat(),
        );
        let (state, files) = folder.read(&text).unwrap();
        let [config, weights] = &files[..] else {
            panic!("two files")
        };
        assert_eq!((config.name.as_str(), weights.size), ("config.json", 7));
        assert_eq!(weights.url, "http://s3:9000/models/qwen/4b/model.safetensors");
        assert_eq!(weights.tag.as_deref(), Some("\"a-2\""));
        let (same, _) = folder
            .read(&text.replace("\"c\"", "\"d\"").replace("&quot;c", "&quot;d"))
            .unwrap();
        let (other, _) = folder.read(&text.replace("a-2", "a-3")).unwrap();
        assert!(state == same && state != other && state.len() == 40);
        for (bad, told) in [
            ("<Error/>".to_owned(), "no list"),
            (
                list("<Contents><Key>qwen/4b/config.json</Key></Contents>"),
                "no Size",
            ),
            (
                "<ListBucketResult><IsTruncated>true</IsTruncated>".to_owned(),
                "1000",
            ),
        ] {
            assert!(folder.read(&bad).err().unwrap().contains(told), "{bad}");
        }
        let hosted = Folder::new("https://{bucket}.oss.example", "models");
        assert!(
            hosted.list().starts_with("https://models.oss.example/?"),
            "{}",
            hosted.list()
        );
    }
}
