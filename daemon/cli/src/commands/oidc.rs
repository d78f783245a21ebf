//! `nightlatch login --oidc`: logging in at an OpenID provider, in a browser, without a certificate.
//!
//! The authorization code flow with PKCE and a loopback redirect, as native programs have it (RFC 8252, RFC 7636). The key that the login is
//! good with is made here and stays here; its hash is the nonce, so that the provider's token is of no use to anybody else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{Request, StatusCode};
use axum::routing;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use identity::pki::guest_files;
use identity::{Credentials, ExpectedPeer, GuestKey, HttpsClient, PrivateFile, Role, control_client};
use keyholder::api::{OidcLoggedIn, OidcLogin, OidcProvider};
use keyholder::oidc::nonce;
use keyholder::outgoing::Outgoing;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use url::Url;

use crate::args::LoginArgs;
use crate::commands::wait;
use crate::connect::Connections;
use crate::failure::{Done, Exit, Failure};
use crate::output::{Output, duration_ms};
use crate::profile::ProfileIdentity;

/// How long a person may take in the browser.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the provider says of itself (OpenID Connect Discovery 1.0).
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: Url,
    token_endpoint: Url,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

/// What the browser brings back.
#[derive(Debug, Deserialize)]
struct Callback {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

pub(crate) fn login(arguments: &LoginArgs, connections: &Connections, output: Output) -> Done {
    let role = connections.role.unwrap_or(Role::Operator);
    let profile = &connections.profile;
    let below: PathBuf = ["oidc", role.as_str()].iter().collect();
    // The key that logins in this role are made with, once and for all.
    let files = guest_files(&profile.dir().join(&below))?;
    let identity = ProfileIdentity { role, cert: files.cert, key: files.key };
    let credentials = Credentials::load(&identity.cert, &identity.key)?;
    let guest = GuestKey { spki_sha256: credentials.facts().spki_sha256 };
    let tls = control_client(&credentials, &profile.trust()?, ExpectedPeer::role(Role::Keyholder))?;
    let keyholder = HttpsClient::new(connections.keyholder_endpoint()?, tls);
    let made: OidcLoggedIn = wait(async {
        let provider: OidcProvider = keyholder.get("/v1/login/oidc").await?;
        let id_token = ask_provider(&provider, &arguments.ca, &guest, output).await?;
        let request = OidcLogin { id_token, role: Some(role) };
        Done::Ok(keyholder.post("/v1/login/oidc", &request).await?)
    })??;
    let file = identity.key.with_extension("login");
    let _ = std::fs::remove_file(&file);
    PrivateFile::create(&file, made.login.token.as_bytes())?;
    if !profile.identities.contains(&identity) {
        let own = ProfileIdentity { role, cert: below.join("cert.pem"), key: below.join("key.pem") };
        profile.add_identity(&own)?;
    }
    let who = format!("{}/{}", made.role, made.name);
    let lasts = duration_ms(made.login.lasts_ms);
    let factor = made.second_factor;
    let kept = serde_json::json!({ "who": who, "lasts_ms": made.login.lasts_ms, "second_factor": factor, "file": file });
    output.show(&kept, || match factor {
        true => format!("Logged in as {who} for {lasts}, with the provider's second factor.\n"),
        false => format!(
            "Logged in as {who} for {lasts}, without a second factor: where one is asked for, go on with `nightlatch --as {} login`.\n",
            made.role
        ),
    })
}

async fn ask_provider(provider: &OidcProvider, ca: &Path, guest: &GuestKey, output: Output) -> Done<String> {
    let issuer = provider.issuer.trim_end_matches('/');
    let address = parse(&format!("{issuer}/.well-known/openid-configuration"))?;
    let outgoing = Outgoing::for_url(&address, ca)?;
    let request = Request::get("/").body(Body::empty());
    let discovery: Discovery = exchange(&outgoing, &address, request).await?;
    if discovery.issuer.trim_end_matches('/') != issuer {
        return Err(wrong(format!("{issuer} says that it is {}", discovery.issuer)));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (port, listener) = bound.map_err(|error| Failure::local(format!("no port is free: {error}"), ""))?;
    let redirect = format!("http://127.0.0.1:{}/callback", port.port());
    let (state, verifier) = (random()?, random()?);
    let mut page = discovery.authorization_endpoint.clone();
    let scopes = ["openid"].into_iter().chain(provider.scopes.iter().map(String::as_str));
    page.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", &provider.client_id)
        .append_pair("redirect_uri", &redirect)
        .append_pair("scope", &scopes.collect::<Vec<_>>().join(" "))
        .append_pair("state", &state)
        .append_pair("nonce", &nonce(guest))
        .append_pair("code_challenge", &BASE64.encode(Sha256::digest(&verifier)))
        .append_pair("code_challenge_method", "S256");
    if output.is_json() {
        output.announce(&serde_json::json!({ "open": page }))?;
    } else {
        output.note(&format!("Open this page in a browser on this machine:\n  {page}"));
    }
    let code = await_browser(listener, &state, issuer).await?;
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "authorization_code")
        .append_pair("code", &code)
        .append_pair("redirect_uri", &redirect)
        .append_pair("client_id", &provider.client_id)
        .append_pair("code_verifier", &verifier)
        .finish();
    let request = Request::post("/")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(Body::from(form));
    let tokens: Tokens = exchange(&outgoing, &discovery.token_endpoint, request).await?;
    Ok(tokens.id_token)
}

/// Serves the one page that the provider sends the browser to, until it has come.
async fn await_browser(listener: TcpListener, state: &str, issuer: &str) -> Done<String> {
    let (sender, mut callbacks) = mpsc::channel(1);
    let page = |State(sender): State<mpsc::Sender<Callback>>, Query(callback): Query<Callback>| async move {
        let _ = sender.send(callback).await;
        "Nightlatch has heard from your provider; close this page and look at the terminal.\n"
    };
    let router = axum::Router::new().route("/callback", routing::get(page)).with_state(sender);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let until = async {
        let _ = stopped.await;
    };
    let server = tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(until).into_future());
    let ours = async {
        loop {
            let callback = callbacks.recv().await?;
            // Any page can send a browser here; only the provider knows what was asked for.
            let is_ours = callback.state.as_deref() == Some(state)
                && callback.iss.as_deref().is_none_or(|said| said.trim_end_matches('/') == issuer);
            if is_ours {
                return Some(callback);
            }
        }
    };
    let callback = tokio::time::timeout(PATIENCE, ours).await.ok().flatten();
    let _ = stop.send(());
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    let Some(callback) = callback else {
        return Err(Failure::new(
            Exit::Unreachable,
            "timeout",
            format!("nobody came from the provider within {} s", PATIENCE.as_secs()),
            "log in there in a browser on this machine, or forward the port to it",
        ));
    };
    match callback {
        Callback { code: Some(code), error: None, .. } => Ok(code),
        Callback { error, error_description, .. } => {
            let said = error_description.or(error).unwrap_or_else(|| "nothing".to_owned());
            Err(wrong(format!("the provider did not log you in: {said}")))
        }
    }
}

