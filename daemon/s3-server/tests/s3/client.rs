//! A small S3 client: signs by version 4 and lets a test see and spoil every byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use objects::NewAccessKey;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::{REGION, Running};

pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
pub(crate) const UNSIGNED_CHUNKS: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// A request to be signed and sent.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) payload: &'static str,
}

impl Asked {
    pub(crate) fn new(method: &'static str, path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers: BTreeMap::new(),
            payload: UNSIGNED,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl std::fmt::Display + Copy) -> Self {
        self.headers.insert(name.to_owned(), value.to_string());
        self
    }

    /// Signs every header there is so far.
    pub(crate) fn sign(self, running: &Running) -> Self {
        self.sign_as(running, &running.key)
    }

    /// The same with another key than the first user's.
    pub(crate) fn sign_as(self, running: &Running, key: &NewAccessKey) -> Self {
        self.sign_with(key, &running.address.to_string())
    }

    /// The same for another host than the server's address.
    pub(crate) fn sign_for(self, running: &Running, host: &str) -> Self {
        self.sign_with(&running.key, host)
    }

    fn sign_with(mut self, key: &NewAccessKey, host: &str) -> Self {
        let now = OffsetDateTime::now_utc();
        let stamp = now.format(format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap();
        let day = &stamp[..8];
        self.headers.insert("host".into(), host.to_owned());
        self.headers.insert("x-amz-date".into(), stamp.clone());
        self.headers.insert("x-amz-content-sha256".into(), self.payload.to_owned());
        let names: Vec<&str> = self.headers.keys().map(String::as_str).collect();
        let signed = names.join(";");
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let mut query: Vec<String> = self
            .query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        query.sort();
        let canonical = format!(
            "{}\n{}\n{}\n{headers}\n{signed}\n{}",
            self.method,
            self.path,
            query.join("&"),
            self.payload
        );
        let scope = format!("{day}/{REGION}/s3/aws4_request");
        let digest = hex(&Sha256::digest(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}");
        let secret = format!("AWS4{}", key.secret.expose());
        let signing = [day, REGION, "s3", "aws4_request"]
            .iter()
            .fold(secret.into_bytes(), |key, part| hmac(&key, part));
        let signature = hex(&hmac(&signing, &text));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}",
            key.id
        );
        self.headers.insert("authorization".into(), authorization);
        self
    }

    /// The head as it goes over the wire.
    pub(crate) fn head(&self) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        let headers: String =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{} {}{query} HTTP/1.1\r\n{headers}\r\n", self.method, self.path)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answered {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(running: &Running) -> Self {
        let stream = TcpStream::connect(running.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends as much as the server takes.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Reads more into the buffer; false at the end of the connection.
    async fn fill(&mut self) -> bool {
        let mut piece = vec![0; 256 * 1024];
        match self.stream.read(&mut piece).await {
            Ok(0) | Err(_) => false,
            Ok(len) => {
                self.buffer.extend_from_slice(&piece[..len]);
                true
            }
        }
    }

    /// Status and headers; the rest stays in the buffer. `None` if the connection ends first.
    pub(crate) async fn read_head(&mut self) -> Option<(u16, BTreeMap<String, String>)> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap();
                let mut lines = head.lines();
                let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                let headers = lines.filter_map(|line| line.split_once(": "));
                let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
                return Some((status, headers));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Up to `len` bytes of body, fewer only at the end of the connection.
    pub(crate) async fn read_body(&mut self, len: usize) -> Vec<u8> {
        while self.buffer.len() < len {
            if !self.fill().await {
                break;
            }
        }
        let len = len.min(self.buffer.len());
        self.buffer.drain(..len).collect()
    }

    /// The answer to what was sent, any "100 Continue" left out.
    pub(crate) async fn answer(&mut self, method: &str) -> Answered {
        loop {
            let (status, headers) = self.read_head().await.unwrap();
            if status == 100 {
                continue;
            }
            let len = match method {
                "HEAD" => 0,
                _ => headers.get("content-length").map_or(0, |len| len.parse().unwrap()),
            };
            let body = self.read_body(len).await;
            return Answered { status, headers, body };
        }
    }

    /// Sends a request with a body and reads the answer.
    pub(crate) async fn ask(&mut self, asked: &Asked, body: &[u8]) -> Answered {
        self.send(asked.head().as_bytes()).await;
        self.send(body).await;
        self.answer(asked.method).await
    }

    pub(crate) async fn get(&mut self, running: &Running, path: &str) -> Answered {
        self.ask(&Asked::new("GET", path).sign(running), b"").await
    }

    pub(crate) async fn put(&mut self, running: &Running, path: &str, body: &[u8]) -> Answered {
        self.ask(&Asked::new("PUT", path).header("content-length", body.len()).sign(running), body).await
    }
}
