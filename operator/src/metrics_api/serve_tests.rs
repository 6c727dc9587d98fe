//! A real TLS client against the real server on 127.0.0.1; only the API server behind it is a mock.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;

use super::*;
use crate::load::{EnginePod, Sample};
use crate::metrics_api::certificate::{Material, ServingCertificate};
use crate::metrics_api::material;
use crate::testing::{Call, mock};

const GROUP_VERSION: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const METRIC: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team/pods/%2A/vllm:num_requests_waiting";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn sign(&self, name: &str, organization: Option<&str>) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(organization) = organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }
}

struct World {
    proxy: Authority,
    users: Authority,
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    certificate: ServingCertificate,
    reviews: Arc<Mutex<Vec<Call>>>,
    active: watch::Sender<Option<Arc<Active>>>,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

fn rules(proxy: &Authority, users: &Authority) -> BTreeMap<String, String> {
    [
        ("requestheader-client-ca-file", proxy.pem.as_str()),
        ("client-ca-file", &users.pem),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn board() -> LoadBoard {
    let board = LoadBoard::default();
    for (name, waiting) in [("chat-1", 9.0), ("other-1", 1.0)] {
        let pod = EnginePod {
            namespace: "team".into(),
            name: name.into(),
            uid: name.into(),
            service: name.into(),
            labels: BTreeMap::from([("app".into(), name.trim_end_matches("-1").into())]),
            address: Some([127, 0, 0, 1].into()),
            ..EnginePod::default()
        };
        board.put(pod.clone());
        board.answer(
            &pod,
            Sample {
                waiting,
                running: 2.0,
                kv_usage: 0.5,
                ..Sample::default()
            },
        );
    }
    board
}

/// A server that lets only the users `hpa` and `system:kube-aggregator` in.
async fn world() -> World {
    let (proxy, users) = (Authority::new("proxy CA"), Authority::new("cluster CA"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = Arc::new(Trust::from_config(&rules(&proxy, &users), &provider).unwrap());
    let made = Material::generate("localhost", "x", None, jiff::Timestamp::now()).unwrap();
    let certificate = ServingCertificate::read(&made.secret("s", "x", None)).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(made.ca_bundle.as_bytes()).unwrap())
        .unwrap();
    let (client, reviews) = mock(|call| {
        let allowed =
            ["hpa", "system:kube-aggregator"].contains(&call.body["spec"]["user"].as_str().unwrap());
        (201, json!({"spec": {}, "status": {"allowed": allowed}}))
    });
    let app = Arc::new(App {
        board: board(),
        authorizer: Authorizer::new(client),
        metrics: Metrics::new().unwrap(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (active, seen) = watch::channel(Some(Arc::new(
        material::active(&trust, &certificate, &provider).unwrap(),
    )));
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, seen, app, shutdown.clone()));
    World {
        proxy,
        users,
        address,
        roots: roots.into(),
        certificate,
        reviews,
        active,
        shutdown,
        server,
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl World {
    async fn connect(&self, identity: Option<Identity>) -> Outcome<Sender> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone());
        let config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost.x.svc")?;
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn get(
        &self,
        identity: Option<Identity>,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Outcome<(u16, Value)> {
        let mut sender = self.connect(identity).await?;
        ask(&mut sender, path, headers).await
    }

    fn front_proxy(&self) -> Option<Identity> {
        Some(self.proxy.sign("front-proxy-client", None))
    }
}

async fn ask(sender: &mut Sender, path: &str, headers: &[(&str, &str)]) -> Outcome<(u16, Value)> {
    let mut request = http::Request::get(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::new())?).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

#[tokio::test]
async fn the_front_proxy_speaks_for_the_hpa() {
    let world = world().await;
    let headers = [
        ("X-Remote-User", "hpa"),
        ("X-Remote-Group", "system:serviceaccounts"),
        ("X-Remote-Group", "more"),
        ("X-Remote-Extra-Scopes%2fa", "b"),
    ];
    let path = format!("{METRIC}?labelSelector=app%3Dchat");
    let (status, list) = world.get(world.front_proxy(), &path, &headers).await.unwrap();
    assert_eq!(
        (
            status,
            &list["items"][0]["value"],
            list["items"].as_array().unwrap().len()
        ),
        (200, &json!("9"), 1)
    );
    let review = &world.reviews.lock().unwrap()[0];
    assert_eq!(
        review.line,
        "POST /apis/authorization.k8s.io/v1/subjectaccessreviews?"
    );
    assert_eq!(
        review.body["spec"]["groups"],
        json!(["system:serviceaccounts", "more", "system:authenticated"])
    );
    assert_eq!(review.body["spec"]["extra"], json!({"scopes/a": ["b"]}));
    assert_eq!(
        review.body["spec"]["resourceAttributes"]["subresource"],
        "vllm:num_requests_waiting"
    );
}

#[tokio::test]
async fn a_user_without_the_right_is_forbidden() {
    let world = world().await;
    let (status, body) = world
        .get(world.front_proxy(), METRIC, &[("X-Remote-User", "eve")])
        .await
        .unwrap();
    assert_eq!((status, body["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(
        body["message"],
        "user \"eve\" may not get pods/vllm:num_requests_waiting of custom.metrics.k8s.io in namespace team"
    );
}

#[tokio::test]
async fn headers_without_the_proxys_certificate_count_for_nothing() {
    let world = world().await;
    let headers = [("X-Remote-User", "hpa")];
    let wrong_name = Some(world.proxy.sign("somebody", None));
    assert_eq!(world.get(None, METRIC, &headers).await.unwrap().0, 401);
    assert_eq!(world.get(wrong_name, METRIC, &headers).await.unwrap().0, 401);
    // A cluster user who calls himself like the proxy is that user, and nobody else.
    let pretender = Some(world.users.sign("front-proxy-client", None));
    assert_eq!(world.get(pretender, METRIC, &headers).await.unwrap().0, 403);
    assert_eq!(
        world.reviews.lock().unwrap()[0].body["spec"]["user"],
        "front-proxy-client"
    );
}

#[tokio::test]
async fn a_certificate_of_a_stranger_does_not_get_past_the_handshake() {
    let world = world().await;
    let stranger = Some(Authority::new("proxy CA").sign("front-proxy-client", None));
    assert!(world.get(stranger, "/healthz", &[]).await.is_err());
}

#[tokio::test]
async fn a_cluster_users_own_certificate_names_user_and_groups() {
    let world = world().await;
    let user = Some(world.users.sign("hpa", Some("ops")));
    assert_eq!(world.get(user, METRIC, &[]).await.unwrap().0, 200);
    let review = world.reviews.lock().unwrap()[0].body.clone();
    assert_eq!(review["spec"]["groups"], json!(["ops", "system:authenticated"]));
}

#[tokio::test]
async fn the_aggregators_availability_check_is_answered() {
    let world = world().await;
    let aggregator = [("X-Remote-User", "system:kube-aggregator")];
    for (path, kind) in [
        (GROUP_VERSION, "APIResourceList"),
        ("/apis/custom.metrics.k8s.io", "APIGroup"),
    ] {
        let (status, body) = world.get(world.front_proxy(), path, &aggregator).await.unwrap();
        assert_eq!((status, body["kind"].as_str()), (200, Some(kind)));
    }
    let reviews = world.reviews.lock().unwrap();
    assert_eq!(
        reviews[0].body["spec"]["nonResourceAttributes"],
        json!({"path": GROUP_VERSION, "verb": "get"})
    );
}

#[tokio::test]
async fn failures_are_statuses_that_say_what_was_wrong() {
    let world = world().await;
    let pods = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team/pods";
    for (path, status, message) in [
        (format!("{pods}/*/up"), 404, "no metric \"up\" of pods is known"),
        (
            format!("{pods}/gone/vllm:num_requests_waiting"),
            404,
            "pod team/gone has not reported",
        ),
        (
            format!("{METRIC}?labelSelector=a%3Eb"),
            400,
            "label selector has the requirement \"a>b\"",
        ),
        (
            format!("{METRIC}?metricLabelSelector=a"),
            400,
            "leave out metricLabelSelector",
        ),
        ("/apis/custom.metrics.k8s.io/v1".into(), 404, "version \"v1\""),
        ("/openapi/v2".into(), 404, "/openapi/v2 is not served here"),
    ] {
        let (code, body) = world
            .get(world.front_proxy(), &path, &[("X-Remote-User", "hpa")])
            .await
            .unwrap();
        let text = body["message"].as_str().unwrap();
        assert!(
            code == status && body["kind"] == "Status" && text.contains(message),
            "{path}: {code} {text}"
        );
    }
}

#[tokio::test]
async fn one_pod_can_be_asked_by_name() {
    let world = world().await;
    let path = METRIC.replace("%2A", "other-1");
    let (_, list) = world
        .get(world.front_proxy(), &path, &[("X-Remote-User", "hpa")])
        .await
        .unwrap();
    assert_eq!(list["items"][0]["describedObject"]["name"], "other-1");
}

#[tokio::test]
async fn health_needs_nothing() {
    assert_eq!(world().await.get(None, "/healthz", &[]).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_rotated_proxy_ca_ends_old_connections_and_old_trust() {
    let world = world().await;
    let hpa = [("X-Remote-User", "hpa")];
    let mut open = world.connect(world.front_proxy()).await.unwrap();
    assert_eq!(ask(&mut open, METRIC, &hpa).await.unwrap().0, 200);

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let next = Authority::new("proxy CA 2");
    let trust = Arc::new(Trust::from_config(&rules(&next, &world.users), &provider).unwrap());
    let fresh = material::active(&trust, &world.certificate, &provider).unwrap();
    world.active.send_replace(Some(Arc::new(fresh)));

    while open.ready().await.is_ok() {
        if ask(&mut open, METRIC, &hpa).await.is_err() {
            break;
        }
    }
    assert!(world.get(world.front_proxy(), METRIC, &hpa).await.is_err());
    assert_eq!(
        world
            .get(Some(next.sign("front-proxy-client", None)), METRIC, &hpa)
            .await
            .unwrap()
            .0,
        200
    );
}

#[tokio::test]
async fn the_server_ends_with_the_shutdown() {
    let world = world().await;
    world.shutdown.cancel();
    world.server.await.unwrap();
}
