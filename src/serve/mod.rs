//! The report of a run as a web app: for more units than fit a file, and to drop a picture on: which units fire, and why?
//!
//! It listens on this machine alone unless told otherwise. Nothing that is sent to it is kept.

mod look;
mod upload;

use std::net::{SocketAddr, TcpListener};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::analysis::UnitName;
use crate::analysis::look::Viewer;
use crate::classify::ReadOut;
use crate::error::{Error, Result};
use crate::report::{Pictures, Report};
use upload::Refused;

/// Pictures that are read at the same time: at most so many times [`MAX_BYTES`](upload::MAX_BYTES) of memory.
const READ_TOGETHER: usize = 32;

/// A run that is served.
pub struct Server {
    /// The page, its list of units and their pages.
    report: Report,
    /// The run's folder.
    run: PathBuf,
    /// The list, which is the same for all.
    listing: Vec<u8>,
    viewer: Viewer,
    /// Which checkpoint looks.
    identity: String,
    /// Read-outs of it, by name.
    readouts: Vec<(String, ReadOut)>,
    /// Pictures that are read at the same time; others wait, so that many at once cost no more memory.
    reading: Semaphore,
    /// And those that are looked at: fewer, so that one that arrives slowly does not hold up those that are there.
    looking: Semaphore,
    /// Names by which this machine is asked for; none if others may ask, by names that are not known.
    hosts: Option<Vec<String>>,
}

/// What a handler gives.
type Answer = std::result::Result<Response, Refused>;

impl Server {
    /// Reads what a run's report shows; `viewer`, with the checkpoint `identity`, looks at the pictures that are dropped.
    ///
    /// # Errors
    /// As [`write_report`](crate::report::write_report).
    pub fn new(run: &Path, viewer: Viewer, identity: String) -> Result<Server> {
        let report = Report::new(run, Pictures::Served)?;
        let listing = serde_json::to_vec(&report.findings.listing(Pictures::Served)?).expect("plain data");
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let (reading, looking) = (Semaphore::new(READ_TOGETHER), Semaphore::new(cores));
        let (readouts, run) = (ReadOut::all_of(run, &identity)?, run.into());
        Ok(Server { report, run, listing, viewer, identity, readouts, reading, looking, hosts: None })
    }

    /// Answers until Ctrl-C; `ready` is told where.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn serve(mut self, address: SocketAddr, ready: impl FnOnce(SocketAddr)) -> Result<()> {
        let cannot =
            |source| Error::Io { path: PathBuf::from(address.to_string()), action: "listen on", source };
        let listener = TcpListener::bind(address).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let bound = listener.local_addr().map_err(cannot)?;
        if bound.ip().is_loopback() {
            let port = bound.port();
            let names = ["localhost", "127.0.0.1", "[::1]"].map(|name| format!("{name}:{port}"));
            self.hosts = Some(names.into_iter().chain([bound.to_string()]).collect());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(cannot)?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(cannot)?;
            ready(bound);
            let ended = async {
                // Without a handler, Ctrl-C would end the process anyway.
                let _ = tokio::signal::ctrl_c().await;
            };
            tokio::select! {
                served = axum::serve(listener, router(Arc::new(self))) => served.map_err(cannot),
                () = ended => Ok(()),
            }
        })
    }

    /// Refuses what another site's page may have sent: a name that someone else has made mean this machine, or a picture from elsewhere.
    fn refusal(&self, headers: &HeaderMap) -> Option<Refused> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if self.hosts.as_ref().is_some_and(|hosts| !hosts.iter().any(|known| known == host)) {
            let why = format!("asked for as `{host}`, which is not a name of this machine");
            return Some(Refused::new(StatusCode::FORBIDDEN, why));
        }
        let origin = text(header::ORIGIN)?;
        let is_own = origin.split_once("://").map(|(_, host)| host) == Some(host);
        (!is_own).then(|| Refused::new(StatusCode::FORBIDDEN, format!("asked by a page of {origin}")))
    }
}

fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/units.json", get(units))
        .route("/unit/{name}", get(unit))
        .route("/pictures/{*path}", get(picture))
        .route("/map/{file}", get(map))
        .route("/look", post(look))
        .route("/explain", post(explain))
        .fallback(|| async { Refused::new(StatusCode::NOT_FOUND, "there is no such page") })
        .layer(middleware::from_fn_with_state(server.clone(), guard))
        .with_state(server)
}

async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    if let Some(refused) = server.refusal(request.headers()) {
        return refused.into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn answer(kind: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, kind)], body.into()).into_response()
}

fn json_answer(value: &impl Serialize) -> Response {
    answer("application/json", serde_json::to_vec(value).expect("plain data"))
}

async fn page(State(server): State<Arc<Server>>) -> Response {
    answer("text/html; charset=utf-8", server.report.html.clone())
}

async fn units(State(server): State<Arc<Server>>) -> Response {
    answer("application/json", server.listing.clone())
}

async fn unit(State(server): State<Arc<Server>>, UrlPath(name): UrlPath<String>) -> Answer {
    let name = named(&name)?;
    match server.report.findings.page_of(name, Pictures::Served)? {
        Some(page) => Ok(json_answer(&page)),
        None => Err(Refused::new(StatusCode::NOT_FOUND, format!("unit {name} is not among those shown"))),
    }
}

fn named(text: &str) -> std::result::Result<UnitName, Refused> {
    let refused = |e| Refused::new(StatusCode::BAD_REQUEST, format!("`{text}` is no unit: {e}"));
    text.parse().map_err(refused)
}

async fn picture(State(server): State<Arc<Server>>, UrlPath(path): UrlPath<PathBuf>) -> Answer {
    file(&server.run.join("visualize"), &path).await
}

async fn map(State(server): State<Arc<Server>>, UrlPath(path): UrlPath<PathBuf>) -> Answer {
    file(&server.run.join("map"), &path).await
}

/// A picture of a folder of the run.
async fn file(folder: &Path, path: &Path) -> Answer {
    let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    let kind = match path.extension().and_then(|ending| ending.to_str()) {
        Some("png") => "image/png",
        Some("jpg") => "image/jpeg",
        _ => return Err(Refused::new(StatusCode::NOT_FOUND, "there is no such picture")),
    };
    if !is_inside {
        return Err(Refused::new(StatusCode::NOT_FOUND, "there is no such picture"));
    }
    let bytes = tokio::fs::read(folder.join(path)).await;
    let bytes = bytes.map_err(|_| Refused::new(StatusCode::NOT_FOUND, "there is no such picture"))?;
    Ok(answer(kind, bytes))
}

async fn look(State(server): State<Arc<Server>>, request: Request) -> Answer {
    with_picture(server, request, |server, picture| {
        let detectors = (&server.report.findings.evaluated[..], &server.identity[..]);
        Ok(json_answer(&look::look(&server.viewer, detectors, &server.readouts, &picture)?))
    })
    .await
}

/// The unit that is to be explained.
#[derive(serde::Deserialize)]
struct Asked {
    unit: String,
}

async fn explain(State(server): State<Arc<Server>>, Query(asked): Query<Asked>, request: Request) -> Answer {
    let name = named(&asked.unit)?;
    with_picture(server, request, move |server, picture| {
        Ok(json_answer(&look::explain(&server.viewer, &picture, name)?))
    })
    .await
}

/// Reads the picture that was sent and works on it, when it is its turn.
async fn with_picture(
    server: Arc<Server>,
    request: Request,
    work: impl FnOnce(&Server, image::DynamicImage) -> std::result::Result<Response, Refused> + Send + 'static,
) -> Answer {
    upload::check_length(request.headers())?;
    let worker = server.clone();
    let _room = server.reading.acquire().await.expect("never closed");
    let bytes = upload::body(request.into_body()).await?;
    let _turn = server.looking.acquire().await.expect("never closed");
    let done = tokio::task::spawn_blocking(move || work(&worker, upload::decode(&bytes)?)).await;
    done.unwrap_or_else(|_| {
        Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "a fault in striate; please report it"))
    })
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&json!({ "error": self.why })).expect("plain data");
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}
