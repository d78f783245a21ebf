//! Who may use an export, by certificate and address; what the others are told; and what a change does to who is there.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use nbd_server::client::{Client, ClientError, Endpoint, RefusalKind};
use nbd_server::{Access, Client as Certified, Doorkeeper, Errno, Refused};
use rustls::pki_types::CertificateDer;
use tokio_rustls::TlsAcceptor;

use crate::metrics::counter;
use crate::raw::*;
use crate::rig::{PATIENCE, Rig, Setup};
use crate::tls::Pki;

fn access(clients: &[&str], addresses: &[&str], local: bool, read_only: bool) -> Access {
    let clients = clients.iter().map(|text| text.parse().unwrap()).collect();
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Access::new(clients, addresses, local, read_only).unwrap()
}

/// For machines elsewhere only.
fn elsewhere() -> Access {
    access(&[], &["192.0.2.0/24"], false, false)
}

/// Knows one certificate, and remembers whom the server refused.
#[derive(Debug, Default)]
struct Porter {
    known: Option<(CertificateDer<'static>, Certified)>,
    refused: Mutex<Vec<Refused>>,
}

impl Doorkeeper for Porter {
    fn client(&self, certificate: &CertificateDer<'_>) -> Option<Certified> {
        self.known.as_ref().filter(|(known, _)| known == certificate).map(|(_, client)| client.clone())
    }

