//! Turns a QwenService into Kubernetes objects.
