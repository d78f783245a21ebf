//! A UPS by way of Network UPS Tools: the client's side of `upsd`'s protocol (RFC 9271), over TCP.
//!
//! `LIST VAR` is not needed: `GET VAR <ups> ups.status` gives the flags, of which `OL` (on line), `OB` (on battery), `LB` (low
//! battery) and `FSD` (forced shutdown) matter. upsd itself asks the UPS every few seconds, so this is a policy's signal and
//! not a race against physics.
//!
//! Invariants:
//! - An answer is one line of at most [`LINE_BYTES_MAX`]; what is longer, or no answer of the protocol, ends the connection.
//! - `DATA-STALE` and `DRIVER-NOT-CONNECTED` are failures: a UPS that upsd cannot hear is not heard.
//! - A connection is kept between questions and made anew after any failure. Login (`USERNAME`, `PASSWORD`, `LOGIN`) comes
//!   first where a user is named: a logged-in client is one that upsd's master waits for before it cuts the power.
//! - The password is read from its file for each login and is not kept.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use units::BootInstant;

use crate::condition::Condition;
use crate::monitor::Monitor;
use crate::slow::{Slow, SourceError};

/// Longest line that is read: upsd's own limit is 512.
const LINE_BYTES_MAX: u64 = 1024;

/// For connecting, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where and what to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NutSpec {
    /// `host:port`; the port is 3493 where upsd has its usual one.
    pub server: String,
    /// The UPS's name at upsd.
    pub ups: String,
    /// Who to log in as.
    pub login: Option<NutLogin>,
    /// How often to ask.
    pub interval: Duration,
}

/// A user of upsd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NutLogin {
    /// The name in `upsd.users`.
    pub user: String,
    /// A file that holds the password.
    pub password_file: PathBuf,
}

/// The flags of `ups.status` that matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Status {
    on_battery: bool,
    low_battery: bool,
    forced_shutdown: bool,
}

impl Status {
    /// From the value of `ups.status`, as in `OB DISCHRG LB`. Without any flag the driver knows nothing yet.
    fn parse(flags: &str) -> Option<Self> {
        let mut status = Self::default();
        let mut known = false;
        for flag in flags.split_ascii_whitespace() {
            known = true;
            match flag {
                "OB" => status.on_battery = true,
                "LB" => status.low_battery = true,
                "FSD" => status.forced_shutdown = true,
                "WAIT" => return None,
                _ => {}
            }
        }
        // A battery that is low while mains is there (after an outage, or at its end of life) takes nobody down.
        status.low_battery &= status.on_battery;
        known.then_some(status)
    }
}

/// What upsd answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    Ok,
    Var { ups: &'a str, name: &'a str, value: &'a str },
    Error(&'a str),
}

impl<'a> Answer<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim_end_matches(['\r', '\n']);
        if line == "OK" || line.starts_with("OK ") {
            return Some(Self::Ok);
        }
        if let Some(error) = line.strip_prefix("ERR ") {
            return Some(Self::Error(error));
        }
        let (ups, rest) = line.strip_prefix("VAR ")?.split_once(' ')?;
        let (name, quoted) = rest.split_once(' ')?;
        let value = quoted.strip_prefix('"')?.strip_suffix('"')?;
        Some(Self::Var { ups, name, value })
    }
}

/// One connection.
struct Connection {
    lines: BufReader<TcpStream>,
}

impl Connection {
    fn open(server: &str) -> io::Result<Self> {
        let mut last = io::ErrorKind::NotFound.into();
        for address in server.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(TIMEOUT))?;
                    stream.set_write_timeout(Some(TIMEOUT))?;
                    stream.set_nodelay(true)?;
                    return Ok(Self { lines: BufReader::new(stream) });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends one request and reads the line that answers it.
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.lines.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_line(&mut line)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(line)
    }
}

/// A UPS at upsd.
pub struct Nut {
    spec: NutSpec,
    connection: Option<Connection>,
}

