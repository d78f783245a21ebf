//! `nightlatch mirror` between servers of this file, which do what a real one does not on demand: list what nobody can ask for, change an
//! object between two requests, end a request in between.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use md5::{Digest, Md5};
use serde_json::Value;

#[derive(Clone, Debug, Default)]
struct Object {
    content: Vec<u8>,
    etag: String,
    /// Second of the day.
    modified: u32,
    metadata: Vec<(String, String)>,
}

impl Object {
    fn new(content: &[u8], modified: u32) -> Self {
        let etag = hex::encode(Md5::digest(content));
        Self { content: content.to_vec(), etag, modified, metadata: Vec::new() }
    }

    fn tagged(self, etag: &str) -> Self {
        Self { etag: etag.to_owned(), ..self }
    }

    fn listed(&self, key: &str) -> String {
        let (minutes, seconds) = (self.modified / 60, self.modified % 60);
        let time = format!("2026-01-01T{:02}:{:02}:{seconds:02}.000Z", minutes / 60, minutes % 60);
        format!(
            "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
            self.etag,
            self.content.len()
        )
    }
}

type Hook = Box<dyn FnMut(&mut State, &str) + Send>;

#[derive(Default)]
struct State {
    /// By path, bucket included.
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, String>,
    uploads_begun: u32,
    /// Each request: method and target without its signature.
    requests: Vec<String>,
    now: u32,
    /// Once the answer to a request is made.
    after: Option<Hook>,
}

/// A server with one bucket, `b`.
struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|len| *len > 0)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
        let mut body = vec![0; len];
        stream.read_exact(&mut body).ok()?;
        let url: url::Url = format!("http://b{target}").parse().unwrap();
        let is_signature = |name: &str| name.starts_with("X-Amz-");
        let query = url.query_pairs().filter(|(name, _)| !is_signature(name));
        let query = query.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let path = target.split('?').next()?.to_owned();
        Some(Self { method, path, query, headers, body })
    }

    fn asked(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code></Error>"))
    }

    fn of(object: &Object, range: Option<(usize, usize)>) -> Self {
        let mut headers = object.metadata.clone();
        headers.push(("etag".to_owned(), format!("\"{}\"", object.etag)));
        let (status, body) = match range {
            None => (200, object.content.clone()),
            Some((from, to)) => (206, object.content[from..=to].to_vec()),
        };
        Self { status, headers, body }
    }
}

const XMLNS: &str = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        let Request { method, path, .. } = request;
        if path == "/b/" || path == "/b" {
            return match method.as_str() {
                "GET" => self.list(request.asked("prefix").unwrap_or_default()),
                _ => Answer::new(200, ""),
            };
        }
        let name = path.trim_start_matches('/').to_owned();
        match (method.as_str(), request.asked("uploadId")) {
            ("POST", None) => {
                self.uploads_begun += 1;
                let id = format!("upload-{}", self.uploads_begun);
                self.uploads.insert(id.clone(), name);
                let text = format!(
                    "<InitiateMultipartUploadResult {XMLNS}><Bucket>b</Bucket><Key>k</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                );
                Answer::new(200, text)
            }
            ("DELETE", Some(id)) => match self.uploads.remove(id) {
                Some(_) => Answer::new(204, ""),
                None => Answer::error(404, "NoSuchUpload"),
            },
            // Parts are for nobody here.
            ("PUT", Some(_)) => Answer::error(403, "AccessDenied"),
            ("PUT", None) => {
                let is_kept = |name: &String| name.starts_with("x-amz-meta-");
                let metadata =
                    request.headers.clone().into_iter().filter(|(name, _)| is_kept(name)).collect();
                let object = Object { metadata, ..Object::new(&request.body, self.now) };
                let mut answer = Answer::new(200, "");
                answer.headers.push(("etag".to_owned(), format!("\"{}\"", object.etag)));
                self.objects.insert(name, object);
                answer
            }
            _ => self.get(&name, request),
        }
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        let Some(object) = self.objects.get(name) else { return Answer::error(404, "NoSuchKey") };
        let wanted = request.headers.get("if-match").map(|etag| etag.trim_matches('"'));
        if wanted.is_some_and(|wanted| wanted != object.etag) {
            return Answer::error(412, "PreconditionFailed");
        }
        let range = request.headers.get("range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        Answer::of(object, range)
    }

    fn list(&self, prefix: &str) -> Answer {
        let below = self.objects.iter().filter_map(|(path, object)| Some((path.strip_prefix("b/")?, object)));
        let listed: String = below
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| object.listed(key))
            .collect();
        let text = format!(
            "<ListBucketResult {XMLNS}><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
        );
        Answer::new(200, text)
    }
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn put(&self, key: &str, object: Object) {
        self.state().objects.insert(format!("b/{key}"), object);
    }

    fn content(&self, key: &str) -> Option<Vec<u8>> {
        self.state().objects.get(&format!("b/{key}")).map(|object| object.content.clone())
    }

    /// Requests that change something.
    fn writes(&self) -> Vec<String> {
        let reads = |request: &&String| request.starts_with("GET") || request.starts_with("HEAD");
        self.state().requests.iter().filter(|request| !reads(request)).cloned().collect()
    }
}

