//! Addresses of the cluster, and the texts of its network configuration.

use std::path::Path;

use serde_json::{Value, json};

/// The node's address. It lies on the loopback interface: the cluster then does not depend on the machine's
/// network, and nothing outside the machine reaches it.
pub const NODE_IP: &str = "10.243.0.1";
/// Addresses of pods.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Addresses of services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The service of the apiserver.
pub const API_SERVICE_IP: &str = "10.96.0.1";
/// The service of CoreDNS.
pub const DNS_IP: &str = "10.96.0.10";
/// Our nft table: family and name.
pub const MASQUERADE_TABLE: &str = "ip qwen-cluster";
/// Name of the CNI network; libcni names its cache files after it.
pub const CNI_NETWORK: &str = "qwen-cluster";

/// nft rules by which pods reach the world outside (models to download) under the machine's own address.
pub fn masquerade() -> String {
    format!(
        "table {MASQUERADE_TABLE}
delete table {MASQUERADE_TABLE}
table {MASQUERADE_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {NODE_IP}, {SERVICE_CIDR} }} masquerade
  }}
}}
"
    )
}

/// CNI configuration. Point-to-point links, not a bridge: all traffic between pods is routed, so service addresses
/// are translated back without bridge netfilter, and no bridge is left over. Addresses are booked in `state`.
pub fn cni(state: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": CNI_NETWORK,
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": state,
                "ranges": [[{ "subnet": POD_CIDR }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

/// A resolv.conf whose servers a pod can reach: not the local stub of systemd-resolved.
pub fn resolv_conf() -> &'static str {
    let real = "/run/systemd/resolve/resolv.conf";
    if Path::new(real).exists() {
        real
    } else {
        "/etc/resolv.conf"
    }
}