impl fmt::Debug for Nut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nut").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Nut {
    /// Nothing is asked yet.
    pub fn new(spec: NutSpec) -> Self {
        Self { spec, connection: None }
    }

    fn malformed(&self, what: &'static str) -> SourceError {
        SourceError::Malformed { server: self.spec.server.clone(), what }
    }

    fn refused(&self, reason: &str) -> SourceError {
        let advice = match reason.split_ascii_whitespace().next().unwrap_or_default() {
            "UNKNOWN-UPS" => "correct the UPS's name; `upsc -l` lists those there are",
            "ACCESS-DENIED" => "correct user and password, or let this address in at upsd",
            "DATA-STALE" | "DRIVER-NOT-CONNECTED" => "look at the UPS's driver and cable",
            "INVALID-PASSWORD" | "INVALID-USERNAME" => {
                "the name or password has characters that upsd does not take"
            }
            _ => "look at upsd's log",
        };
        SourceError::Refused { server: self.spec.server.clone(), reason: reason.to_owned(), advice }
    }

    fn ask(&self, connection: &mut Connection, request: &str) -> Result<String, SourceError> {
        connection.ask(request).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => self.malformed("a line"),
            _ => SourceError::Unreachable { server: self.spec.server.clone(), source },
        })
    }

    fn expect_ok(&self, connection: &mut Connection, request: &str) -> Result<(), SourceError> {
        let line = self.ask(connection, request)?;
        match Answer::parse(&line) {
            Some(Answer::Ok) => Ok(()),
            Some(Answer::Error(reason)) => Err(self.refused(reason)),
            _ => Err(self.malformed("the answer to a login")),
        }
    }

    fn connect(&self) -> Result<Connection, SourceError> {
        let server = &self.spec.server;
        let mut connection = Connection::open(server)
            .map_err(|source| SourceError::Unreachable { server: server.clone(), source })?;
        if let Some(login) = &self.spec.login {
            let password = fs::read_to_string(&login.password_file)
                .map_err(|source| SourceError::unavailable(&login.password_file, source))?;
            self.expect_ok(&mut connection, &format!("USERNAME {}", quoted(&login.user)))?;
            self.expect_ok(&mut connection, &format!("PASSWORD {}", quoted(password.trim_end())))?;
            self.expect_ok(&mut connection, &format!("LOGIN {}", quoted(&self.spec.ups)))?;
        }
        Ok(connection)
    }

    fn status(&self, connection: &mut Connection) -> Result<Status, SourceError> {
        let request = format!("GET VAR {} ups.status", quoted(&self.spec.ups));
        let line = self.ask(connection, &request)?;
        match Answer::parse(&line) {
            Some(Answer::Var { ups, name: "ups.status", value }) if ups == self.spec.ups => {
                Status::parse(value).ok_or_else(|| self.refused("the UPS's driver knows no status yet"))
            }
            Some(Answer::Error(reason)) => Err(self.refused(reason)),
            _ => Err(self.malformed("a UPS's status")),
        }
    }
}

/// An argument of a request.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    // A line's end would begin another request; upsd takes none in an argument.
    let escaped: String = text
        .chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c]))
        .collect();
    format!("\"{escaped}\"")
}

impl Slow for Nut {
    fn interval(&self) -> Duration {
        self.spec.interval
    }

    fn poll(&mut self, now: BootInstant, monitor: &mut Monitor) -> Result<(), SourceError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let status = self.status(&mut connection)?;
        self.connection = Some(connection);
        monitor.on_reading(now, Condition::UpsForcedShutdown, status.forced_shutdown);
        monitor.on_reading(now, Condition::UpsLowBattery, status.low_battery);
        monitor.on_reading(now, Condition::UpsOnBattery, status.on_battery);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use crate::condition::Policy;

    use super::*;