fn serve(stream: TcpStream, shared: &Mutex<State>) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader) {
        let answer = {
            let mut state = shared.lock().unwrap();
            let said = format!("{} {}", request.method, request.path);
            state.requests.push(said.clone());
            let answer = state.answer(&request);
            if let Some(mut after) = state.after.take() {
                after(&mut state, &said);
                state.after.get_or_insert(after);
            }
            answer
        };
        let mut head = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = if request.method == "HEAD" { &[][..] } else { &answer.body };
        if writer.write_all(&[head.as_bytes(), body].concat()).is_err() {
            return;
        }
    }
}

struct Mirror<'a> {
    from: &'a Server,
    to: &'a Server,
    dir: tempfile::TempDir,
}

impl<'a> Mirror<'a> {
    fn new(from: &'a Server, to: &'a Server) -> Self {
        Self { from, to, dir: tempfile::tempdir().unwrap() }
    }

    fn journal(&self) -> std::path::PathBuf {
        self.dir.path().join("journal")
    }

    fn run(&self, source: &str, target: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nightlatch"))
            .args(["--json", "mirror", source, target, "--from"])
            .arg(format!("http://{}", self.from.address))
            .arg("--to")
            .arg(format!("http://{}", self.to.address))
            .arg("--journal")
            .arg(self.journal())
            .args(more)
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env_remove("AWS_SESSION_TOKEN")
            .env_remove("AWS_REGION")
            .env_remove("NIGHTLATCH_PROFILE")
            .env("XDG_CONFIG_HOME", "/nonexistent")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

/// The report, and the exit status that it came with.
fn report(output: &Output) -> (Value, i32) {
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text);
    let report = report.unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (report, output.status.code().unwrap())
}

fn failed(report: &Value) -> Vec<&str> {
    let failed = report["failed"].as_array().unwrap().iter();
    let mut keys: Vec<&str> = failed.map(|failed| failed["key"].as_str().unwrap()).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_key_that_no_url_names_is_neither_read_nor_written_and_fails_the_run() {
    let (from, to) = (Server::start(), Server::start());
    for key in ["old/", "old/../other/k", "old/a/../b", "old/./c"] {
        from.put(key, Object::new(b"listed", 1));
    }
    // What the requests would find.
    from.state().objects.insert("other/k".to_owned(), Object::new(b"listed", 1));
    from.put("old/b", Object::new(b"listed", 1));
    to.put("b", Object::new(b"listed", 1));
    let mirror = Mirror::new(&from, &to);
    for more in [&[][..], &["--dry-run"]] {
        let (report, status) = report(&mirror.run("s3://b/old", "s3://b", more));
        assert_eq!(status, 1, "{report}");
        assert_eq!(failed(&report), ["old/", "old/../other/k", "old/./c", "old/a/../b"], "{report}");
        assert_eq!(
            (&report["copied"], &report["unchanged"], &report["gone"]),
            (&0.into(), &1.into(), &0.into())
        );
    }
    assert_eq!(to.writes(), Vec::<String>::new());
    let asked = from.state().requests.clone();
    assert!(asked.iter().all(|request| request == "GET /b/"), "{asked:?}");
}

#[test]
fn an_object_is_gone_only_where_it_is_listed_no_more() {
    let (from, to) = (Server::start(), Server::start());
    from.put("here", Object::new(b"1", 1));
    from.put("kept", Object::new(b"2", 1));
    // Listed, and gone when it is asked for.
    let removed = |state: &mut State, said: &str| {
        if said == "GET /b/" {
            state.objects.remove("b/here");
        }
    };
    from.state().after = Some(Box::new(removed));
    let mirror = Mirror::new(&from, &to);
    let (said, status) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!((status, &said["gone"], &said["copied"]), (0, &1.into(), &1.into()), "{said}");
    // Listed again and again, and never there.
    let flickers = |state: &mut State, said: &str| match said {
        "GET /b/" => drop(state.objects.remove("b/here")),
        _ => drop(state.objects.insert("b/here".to_owned(), Object::new(b"1", 1))),
    };
    from.put("here", Object::new(b"1", 1));
    from.state().after = Some(Box::new(flickers));
    let (said, status) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!((status, &said["gone"], failed(&said)), (1, &0.into(), vec!["here"]), "{said}");
}

#[test]
fn what_is_overwritten_while_it_is_copied_is_copied_the_next_time() {
    let (from, to) = (Server::start(), Server::start());
    for key in ["plain", "parted", "encrypted"] {
        from.put(key, Object::new(b"A", 10).tagged(&format!("{key}-a")));
    }
    // After it was read, and before it is written at the target.
    to.state().now = 30;
    let overwritten = |state: &mut State, said: &str| {
        if let Some(key) = said.strip_prefix("GET /b/").filter(|key| !key.is_empty()) {
            state.objects.insert(format!("b/{key}"), Object::new(b"B", 20).tagged(&format!("{key}-b")));
        }
    };
    from.state().after = Some(Box::new(overwritten));
    let mirror = Mirror::new(&from, &to);
    let (said, status) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!((status, &said["copied"]), (0, &3.into()), "{said}");
    assert_eq!(to.content("in/plain").unwrap(), b"A");
    from.state().after = None;
    let (said, _) = report(&mirror.run("s3://b", "s3://b/in", &["--dry-run"]));
    assert_eq!((&said["copied"], &said["unchanged"]), (&3.into(), &0.into()), "{said}");
    let (said, _) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!((&said["copied"], &said["unchanged"]), (&3.into(), &0.into()), "{said}");
    assert_eq!(to.content("in/plain").unwrap(), b"B");
    // What says of what it is a copy is not copied again, though no tag is like the other, nor its time later.
    for more in [&[][..], &["--exact"]] {
        let (said, _) = report(&mirror.run("s3://b", "s3://b/in", more));
        assert_eq!((&said["copied"], &said["unchanged"]), (&0.into(), &3.into()), "{said}");
    }
    // What does not, by its time.
    to.put("in/plain", Object::new(b"X", 30));
    to.put("in/parted", Object::new(b"X", 20));
    let (said, _) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!((&said["copied"], &said["unchanged"]), (&1.into(), &2.into()), "{said}");
    assert_eq!(
        (to.content("in/plain").unwrap(), to.content("in/parted").unwrap()),
        (b"X".to_vec(), b"B".to_vec())
    );
}

#[test]
fn an_upload_of_an_object_that_is_not_there_any_more_is_ended_and_one_that_goes_on_is_not() {
    let (from, to) = (Server::start(), Server::start());
    let large = vec![7; 17 << 20];
    from.put("gone", Object::new(&large, 1));
    from.put("stays", Object::new(&large, 1));
    let mirror = Mirror::new(&from, &to);
    // No part is taken.
    let (said, status) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!((status, failed(&said).len(), to.state().uploads.len()), (1, 2, 2), "{said}");
    from.state().objects.remove("b/gone");
    let (said, _) = report(&mirror.run("s3://b", "s3://b/in", &[]));
    assert_eq!(failed(&said), ["stays"]);
    assert_eq!(to.state().uploads.values().collect::<Vec<_>>(), ["b/in/stays"]);
}

#[test]
fn a_bucket_is_not_copied_into_itself() {
    let server = Server::start();
    server.put("k", Object::new(b"1", 1));
    let mirror = Mirror::new(&server, &server);
    for (source, target) in [("s3://b", "s3://b/copy"), ("s3://b/x", "s3://b/x/y"), ("s3://b", "s3://b")] {
        let output = mirror.run(source, target, &[]);
        assert_eq!(output.status.code(), Some(2), "{source} {target}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("within the source"));
    }
    assert_eq!(server.writes(), Vec::<String>::new());
    let (said, status) = report(&mirror.run("s3://b/x", "s3://b/xy", &[]));
    assert_eq!((status, &said["objects"]), (0, &0.into()), "beside it");
    assert!(mirror.journal().exists());
}
