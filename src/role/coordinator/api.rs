//! The coordinator's onboarding API: three requests, the list of authorities and a health check, as an axum router. It carries to the
//! registry and back; the accept loop, TLS and time limits on reading belong to whoever serves it, who also adds
//! an `Extension<SocketAddr>` with the peer's address to every request. Neither codes nor keys reach a log.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;

use crate::wire::limits::MAX_ONBOARDING;
use crate::wire::onboarding::{
    AUTHORITIES_PATH, Authorities, ENROLL_PATH, EnrollRequest, HEALTH_PATH, Health, PAIR_PATH, PairRequest, RENEW_PATH,
    RenewRequest,
};
use crate::wire::{Refusal, RefusalCode};

use super::Registry;
use super::rate::RateLimit;

#[derive(Debug, Clone)]
struct Api {
    registry: Registry,
    rate: Arc<RateLimit>,
}

type Body = Result<Bytes, BytesRejection>;
type Peer = Extension<SocketAddr>;

/// The router. Errors are [`Refusal`] objects with a fitting status.
pub fn router(registry: Registry) -> Router {
    let api = Api { registry, rate: Arc::new(RateLimit::new()) };
    Router::new()
        .route(PAIR_PATH, post(pair))
        .route(ENROLL_PATH, post(enroll))
        .route(RENEW_PATH, post(renew))
        .route(AUTHORITIES_PATH, get(authorities))
        .route(HEALTH_PATH, get(health))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_ONBOARDING))
        .with_state(api)
}

async fn pair(State(api): State<Api>, peer: Peer, body: Body) -> Response {
    api.answer("pair", peer, body, |registry, body| async move {
        registry.pair(&PairRequest::parse(&body)?, SystemTime::now()).await
    })
    .await
}

async fn enroll(State(api): State<Api>, peer: Peer, body: Body) -> Response {
    api.answer("enroll", peer, body, |registry, body| async move {
        registry.enroll(&EnrollRequest::parse(&body)?, SystemTime::now()).await
    })
    .await
}

async fn renew(State(api): State<Api>, peer: Peer, body: Body) -> Response {
    api.answer("renew", peer, body, |registry, body| async move {
        registry.renew(&RenewRequest::parse(&body)?, SystemTime::now()).await
    })
    .await
}

async fn authorities(State(api): State<Api>) -> Json<Authorities> {
    Json(Authorities { authorities: api.registry.authorities().bundle().to_owned() })
}

async fn health() -> Json<Health> {
    Json(Health { status: "ok".into(), version: env!("CARGO_PKG_VERSION").into() })
}

async fn not_found(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    let text = format!("there is nothing at {path}. hint: check the address; a load balancer must not rewrite paths");
    (StatusCode::NOT_FOUND, Json(Refusal::new(RefusalCode::Misdirected, text))).into_response()
}

async fn wrong_method() -> Response {
    let refusal = Refusal::new(RefusalCode::Unsupported, "this method is not served here. hint: check the version");
    (StatusCode::METHOD_NOT_ALLOWED, Json(refusal)).into_response()
}

impl Api {
    async fn answer<T, F>(
        &self,
        what: &str,
        peer: Peer,
        body: Body,
        decide: impl FnOnce(Registry, Bytes) -> F,
    ) -> Response
    where
        T: Serialize,
        F: Future<Output = Result<T, Refusal>>,
    {
        let Extension(address) = peer;
        if let Err(wait) = self.rate.check(address.ip()) {
            tracing::debug!(what, %address, "too many requests");
            return too_many(wait);
        }
        let decided = match body {
            Ok(body) => decide(self.registry.clone(), body).await,
            Err(rejection) => Err(unread(&rejection)),
        };
        match decided {
            Ok(answer) => Json(answer).into_response(),
            Err(refusal) => {
                tracing::warn!(target: "audit", event = "refused", what, %address, code = ?refusal.code, reason = %refusal);
                refused(&refusal)
            }
        }
    }
}

fn unread(rejection: &BytesRejection) -> Refusal {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal::new(RefusalCode::TooLarge, format!("a request of more than {MAX_ONBOARDING} bytes"))
        }
        _ => Refusal::new(RefusalCode::Malformed, "the request could not be read to its end"),
    }
}

