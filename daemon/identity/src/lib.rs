//! Who is at the other end of a connection, and what that lets them be: certificates, roles, TLS settings, and
//! the small HTTPS server and client that the control plane speaks.
//!
//! Invariants:
//! - A role is named by exactly one SPIFFE URI in the certificate and is believed only when the class of issuer
//!   that signs this role also signed the certificate. A certificate from the NBD clients' issuer is never an
//!   operator, whatever its URI says, and an operator certificate is never an NBD client.
//! - Control plane connections are TLS 1.3 with X25519MLKEM768 and mutual certificates; there is no resumption, no
//!   ticket and no early data, so every connection proves its certificate again.
//! - A private key file is written with mode 0600, never over an existing file, and refused when other users of
//!   the machine can read it.
//! - Errors name the file or the peer, and say what to do next.
//!
//! What it is not: it makes no decision about what a role may do (that table is `admin`'s and the keyholder's), and
//! a certificate alone never yields a volume key: the keyholder pins each node's key at enrolment.

mod certificate;
mod client;
mod credentials;
mod error;
mod handshakes;
mod node_key;
pub mod pki;
mod serve;
mod spiffe;
mod tls;
mod verify;

pub use certificate::{CertificateFacts, GuestKey, PeerIdentity};
pub use client::{ClientError, Endpoint, HttpsClient, InvalidEndpoint, Problem};
pub use credentials::{Credentials, PrivateFile, Trust, TrustFiles};
pub use error::IdentityError;
pub use handshakes::{HandshakePlace, Handshakes};
pub use node_key::NodeKey;
pub use serve::{ServeLimits, serve_http, serve_https};
pub use spiffe::{InvalidName, IssuerClass, PeerName, Role, SpiffeId, TrustDomain};
pub use tls::{
    ChannelBinding, S3_ALPN, TlsFloor, control_client, control_server, control_server_with_guests,
    handshake_advice, nbd_client, nbd_server, private_client, s3_client, s3_server,
};
pub use verify::ExpectedPeer;