    /// A twin of upsd: answers each line that comes with the next of its script, connection by connection.
    fn twin(script: Vec<Vec<(&'static str, &'static str)>>) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let twin = std::thread::spawn(move || {
            for exchanges in script {
                let (stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream);
                for (request, answer) in exchanges {
                    let mut line = String::new();
                    lines.read_line(&mut line).unwrap();
                    assert_eq!(line, format!("{request}\n"));
                    lines.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        (server, twin)
    }

    fn nut(server: &str, login: Option<NutLogin>) -> Nut {
        Nut::new(NutSpec { server: server.to_owned(), ups: "rack".into(), login, interval: Duration::ZERO })
    }

    fn monitor() -> Monitor {
        let policies = [
            (Condition::UpsOnBattery, Policy::WIPE),
            (Condition::UpsLowBattery, Policy::WIPE),
            (Condition::UpsForcedShutdown, Policy::WIPE),
        ];
        Monitor::new("ups", "nut", true, &policies)
    }

    fn fired(monitor: &mut Monitor) -> Vec<Condition> {
        std::iter::from_fn(|| monitor.next_fired(BootInstant(1))).map(|fired| fired.condition).collect()
    }

    const GET: &str = "GET VAR rack ups.status";

    #[test]
    fn flags_become_conditions() {
        let status = |on_battery, low_battery, forced_shutdown| {
            Some(Status { on_battery, low_battery, forced_shutdown })
        };
        for (flags, expected) in [
            ("OL", status(false, false, false)),
            ("OL CHRG", status(false, false, false)),
            ("OB DISCHRG", status(true, false, false)),
            ("OB LB", status(true, true, false)),
            ("LB OL", status(false, false, false)),
            ("FSD OB LB", status(true, true, true)),
            ("FSD OL", status(false, false, true)),
            ("", None),
            ("WAIT", None),
        ] {
            assert_eq!(Status::parse(flags), expected, "{flags}");
        }
    }

    #[test]
    fn answers_are_parsed_and_nonsense_is_not() {
        let var = Answer::Var { ups: "rack", name: "ups.status", value: "OL CHRG" };
        assert_eq!(Answer::parse("VAR rack ups.status \"OL CHRG\"\n"), Some(var));
        assert_eq!(Answer::parse("OK\n"), Some(Answer::Ok));
        assert_eq!(Answer::parse("ERR DATA-STALE\r\n"), Some(Answer::Error("DATA-STALE")));
        for line in [
            "",
            "\n",
            "VAR",
            "VAR rack",
            "VAR rack ups.status",
            "VAR rack ups.status OL",
            "OKAY",
            "VAR a b \"",
        ] {
            assert_eq!(Answer::parse(line), None, "{line}");
        }
    }

    #[test]
    fn arguments_cannot_carry_a_second_request() {
        assert_eq!(quoted("rack-1.a_b"), "rack-1.a_b");
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted("a\nFSD rack"), "\"aFSD rack\"");
        assert_eq!(quoted("\"\\"), "\"\\\"\\\\\"");
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn one_connection_serves_many_questions() {
        let (server, twin) = twin(vec![vec![
            (GET, "VAR rack ups.status \"OL\"\n"),
            (GET, "VAR rack ups.status \"OB\"\n"),
            (GET, "VAR rack ups.status \"OB LB\"\n"),
            (GET, "VAR rack ups.status \"OL CHRG\"\n"),
        ]]);
        let (mut nut, mut monitor) = (nut(&server, None), monitor());
        let expected: [&[Condition]; 4] = [&[], &[Condition::UpsOnBattery], &[Condition::UpsLowBattery], &[]];
        for conditions in expected {
            nut.poll(BootInstant(1), &mut monitor).unwrap();
            assert_eq!(fired(&mut monitor), conditions);
        }
        assert_eq!(monitor.state().standing(), None);
        twin.join().unwrap();
    }

    #[test]
    fn a_named_user_logs_in_on_every_connection() {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        fs::write(&password_file, "se cret\n").unwrap();
        let exchange = vec![
            ("USERNAME node", "OK\n"),
            ("PASSWORD \"se cret\"", "OK\n"),
            ("LOGIN rack", "OK\n"),
            (GET, "VAR rack ups.status \"OL\"\n"),
        ];
        let (server, twin) = twin(vec![exchange.clone(), exchange]);
        let login = NutLogin { user: "node".into(), password_file };
        let (mut nut, mut monitor) = (nut(&server, Some(login)), monitor());
        nut.poll(BootInstant(1), &mut monitor).unwrap();
        // The first connection has ended: that is noticed, and the next question makes another.
        assert!(nut.poll(BootInstant(1), &mut monitor).is_err());
        nut.poll(BootInstant(1), &mut monitor).unwrap();
        twin.join().unwrap();
    }

    #[test]
    fn what_upsd_refuses_says_what_to_do() {
        for (answer, advice) in [
            ("ERR UNKNOWN-UPS\n", "upsc -l"),
            ("ERR ACCESS-DENIED\n", "password"),
            ("ERR DATA-STALE\n", "cable"),
            ("ERR DRIVER-NOT-CONNECTED\n", "driver"),
            ("ERR SOMETHING-NEW\n", "log"),
            ("VAR rack ups.status \"\"\n", "log"),
            ("VAR other ups.status \"OL\"\n", "no sense"),
            ("BEGIN LIST\n", "no sense"),
        ] {
            let (server, twin) = twin(vec![vec![(GET, answer)]]);
            let (mut nut, mut monitor) = (nut(&server, None), monitor());
            let error = nut.poll(BootInstant(1), &mut monitor).unwrap_err().to_string();
            assert!(error.contains(advice) && error.contains(&server), "{answer}: {error}");
            assert!(nut.connection.is_none(), "after a failure the next question starts anew");
            twin.join().unwrap();
        }
    }

    #[test]
    fn a_line_without_end_is_not_read_for_ever() {
        let endless: &'static str = Box::leak("x".repeat(4096).into_boxed_str());
        let (server, twin) = twin(vec![vec![(GET, endless)]]);
        let error = nut(&server, None).poll(BootInstant(1), &mut monitor()).unwrap_err();
        assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
        twin.join().unwrap();
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_with_its_address() {
        // A port that the system gives to nobody.
        let server = "127.0.0.1:1".to_owned();
        let error = nut(&server, None).poll(BootInstant(1), &mut monitor()).unwrap_err();
        assert!(matches!(&error, SourceError::Unreachable { .. }) && error.to_string().contains(&server));
    }
}