fn too_many(wait: Duration) -> Response {
    let seconds = wait.as_secs() + 1;
    let sentence = format!("too many requests from this address. hint: try again in {seconds} s");
    let mut response = refused(&Refusal::new(RefusalCode::Busy, sentence));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn refused(refusal: &Refusal) -> Response {
    (status(refusal.code), Json(refusal)).into_response()
}

fn status(code: RefusalCode) -> StatusCode {
    match code {
        RefusalCode::Malformed | RefusalCode::InvalidArguments => StatusCode::BAD_REQUEST,
        RefusalCode::Denied | RefusalCode::NotDeclared => StatusCode::FORBIDDEN,
        RefusalCode::NotFound => StatusCode::NOT_FOUND,
        RefusalCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalCode::Busy => StatusCode::TOO_MANY_REQUESTS,
        RefusalCode::Unsupported => StatusCode::NOT_IMPLEMENTED,
        RefusalCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        RefusalCode::Unavailable | RefusalCode::TakenOver | RefusalCode::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        RefusalCode::TargetRefused | RefusalCode::TargetUnreachable => StatusCode::BAD_GATEWAY,
        RefusalCode::AddressInUse => StatusCode::CONFLICT,
        RefusalCode::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        RefusalCode::Internal | RefusalCode::Other => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Authority, PrivateKey};
    use crate::role::coordinator::Store;
    use crate::wire::onboarding::{CodeText, PairAnswer};
    use axum::http::Request;
    use tower_service::Service;

    async fn world() -> (tempfile::TempDir, Registry, Router) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("d".parse().unwrap(), SystemTime::now()).unwrap();
        let registry = Registry::new(Store::open(dir.path()).await.unwrap(), authority.into());
        let router = router(registry.clone());
        (dir, registry, router)
    }

    async fn ask(router: &mut Router, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path).body(axum::body::Body::from(body)).unwrap();
        request.extensions_mut().insert(SocketAddr::from(([192, 0, 2, 1], 4711)));
        let response = router.call(request).await.unwrap();
        let status = response.status();
        (status, axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn pairs_over_http() {
        let (_dir, registry, mut router) = world().await;
        let code = registry.invite(Duration::from_secs(60), SystemTime::now()).await.unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = PairRequest {
            code: CodeText::new(code.reveal().as_str()),
            device: "laptop".parse().unwrap(),
            csr: key.csr_pem().unwrap(),
        };
        let body = serde_json::to_vec(&request).unwrap();
        let (status, answer) = ask(&mut router, "POST", PAIR_PATH, body.clone()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(PairAnswer::parse(&answer).unwrap().device, request.device);
        let (status, answer) = ask(&mut router, "POST", PAIR_PATH, body).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(Refusal::from_bytes(&answer).message.contains("used already"));
        let renew = serde_json::to_vec(&RenewRequest { csr: key.csr_pem().unwrap(), trusts: None }).unwrap();
        assert_eq!(ask(&mut router, "POST", RENEW_PATH, renew).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn everything_else_is_a_refusal_object() {
        let (_dir, _, mut router) = world().await;
        let cases = [
            ("POST", PAIR_PATH, b"{".to_vec(), StatusCode::BAD_REQUEST, RefusalCode::Malformed),
            ("POST", ENROLL_PATH, vec![b'x'; 20_000], StatusCode::PAYLOAD_TOO_LARGE, RefusalCode::TooLarge),
            ("GET", RENEW_PATH, vec![], StatusCode::METHOD_NOT_ALLOWED, RefusalCode::Unsupported),
            ("GET", "/v2/pair", vec![], StatusCode::NOT_FOUND, RefusalCode::Misdirected),
        ];
        for (method, path, body, expected, code) in cases {
            let (status, answer) = ask(&mut router, method, path, body).await;
            assert_eq!((status, Refusal::from_bytes(&answer).code), (expected, code), "{path}");
        }
        let (status, answer) = ask(&mut router, "GET", HEALTH_PATH, vec![]).await;
        assert_eq!((status, Health::parse(&answer).unwrap().status.as_str()), (StatusCode::OK, "ok"));
    }

    #[tokio::test]
    async fn too_many_requests_are_refused_and_health_is_not() {
        let (_dir, _, mut router) = world().await;
        let mut last = StatusCode::OK;
        for _ in 0..100 {
            last = ask(&mut router, "POST", RENEW_PATH, vec![]).await.0;
        }
        assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(ask(&mut router, "GET", HEALTH_PATH, vec![]).await.0, StatusCode::OK);
    }
}
