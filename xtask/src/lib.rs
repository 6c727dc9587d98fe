//! The project's chores as a library: the local test cluster, container images, and the small helpers they share.

pub mod bench;
pub mod certs;
pub mod chaos;
pub mod cluster;
pub mod debian;
pub mod demo;
pub mod http;
pub mod image;
pub mod images;
pub mod kube;
pub mod paths;
pub mod programs;
pub mod progress;
pub mod proxy;
pub mod python;
pub mod shell;
pub mod wait;
