//! The command line.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::telemetry::LogFormat;
use crate::valid::{Links, Settings};

/// Turns QwenServices into served, monitored and autoscaled Qwen3 models.
#[derive(Debug, Parser)]
#[command(name = "qwen-operator", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch QwenServices and keep their objects right.
    Run(RunArgs),
    /// Print the resource definition as YAML.
    Crds,
    /// Print the fields of a QwenService as Markdown.
    Fields,
    /// Print a Grafana dashboard as JSON.
    Dashboard {
        /// Of what.
        #[arg(value_enum)]
        of: Board,
    },
    /// Print the spec of the PrometheusRule about the operator itself as YAML.
    OwnAlerts,
    /// Print every object that the operator would make for the QwenServices of a file, without a cluster.
    Render(RenderArgs),
    /// Say what a cluster lacks for the operator, a line each with what to do; exit code 1 if something needed is missing.
    Check(CheckArgs),
}

/// Dashboards that are of no single service.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Board {
    /// All services, with a choice of them.
    Fleet,
    /// The operator itself.
    Operator,
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Namespace of the operator: its certificate is there.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of the release, which tells its replicas from another installation.
    #[arg(long, env = "RELEASE", default_value = "qwen-operator")]
    pub release: String,
    /// Namespace of the Lease that one installation for all namespaces can hold.
    #[arg(long, default_value = "kube-system", conflicts_with = "watch_namespace")]
    pub lease_namespace: String,
    /// Name of this replica, unique among all.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Engine image of services that name none.
    #[arg(long, env = "ENGINE_IMAGE")]
    pub engine_image: Option<String>,
    /// Engine image of services on NVIDIA GPUs that name none.
    #[arg(long, env = "CUDA_ENGINE_IMAGE")]
    pub cuda_engine_image: Option<String>,
    /// The release's ClusterRole: it owns the APIServices of the custom metrics API.
    #[arg(long)]
    pub release_cluster_role: Option<String>,
    /// The Service that leads to the custom metrics API; without it and --release-cluster-role none is served.
    #[arg(long, requires = "release_cluster_role")]
    pub metrics_service: Option<String>,
    /// Look at the QwenServices of this namespace alone; by default at those of all.
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "metrics_service")]
    pub watch_namespace: Option<String>,
    /// Where alerts lead to.
    #[command(flatten)]
    pub links: Links,
    /// Port of /healthz, /readyz and /metrics.
    #[arg(long, default_value_t = 8080)]
    pub admin_port: u16,
    /// Port of the custom metrics API.
    #[arg(long, default_value_t = 6443)]
    pub metrics_port: u16,
    /// Form of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged, as a tracing filter.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
}

/// Flags of `render`.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// File with QwenServices; `-` reads standard input.
    #[arg(short, long)]
    pub file: PathBuf,
    /// Engine image of services that name none.
    #[arg(long, env = "ENGINE_IMAGE", default_value = concat!("qwen-engine:", env!("CARGO_PKG_VERSION")))]
    pub engine_image: String,
    /// Engine image of services on NVIDIA GPUs that name none.
    #[arg(long, env = "CUDA_ENGINE_IMAGE", default_value = concat!("qwen-engine-cuda:", env!("CARGO_PKG_VERSION")))]
    pub cuda_engine_image: String,
    /// Namespace of the operator, which the NetworkPolicy lets in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "qwen-system")]
    pub operator_namespace: String,
    /// Where alerts lead to.
    #[command(flatten)]
    pub links: Links,
}

impl RenderArgs {
    /// What the services inherit.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            engine_image: Some(self.engine_image.clone()),
            cuda_engine_image: Some(self.cuda_engine_image.clone()),
            namespace: self.operator_namespace.clone(),
            links: self.links.clone(),
        }
    }
}

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE", default_value = "qwen-system")]
    pub namespace: String,
    /// Name of the Helm release, which its roles and its Service bear.
    #[arg(long, default_value = "qwen-operator")]
    pub release: String,
    /// The one namespace that the operator is limited to, if it is.
    #[arg(long)]
    pub watch_namespace: Option<String>,
    /// Namespace of the operator's Lease, unless it is limited to a namespace: then it is there.
    #[arg(long, default_value = "kube-system")]
    pub lease_namespace: String,
    /// The release serves no metrics API: the chart's metricsApi.enabled is false.
    #[arg(long)]
    pub no_metrics_api: bool,
    /// User whose rights are looked at, such as system:serviceaccount:qwen-system:qwen-operator; by default your own.
    #[arg(long = "as", value_name = "USER")]
    pub as_user: Option<String>,
}

impl CheckArgs {
    /// Whether the release serves custom.metrics.k8s.io: an API of the whole cluster.
    #[must_use]
    pub const fn serves_metrics(&self) -> bool {
        !self.no_metrics_api && self.watch_namespace.is_none()
    }
}

/// An address of this machine on all interfaces.
#[must_use]
pub const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}
