//! Clients as people use them.

use std::process::Command;
use std::time::Duration;

use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use s3_server::S3Options;

use crate::client::Client;
use crate::server::{BUCKET, REGION, Running, options};

/// Runs a client's suite against the server. Machines without the client can't; CI has it.
async fn run_suite(running: &Running, import: &str, script: &str, more: &[(&str, &str)]) {
    let installed =
        Command::new("python3").args(["-c", import]).output().is_ok_and(|out| out.status.success());
    if !installed {
        assert!(
            std::env::var_os("CI").is_none(),
            "`{import}` fails: run the script that installs the test clients"
        );
        println!("skipped: `{import}` fails on this machine");
        return;
    }
    let mut suite = Command::new("python3");
    suite
        .arg(format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR")))
        .arg(format!("http://{}", running.address))
        .env("AWS_ACCESS_KEY_ID", &running.key.id)
        .env("AWS_SECRET_ACCESS_KEY", running.key.secret.expose())
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(more.iter().copied());
    let output = tokio::task::spawn_blocking(move || suite.output()).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_does_what_its_documentation_says() {
    let running = Running::start().await;
    run_suite(&running, "import boto3", "boto3_suite.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_signs_with_version_2_where_that_is_allowed() {
    let options = S3Options { signature_v2: true, ..options() };
    let running = Running::start_with(options).await;
    let more = [("SIGNATURE_V2", "yes"), ("STEPS", "buckets conditional_writes presigned")];
    run_suite(&running, "import boto3", "boto3_suite.py", &more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_gets_what_it_may_and_nothing_else() {
    let running = Running::start().await;
    let store = std::sync::Arc::clone(&running.store);
    let other = tokio::task::spawn_blocking(move || store.create_user("other").unwrap()).await.unwrap();
    let more = [("OTHER_ACCESS_KEY", &*other.id), ("OTHER_SECRET_KEY", other.secret.expose())];
    run_suite(&running, "import boto3", "boto3_access.py", &more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_configures_keys_lifecycles_and_forms() {
    let running = Running::start().await;
    let lifecycles = running.server.clone();
    tokio::spawn(async move { lifecycles.keep_lifecycles(Duration::from_secs(1)).await });
    run_suite(&running, "import boto3", "boto3_settings.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_presigned_by_another_library_are_taken() {
    let running = Running::start().await;
    let endpoint = format!("http://{}", running.address).parse().unwrap();
    let bucket = Bucket::new(endpoint, UrlStyle::Path, BUCKET, REGION).unwrap();
    let credentials = Credentials::new(&running.key.id, running.key.secret.expose());
    let path = |url: url::Url| format!("{}?{}", url.path(), url.query().unwrap());
    let host = running.address;
    let mut client = Client::connect(&running).await;
    let put = path(bucket.put_object(Some(&credentials), "dir/a b+c").sign(Duration::from_secs(60)));
    client
        .send(format!("PUT {put} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\n\r\nhello").as_bytes())
        .await;
    assert_eq!(client.answer("PUT").await.status, 200);
    let get = path(bucket.get_object(Some(&credentials), "dir/a b+c").sign(Duration::from_secs(60)));
    client.send(format!("GET {get} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
    assert_eq!(client.answer("GET").await.body, b"hello");
}
