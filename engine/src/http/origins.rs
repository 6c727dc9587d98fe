//! CORS: pages of which origins may read answers in a browser, as vLLM's flags say it.
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Everything is allowed, as in vLLM.
const ANY: &str = "*";

/// What pages of other origins may do; each list is JSON, `["*"]` means anything.
#[derive(Debug, Clone, Copy)]
pub struct Origins<'a> {
    /// `--allowed-origins`
    pub origins: &'a str,
    /// `--allowed-methods`
    pub methods: &'a str,
    /// `--allowed-headers`
    pub headers: &'a str,
    /// `--allow-credentials`
    pub credentials: bool,
}

impl Origins<'_> {
    /// What answers such pages; `None` where no origin is allowed.
    ///
    /// # Errors
    /// A sentence on the flag that is no list of such names.
    pub fn layer(self) -> Result<Option<CorsLayer>, String> {
        let origins: Option<Vec<HeaderValue>> = list("--allowed-origins", self.origins)?;
        if origins.as_ref().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        let methods: Option<Vec<Method>> = list("--allowed-methods", self.methods)?;
        let headers: Option<Vec<HeaderName>> = list("--allowed-headers", self.headers)?;
        let layer = CorsLayer::new()
            .allow_origin(match origins {
                Some(origins) => AllowOrigin::list(origins),
                // Browsers send no cookies to a server that names any origin.
                None if self.credentials => AllowOrigin::mirror_request(),
                None => AllowOrigin::any(),
            })
            .allow_methods(methods.map_or_else(AllowMethods::mirror_request, AllowMethods::list))
            .allow_headers(headers.map_or_else(AllowHeaders::mirror_request, AllowHeaders::list))
            .allow_credentials(self.credentials);
        Ok(Some(layer))
    }
}

/// The names of a list; `None` for all.
fn list<T: for<'a> TryFrom<&'a str>>(flag: &str, json: &str) -> Result<Option<Vec<T>>, String> {
    let refused =
        || format!("{flag} is {json}; give a JSON list such as [\"*\"] or [\"https://example.org\"]");
    let names: Vec<String> = serde_json::from_str(json).map_err(|_| refused())?;
    if names.iter().any(|name| name == ANY) {
        return Ok(None);
    }
    let parsed = names.iter().map(|name| T::try_from(name).map_err(|_| refused()));
    parsed.collect::<Result<_, _>>().map(Some)
}
