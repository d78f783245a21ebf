//! `nightlatch audit export`: entries for other systems.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use audit_log::export::{Origin, cef, frame, syslog};
use audit_log::{Entry, Filter};
use identity::{Credentials, Endpoint, HttpsClient};
use keyholder::api::KeyholderStatus;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::fetch;
use crate::args::{AuditExport, AuditFormat};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::output::{Output, print};

/// Between two looks for new entries.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);

/// Between two attempts to reach a log server.
const RETRY: Duration = Duration::from_secs(5);

/// A log server that takes nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How far an earlier run came.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sent {
    version: u32,
    /// Number of the last entry that was sent.
    seq: u64,
}

const SENT_VERSION: u32 = 1;

struct Exporter<'a> {
    arguments: &'a AuditExport,
    keyholder: HttpsClient,
    filter: Filter,
    origin: Origin,
}

pub(super) fn run(arguments: &AuditExport, connections: &Connections, output: Output) -> Done {
    let keyholder = connections.keyholder(Ask::Trail)?;
    let status: KeyholderStatus = wait(keyholder.get("/v1/status"))??;
    let origin =
        Origin { host: status.name, program: "nightlatch-keyholder".to_owned(), version: status.version };
    let exporter = Exporter { arguments, keyholder, filter: arguments.filter.filter()?, origin };
    let after = match &arguments.state {
        Some(path) => read_state(path)?,
        None => 0,
    };
    match &arguments.to {
        Some(server) => wait(exporter.send(server, after))??,
        None => wait(exporter.write(after, output))??,
    }
    Ok(())
}

fn read_state(path: &Path) -> Done<u64> {
    match std::fs::read(path) {
        Ok(bytes) => match serde_json::from_slice::<Sent>(&bytes) {
            Ok(sent) if sent.version == SENT_VERSION => Ok(sent.seq),
            _ => Err(Failure::local(
                format!("{} does not say how far an export came", path.display()),
                "name the file that an earlier run wrote, or remove it to send everything again",
            )),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Failure::file("read", path, &error)),
    }
}

/// Whole, so that a crash leaves the old number or the new one.
fn write_state(path: &Path, seq: u64) -> Done {
    let beside = path.with_extension("new");
    let text = serde_json::json!({ "version": SENT_VERSION, "seq": seq }).to_string();
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::File::open(&beside)?.sync_all())
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| Failure::file("write", path, &error))
}

impl Exporter<'_> {
    /// Entries after `after` as they are to be written, each with its number.
    async fn next(&self, after: u64) -> Done<Vec<(u64, Option<String>)>> {
        let lines = fetch(&self.keyholder, after).await?;
        let entries = lines.iter().filter_map(|line| Some((Entry::parse(line).ok()?, line)));
        Ok(entries
            .map(|(entry, line)| {
                let text = self.filter.takes(&entry).then(|| self.text(&entry, line));
                (entry.seq, text)
            })
            .collect())
    }

    fn text(&self, entry: &Entry, line: &str) -> String {
        let over_syslog = self.arguments.to.is_some();
        match self.arguments.format {
            AuditFormat::Jsonl if !over_syslog => line.to_owned(),
            AuditFormat::Jsonl | AuditFormat::Syslog => syslog(entry, line, &self.origin),
            AuditFormat::Cef if !over_syslog => cef(entry, &self.origin),
            AuditFormat::Cef => syslog(entry, &cef(entry, &self.origin), &self.origin),
        }
    }

    async fn write(&self, mut after: u64, output: Output) -> Done {
        let mut file = match &self.arguments.output {
            None => None,
            Some(path) => {
                let opened = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
                Some((path, opened.map_err(|error| Failure::file("write", path, &error))?))
            }
        };
        let mut written = 0_u64;
        loop {
            for (seq, text) in self.next(after).await? {
                after = seq;
                let Some(text) = text else { continue };
                written += 1;
                match &mut file {
                    None => print(&text)?,
                    Some((path, file)) => {
                        writeln!(file, "{text}").map_err(|error| Failure::file("write", path, &error))?;
                    }
                }
            }
            if let Some((path, file)) = &file {
                file.sync_all().map_err(|error| Failure::file("write", path, &error))?;
            }
            if let Some(path) = &self.arguments.state {
                write_state(path, after)?;
            }
            if !self.arguments.follow {
                break;
            }
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
        if let Some((path, _)) = &file {
            let summary = serde_json::json!({ "file": path, "entries": written, "last_seq": after });
            output.show(&summary, || format!("Wrote {written} entries to {}.\n", path.display()))?;
        }
        Ok(())
    }

    /// Over TLS. Syslog has no receipts: what was under way when a connection broke is sent again, so a server may see an entry
    /// twice, and its number says so.
    async fn send(&self, server: &Endpoint, mut after: u64) -> Done {
        loop {
            match self.send_on_one_connection(server, &mut after).await {
                Ok(()) => return Ok(()),
                Err(failure) if !self.arguments.follow => return Err(failure),
                Err(failure) => Output::new(false).failure(&failure),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn send_on_one_connection(&self, server: &Endpoint, after: &mut u64) -> Done {
        let mut stream = self.connect(server).await?;
        loop {
            let batch = self.next(*after).await?;
            for (_, text) in &batch {
                let Some(text) = text else { continue };
                let framed = frame(text);
                timely(server, stream.write_all(framed.as_bytes())).await?;
            }
            timely(server, stream.flush()).await?;
            check_open(server, &mut stream).await?;
            if let Some((seq, _)) = batch.last() {
                *after = *seq;
                if let Some(path) = &self.arguments.state {
                    write_state(path, *seq)?;
                }
            }
            if !self.arguments.follow {
                return timely(server, stream.shutdown()).await;
            }
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    }

    async fn connect(&self, server: &Endpoint) -> Done<tokio_rustls::client::TlsStream<TcpStream>> {
        let AuditExport { ca, cert, key, .. } = self.arguments;
        let ca = ca.as_deref().ok_or_else(|| Failure::usage("who vouches for the server?", "give --ca"))?;
        let own = cert.as_deref().zip(key.as_deref());
        let own = own.map(|(cert, key)| Credentials::load(cert, key)).transpose()?;
        let tls = identity::private_client(ca, own.as_ref())?;
        let host = ServerName::try_from(server.host().to_owned())
            .map_err(|error| Failure::usage(format!("{server}: {error}"), "correct the address"))?;
        let dial = async {
            let stream = TcpStream::connect((server.host(), server.port())).await?;
            TlsConnector::from(tls).connect(host, stream).await
        };
        timely(server, dial).await
    }
}

/// A server that has closed says so before more is believed to have arrived.
async fn check_open(server: &Endpoint, stream: &mut (impl AsyncRead + Unpin)) -> Done {
    let mut byte = [0; 1];
    match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut byte)).await {
        Err(_) | Ok(Ok(1..)) => Ok(()),
        Ok(Ok(0)) => Err(gone(server, "it closed the connection")),
        Ok(Err(error)) => Err(gone(server, &error.to_string())),
    }
}

fn gone(server: &Endpoint, why: &str) -> Failure {
    Failure::new(
        Exit::Unreachable,
        "unreachable",
        format!("the log server {}:{} could not be told: {why}", server.host(), server.port()),
        "check its address, its certificate (--ca) and whether it wants one of this side (--cert, --key)",
    )
}

async fn timely<T>(server: &Endpoint, work: impl Future<Output = std::io::Result<T>>) -> Done<T> {
    match tokio::time::timeout(SEND_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| gone(server, &error.to_string())),
        Err(_) => Err(gone(server, "it takes nothing")),
    }
}
