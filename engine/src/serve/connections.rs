//! Accepts connections and bounds those whose clients send no request: each holds a descriptor, and without any left
//! the probes would fail.
use std::{sync::Arc, time::Duration};

use axum::{Router, extract::Request, serve::Listener};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::tls::Tls;

/// Time for the head of a request, from the connection or the answer before it. Longer than gateways keep idle
/// connections, or they would send into closed ones.
pub(super) const HEAD: Duration = Duration::from_secs(75);

/// A socket that is listened on, and how connections to it are encrypted, if they are.
pub struct Port {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
}

impl Port {
    pub(super) fn new(listener: TcpListener, tls: Option<Arc<Tls>>) -> Self {
        Self { listener, tls }
    }

    /// Where it listens; port 0 asked for any free one.
    pub(super) fn address(&self) -> Option<String> {
        let address = self.listener.local_addr().ok()?;
        Some(address.to_string())
    }
}

impl From<TcpListener> for Port {
    fn from(listener: TcpListener) -> Self {
        Self::new(listener, None)
    }
}

/// Serves until `closing`, then until all answers are sent. A connection without a whole head within `head` is closed.
pub(super) async fn serve(
    Port { mut listener, tls }: Port,
    router: Router,
    head: Duration,
    closing: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head);
    let open = GracefulShutdown::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = closing.cancelled() => break,
        };
        // A chunk must not wait for the next; if it cannot be set, chunks only come later.
        let _ = stream.set_nodelay(true);
        // Of this connection: a certificate may be another one at the next.
        let config = tls.as_ref().map(|tls| tls.config());
        // Hyper's clock begins once it knows the version of HTTP, so the first request has one of ours.
        let begun = CancellationToken::new();
        let talk = Talk {
            router: router.clone(),
            builder: builder.clone(),
            open: open.watcher(),
            begun: begun.clone(),
        };
        let closing = closing.clone();
        tokio::spawn(async move {
            let silent = async {
                if timeout(head, begun.cancelled()).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            let talking = async {
                match config {
                    None => talk.over(stream).await,
                    Some(config) => tokio::select! {
                        shaken = TlsAcceptor::from(config).accept(stream) => {
                            // A client that does not trust us breaks off.
                            if let Ok(stream) = shaken {
                                talk.over(stream).await;
                            }
                        }
                        () = closing.cancelled() => {}
                    },
                }
            };
            tokio::select! {
                () = talking => {}
                () = silent => {}
            }
        });
    }
    drop(listener);
    open.shutdown().await;
}

/// One connection.
struct Talk {
    router: Router,
    builder: Builder<TokioExecutor>,
    open: Watcher,
    /// Cancelled by its first request.
    begun: CancellationToken,
}

impl Talk {
    async fn over(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let begun = self.begun;
        let service = self.router.map_request(move |request: Request<_>| {
            begun.cancel();
            request
        });
        let service = TowerToHyperService::new(service);
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        // A client that breaks off is no event.
        let _ = self.open.watch(connection.into_owned()).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::super::tls::tests::{files, issue};
    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_no_whole_head_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "fine" }));
        let closing = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener.into(),
            router,
            Duration::from_millis(200),
            closing.clone(),
        ));
        let asked = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        for (text, answered) in [
            ("", false),
            ("P", false),
            ("PRI * HTTP", false),
            ("GET / HTTP/1.1\r\nhost", false),
            (asked, true),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            // Ends when the server closes.
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer.contains("fine"), answered, "{text:?}: {answer}");
        }
        closing.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_rotated_certificate_serves_new_connections_and_breaks_no_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = issue(dir.path());
        let tls = Arc::new(Tls::open(&files(dir.path())).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let router = Router::new().route("/", axum::routing::get(|| async { "fine" }));
        let closing = CancellationToken::new();
        let port = Port::new(listener, Some(tls));
        let server = tokio::spawn(serve(port, router, HEAD, closing.clone()));
        let client = |ca: &str| {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
            let client = reqwest::Client::builder().tls_certs_only([ca]);
            client.build().unwrap()
        };
        let answer = async |client: &reqwest::Client| client.get(&address).send().await?.text().await;
        let old = client(&first);
        assert_eq!(answer(&old).await.unwrap(), "fine");
        let second = issue(dir.path());
        assert_eq!(answer(&client(&second)).await.unwrap(), "fine");
        // Its connection is kept; a new one would not be trusted.
        assert_eq!(answer(&old).await.unwrap(), "fine");
        assert!(answer(&client(&first)).await.is_err());
        // Without TLS there is no answer.
        let plain = TcpStream::connect(address.trim_start_matches("https://").trim_end_matches('/'));
        let mut plain = plain.await.unwrap();
        plain
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut text = Vec::new();
        let _ = plain.read_to_end(&mut text).await;
        assert!(!String::from_utf8_lossy(&text).contains("fine"));
        closing.cancel();
        server.await.unwrap();
    }
}