async fn exchange<T: DeserializeOwned>(
    outgoing: &Outgoing,
    url: &Url,
    request: Result<Request<Body>, axum::http::Error>,
) -> Done<T> {
    let request = request.map_err(|error| wrong(format!("{url}: {error}")))?;
    let answer = outgoing.send(url, request).await;
    let (status, body) = answer.map_err(|error| {
        let message = format!("the provider at {url} was not asked: {error}");
        Failure::new(
            Exit::Unreachable,
            "unreachable",
            message,
            "check its address, and its certificate with --ca",
        )
    })?;
    if status != StatusCode::OK.as_u16() {
        let said = String::from_utf8_lossy(&body);
        let said: String = said.chars().filter(|letter| !letter.is_control()).take(300).collect();
        return Err(wrong(format!("the provider answered {status} at {url}: {said}")));
    }
    serde_json::from_slice(&body).map_err(|error| wrong(format!("the provider's answer at {url}: {error}")))
}

fn wrong(message: String) -> Failure {
    Failure::new(Exit::Refused, "provider", message, "have the provider's administrator look at it")
}

fn parse(text: &str) -> Done<Url> {
    text.parse().map_err(|error| wrong(format!("{text} is no address: {error}")))
}

fn random() -> Done<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::local(format!("there are no random bytes: {error}"), "try again"))?;
    Ok(BASE64.encode(bytes))
}
