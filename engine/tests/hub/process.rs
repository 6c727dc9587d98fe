//! The engine itself as a process, against a hub that speaks TLS.
use std::{
    fs::File,
    io::{self, Read, Seek},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use crate::stand_in::{COMMIT, Cut, Shared, WEIGHTS, nano, router};

/// Nothing here takes near as long, on any machine.
const LONG: Duration = Duration::from_secs(300);

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            // A client that does not trust the certificate ends the handshake.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Serves `shared` with a certificate for localhost of a new CA; the CA's certificate goes to `ca`.
async fn listen(shared: Shared, ca: &Path) -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    std::fs::write(ca, params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", tcp.local_addr().unwrap().port());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = Tls { tcp, acceptor };
    tokio::spawn(async move { axum::serve(listener, router(shared)).await.unwrap() });
    endpoint
}

/// A started engine; it dies with this.
struct Engine {
    child: Child,
    log: File,
    url: String,
}

impl Engine {
    async fn start(endpoint: &str, kept: &Path, environment: &[(&str, &str)]) -> Self {
        Self::run(&["serve"], endpoint, kept, environment).await
    }

    /// Runs the command, which may have flags behind it.
    async fn run(command: &[&str], endpoint: &str, kept: &Path, environment: &[(&str, &str)]) -> Self {
        let (command, flags) = command.split_first().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // Not a pipe: one that nobody reads fills up and stops the engine.
        let log = tempfile::tempfile().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_qwen-engine"))
            .args([
                command,
                "hf://org/tiny",
                "--host",
                "127.0.0.1",
                "--num-gpu-blocks-override",
                "256",
            ])
            .args(["--port", &port.to_string(), "--hf-endpoint", endpoint])
            .arg("--download-dir")
            .arg(kept)
            .args(flags)
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR")
            .env_remove("HF_HUB_OFFLINE")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        Self { child, log, url }
    }

    /// The first answer of `path` that is as wanted.
    async fn until(&mut self, path: &str, wanted: impl Fn(reqwest::StatusCode, &str) -> bool) {
        let asking = async {
            let mut pace = tokio::time::interval(Duration::from_millis(50));
            loop {
                pace.tick().await;
                if let Some(status) = self.child.try_wait().unwrap() {
                    panic!("it ended with {status}: {}", self.last_line());
                }
                if let Ok(response) = reqwest::get(format!("{}{path}", self.url)).await {
                    let status = response.status();
                    if wanted(status, &response.text().await.unwrap_or_default()) {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(LONG, asking).await.unwrap();
    }

    /// Waits for its end: the exit code and the last line that it wrote.
    async fn end(mut self) -> (Option<i32>, String) {
        let status = tokio::time::timeout(LONG, self.child.wait()).await.unwrap();
        (status.unwrap().code(), self.last_line())
    }

    fn last_line(&mut self) -> String {
        let mut text = String::new();
        self.log.rewind().unwrap();
        self.log.read_to_string(&mut text).unwrap();
        text.lines().last().unwrap_or_default().to_owned()
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_process_that_is_killed_over_tls_goes_on_and_needs_no_hub_at_the_end() {
    let kept = tempfile::tempdir().unwrap();
    let ca = kept.path().join("ca.pem");
    let shared = nano();
    let endpoint = listen(shared.clone(), &ca).await;

    // The system's CAs do not know ours.
    let (code, line) = Engine::start(&endpoint, kept.path(), &[]).await.end().await;
    assert_eq!(code, Some(2), "{line}");
    assert!(
        line.starts_with("qwen-engine: cannot ")
            && (line.contains("SSL_CERT_FILE") || line.contains("HTTPS")),
        "{line}"
    );

    let trusted = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    let size = shared.lock().unwrap().files[WEIGHTS].len();
    shared.lock().unwrap().cuts = vec![Cut::Stalls(size - 1000)];
    let mut engine = Engine::start(&endpoint, kept.path(), &trusted).await;
    engine
        .until("/ready", |status, text| {
            let body: serde_json::Value = serde_json::from_str(text).unwrap();
            status == 503
                && body["phase"] == "downloading"
                && body["bytes_loaded"].as_u64() >= Some(size as u64 - 1000)
                && body["bytes_total"].as_u64() > Some(size as u64)
                && body["eta_seconds"].is_f64()
        })
        .await;
    engine
        .until("/metrics", |_, text| {
            let sample = |name| text.lines().find(|line| line.starts_with(name)).unwrap();
            let value = |name| sample(name).rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            value("qwen:model_load_bytes{") >= (size - 1000) as f64
                && value("qwen:model_load_eta_seconds{") > 0.0
        })
        .await;
    engine.kill().await;

    let mut engine = Engine::start(&endpoint, kept.path(), &trusted).await;
    engine.until("/ready", |status, _| status == 200).await;
    let info = format!(
        "commit=\"{COMMIT}\",engine=\"0\",model_name=\"hf://org/tiny\",revision=\"main\",source=\"hf://org/tiny\"}} 1"
    );
    engine.until("/metrics", |_, text| text.contains(&info)).await;
    engine.kill().await;

    let nowhere = "https://localhost:1";
    let offline = [("HF_HUB_OFFLINE", "1")];
    let mut engine = Engine::start(nowhere, kept.path(), &offline).await;
    engine.until("/ready", |status, _| status == 200).await;
    engine.kill().await;
    let empty = tempfile::tempdir().unwrap();
    let (code, line) = Engine::start(nowhere, empty.path(), &offline).await.end().await;
    assert_eq!(code, Some(2), "{line}");
    assert!(
        line.contains("hf://org/tiny at revision main is not whole"),
        "{line}"
    );
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

/// What an init container and the engine behind it do with a claim.
#[tokio::test]
async fn what_one_process_downloads_and_quantizes_another_serves_without_writing() {
    let kept = tempfile::tempdir().unwrap();
    let ca = tempfile::tempdir().unwrap();
    let ca = ca.path().join("ca.pem");
    let endpoint = listen(nano(), &ca).await;
    let trusted = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    let command = ["download", "--quantization", "q8_0"];
    let (code, line) = Engine::run(&command, &endpoint, kept.path(), &trusted)
        .await
        .end()
        .await;
    assert_eq!(code, Some(0), "{line}");
    let all = || {
        let mut files: Vec<_> = walk(kept.path());
        files.sort();
        files
    };
    let before = all();
    assert!(before.iter().any(|(path, _)| path.contains("q8_0")), "{before:?}");
    let command = ["serve", "--quantization", "q8_0", "--offline"];
    let mut engine = Engine::run(&command, "https://localhost:1", kept.path(), &[]).await;
    engine.until("/ready", |status, _| status == 200).await;
    engine.kill().await;
    assert_eq!(all(), before);
}

/// Files below a directory, and when they were written.
fn walk(dir: &Path) -> Vec<(String, std::time::SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let below = entries.flat_map(|entry| match entry.file_type().unwrap().is_dir() {
        true => walk(&entry.path()),
        false => vec![(
            entry.path().display().to_string(),
            entry.metadata().unwrap().modified().unwrap(),
        )],
    });
    below.collect()
}
