//! An S3 server on a volume in memory, to point clients at: `cargo run -p s3-server --example memory -- 127.0.0.1:9000`.
//! More arguments are names of users to make. `SECONDS_PER_DAY` makes the days of lifecycles shorter.
//!
//! Prints the access keys it made. Nothing is kept. With a line on standard input the key is wiped (`seal`) or pushed again
//! (`unseal`).

use std::io::BufRead;
use std::time::Duration;

use objects::Store;
use objects::simulated::SimulatedVolume;
use s3_server::{S3Options, S3Server};
use tokio::net::TcpListener;
use units::ByteLen;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned());
    let mut volume = SimulatedVolume::new(ByteLen(1 << 40));
    let mut store = Store::open(volume.clone())?;
    for user in std::iter::once("demo".to_owned()).chain(std::env::args().skip(2)) {
        let key = store.create_user(&user)?;
        println!("{user}: AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}", key.id, key.secret.expose());
    }
    let options = S3Options { region: "us-east-1".to_owned(), signature_v2: true, ..S3Options::default() };
    let server = S3Server::with_options(options)?;
    server.set_store(Some(store.clone()));
    let serving = server.clone();
    let listener = TcpListener::bind(&address).await?;
    println!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { serving.serve(listener, None).await });
    let lifecycles = server.clone();
    let day = std::env::var("SECONDS_PER_DAY").ok().and_then(|text| text.parse().ok()).unwrap_or(86_400);
    tokio::spawn(async move { lifecycles.keep_lifecycles(Duration::from_secs(day)).await });
    tokio::task::spawn_blocking(move || -> Result<(), objects::StoreError> {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.trim() {
                "seal" => {
                    volume.wipe_key();
                    server.set_store(None);
                    store.close();
                }
                "unseal" => {
                    volume = volume.unlocked_again();
                    store = Store::open(volume.clone())?;
                    server.set_store(Some(store.clone()));
                }
                other => println!("seal or unseal, not `{other}`"),
            }
        }
        Ok(())
    })
    .await??;
    Ok(())
}
