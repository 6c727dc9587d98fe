//! Turns a QwenService into Kubernetes objects.
pub mod api;