    fn refused(&self, refused: Refused) {
        self.refused.lock().unwrap().push(refused);
    }
}

impl Rig {
    fn set_access(&self, access: &Access) {
        self.server.set_access(self.export().volume.id(), access);
    }
}

fn rig(access: Access, porter: &Arc<Porter>) -> Rig {
    let doorkeeper = Some(Arc::clone(porter) as Arc<dyn Doorkeeper>);
    Rig::with(Setup { access, doorkeeper, ..Setup::default() })
}

/// Serves the rig's exports over TCP too.
fn over_tcp(rig: &Rig, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let server = rig.server.clone();
    rig.runtime().spawn(async move {
        server.serve_tcp(tokio::net::TcpListener::from_std(listener).unwrap(), tls).await;
    });
    address
}

fn is_policy(refused: &Result<Client, ClientError>) -> bool {
    matches!(refused, Err(ClientError::Refused { kind: RefusalKind::Policy, .. }))
}

#[test]
fn an_export_for_others_is_neither_listed_nor_served_and_each_refusal_is_told() {
    let porter = Arc::<Porter>::default();
    let rig = rig(elsewhere(), &porter);
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(OPT_LIST, &[]);
    assert_eq!(raw.option_reply().1, REP_ERR_POLICY, "there is something, and none of it is for this client");
    let export = nbd_server::Export { access: Access::default(), ..rig.export() };
    rig.server.insert("open", export).unwrap();
    raw.option(OPT_LIST, &[]);
    assert_eq!(raw.option_reply(), (OPT_LIST, REP_SERVER, name("open")));
    assert_eq!(raw.option_reply().1, REP_ACK);
    assert!(porter.refused.lock().unwrap().is_empty(), "a listing asks for nothing");

    raw.option(OPT_STRUCTURED_REPLY, &[]);
    assert_eq!(raw.option_reply().1, REP_ACK);
    let asked = [
        (OPT_INFO, go("disk")),
        (OPT_GO, go("disk")),
        (OPT_LIST_META_CONTEXT, queries("disk", &[])),
        (OPT_SET_META_CONTEXT, queries("disk", &["base:allocation"])),
    ];
    for (option, data) in &asked {
        raw.option(*option, data);
        let (_, reply, message) = raw.option_reply();
        assert_eq!(reply, REP_ERR_POLICY, "option {option}");
        assert!(String::from_utf8(message).unwrap().contains("volume access"));
    }
    let mut old = Raw::greeted(&rig.socket);
    old.option(OPT_EXPORT_NAME, b"disk");
    old.expect_end();
    let told = porter.refused.lock().unwrap().clone();
    let volume = rig.export().volume.id();
    assert_eq!(told, vec![Refused { volume, address: None, client: None }; asked.len() + 1]);
    assert_eq!(counter(&rig, "nbd_access_refused_total", &volume.to_string()), told.len() as u64);
    // The session may go on with what is for it.
    raw.option(OPT_GO, &go("open"));
    while raw.option_reply().1 != REP_ACK {}
    raw.request(READ, 0, 1, 0, 512);
    assert_eq!(raw.chunk().payload[8..], [0; 512]);
}

#[test]
fn addresses_and_certificates_decide_over_tcp_and_the_unix_socket_has_a_word_of_its_own() {
    let pki = Pki::new();
    let client = Certified { name: "db".to_owned(), key: [7; 32] };
    let porter = Arc::new(Porter { known: Some((pki.client_der(), client.clone())), ..Porter::default() });
    let rig = rig(Access::default(), &porter);
    let (plain, tls) = (over_tcp(&rig, None), over_tcp(&rig, Some(pki.acceptor())));
    let connect = |address: SocketAddr| {
        let endpoint = Endpoint::tcp(address).with_timeout(PATIENCE);
        let endpoint = if address == tls { pki.certified(endpoint) } else { endpoint };
        Client::connect(&endpoint, "disk")
    };
    let key = format!("sha256:{}", "07".repeat(32));
    for (lists, over_tls, in_clear, local) in [
        (access(&[], &[], false, false), true, true, true),
        (access(&[], &["127.0.0.0/8"], false, false), true, true, false),
        (access(&[], &["192.0.2.0/24"], true, false), false, false, true),
        (access(&["db"], &[], false, false), true, false, false),
        (access(&["web", &key], &[], true, false), true, false, true),
        (access(&["web"], &[], false, false), false, false, false),
        (access(&["db"], &["127.0.0.1"], false, false), true, false, false),
        (access(&["db"], &["127.0.0.2"], false, false), false, false, false),
    ] {
        rig.set_access(&lists);
        for (connected, admitted) in [
            (connect(tls), over_tls),
            (connect(plain), in_clear),
            (Client::connect(&rig.endpoint(), "disk"), local),
        ] {
            assert!(connected.is_ok() == admitted && (admitted || is_policy(&connected)), "{lists:?}");
        }
    }
    let last = porter.refused.lock().unwrap().iter().rev().find(|refused| refused.client.is_some()).cloned();
    let last = last.expect("a refusal over TLS");
    assert_eq!((last.client, last.address), (Some(client), Some("127.0.0.1".parse().unwrap())));
}

#[test]
fn whoever_a_change_shuts_out_is_cut_off_and_the_others_notice_nothing() {
    let rig = rig(Access::default(), &Arc::default());
    let tcp = over_tcp(&rig, None);
    let mut stays = Client::connect(&Endpoint::tcp(tcp).with_timeout(PATIENCE), "disk").unwrap();
    let mut goes = Raw::structured(&rig.socket);
    goes.request(READ, 0, 1, 0, 512);
    goes.chunk();
    rig.set_access(&access(&[], &["127.0.0.1"], false, false));
    goes.expect_end();
    stays.write(0, &[1; 4096], true).unwrap();
    assert!(is_policy(&Client::connect(&rig.endpoint(), "disk")));
    rig.set_access(&access(&[], &["127.0.0.1"], true, false));
    let mut read = [0; 512];
    rig.client().read(0, &mut read).unwrap();
    assert_eq!(read, [1; 512]);
    stays.read(0, &mut read).unwrap();
}

#[test]
fn what_is_for_nobody_is_refused_to_everybody_and_cuts_off_who_is_there() {
    let rig = rig(Access::nobody(), &Arc::default());
    let tcp = over_tcp(&rig, None);
    let endpoints = [rig.endpoint(), Endpoint::tcp(tcp).with_timeout(PATIENCE)];
    assert!(endpoints.iter().all(|endpoint| is_policy(&Client::connect(endpoint, "disk"))));
    rig.set_access(&Access::default());
    rig.client().write(0, &[1; 512], false).unwrap();
    let mut there = Raw::structured(&rig.socket);
    there.request(READ, 0, 1, 0, 512);
    there.chunk();
    rig.set_access(&Access::nobody());
    there.expect_end();
    assert!(endpoints.iter().all(|endpoint| is_policy(&Client::connect(endpoint, "disk"))));
}

#[test]
fn an_access_to_read_only_refuses_changes_at_once_and_a_snapshot_stays_so() {
    let rig = rig(Access::default(), &Arc::default());
    let mut before = rig.client();
    before.write(0, &[1; 512], false).unwrap();
    rig.snapshot(1);
    rig.set_access(&access(&[], &[], false, true));
    assert_eq!(before.write(0, &[2; 512], false).unwrap_err().errno(), Some(Errno::NotPermitted));
    assert_eq!(before.trim(0, 4096, false).unwrap_err().errno(), Some(Errno::NotPermitted));
    let mut after = rig.client();
    assert!(after.info().read_only());
    assert_eq!(after.write(0, &[2; 512], false).unwrap_err().errno(), Some(Errno::NotPermitted));
    rig.set_access(&Access::default());
    before.write(0, &[3; 512], false).unwrap();
    assert_eq!(
        after.write(0, &[4; 512], false).unwrap_err().errno(),
        Some(Errno::NotPermitted),
        "what it was told holds for as long as the connection does"
    );
    assert!(!rig.client().info().read_only());

    let mut snapshot = Client::connect(&rig.endpoint(), "disk@1").unwrap();
    assert!(snapshot.info().read_only());
    assert_eq!(snapshot.write(0, &[4; 512], false).unwrap_err().errno(), Some(Errno::NotPermitted));
}

#[test]
fn a_write_whose_payload_comes_after_a_change_is_held_against_the_change() {
    let rig = rig(Access::default(), &Arc::default());
    let tcp = over_tcp(&rig, None);
    let half_sent = || {
        let mut raw = Raw::structured(&rig.socket);
        raw.request(WRITE, 0, 7, 0, 8192);
        raw.send(&[9; 4096]);
        raw
    };
    rig.client().write(0, &[1; 8192], true).unwrap();
    let holds = |fill: u8| {
        let mut read = [0; 8192];
        let endpoint = Endpoint::tcp(tcp).with_timeout(PATIENCE);
        Client::connect(&endpoint, "disk").unwrap().read(0, &mut read).unwrap();
        assert!(read == [fill; 8192], "{}", read[0]);
    };
    let mut raw = half_sent();
    rig.set_access(&access(&[], &[], false, true));
    raw.send(&[9; 4096]);
    assert_eq!(raw.chunk().errno(), Some(EPERM));
    holds(1);
    rig.set_access(&Access::default());
    let mut raw = half_sent();
    rig.set_access(&access(&[], &["127.0.0.1"], false, false));
    raw.send_what_goes(&[9; 4096]);
    raw.expect_end();
    holds(1);
}
