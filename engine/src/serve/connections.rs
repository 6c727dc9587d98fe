//! Accepts connections and bounds those whose clients send no request: each holds a descriptor, and without any left
//! the probes would fail.
use std::time::Duration;

use axum::{Router, extract::Request, serve::Listener};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Time for the head of a request, from the connection or the answer before it. Longer than gateways keep idle
/// connections, or they would send into closed ones.
pub(super) const HEAD: Duration = Duration::from_secs(75);

/// Serves until `closing`, then until all answers are sent. A connection without a whole head within `head` is closed.
pub(super) async fn serve(
    mut listener: TcpListener,
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
        // Hyper's clock begins once it knows the version of HTTP, so the first request has one of ours.
        let begun = CancellationToken::new();
        let first = begun.clone();
        let service = router.clone().map_request(move |request: Request<_>| {
            first.cancel();
            request
        });
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = open.watch(connection.into_owned());
        tokio::spawn(async move {
            let silent = async {
                if timeout(head, begun.cancelled()).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                // A client that breaks off is no event.
                _ = connection => {}
                () = silent => {}
            }
        });
    }
    drop(listener);
    open.shutdown().await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_no_whole_head_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "fine" }));
        let closing = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
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
}
