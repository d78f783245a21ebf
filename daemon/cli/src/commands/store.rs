//! `nightlatch bucket` and `nightlatch user`: a node's object store, while its key is held.

use admin::api::{AccessKey, Bucket, CreateBucket, CreateUser, CreatedAccessKey, Done as Removed};

use crate::args::{BucketCommand, UserCommand};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table};

pub(crate) fn buckets(command: &BucketCommand, connections: &Connections, output: Output) -> Done {
    match command {
        BucketCommand::Create { name, node } => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let request = CreateBucket { name: name.clone() };
            let bucket: Bucket = wait(client.post("/v1/buckets", &request))??;
            output.show(&bucket, || format!("Made the bucket {}.", bucket.name))
        }
        BucketCommand::List(node) => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let buckets: Vec<Bucket> = wait(client.get("/v1/buckets"))??;
            output.show(&buckets, || {
                let rows: Vec<_> = buckets
                    .iter()
                    .map(|bucket| vec![bucket.name.clone(), moment(bucket.created_unix_s)])
                    .collect();
                table(&["BUCKET", "MADE"], &rows, "no buckets yet: make one with `nightlatch bucket create`")
            })
        }
        BucketCommand::Delete { name, node } => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let _: Removed = wait(client.delete(&format!("/v1/buckets/{}", segment(name)?)))??;
            output.show(&serde_json::json!({ "removed": name }), || format!("Removed the bucket {name}."))
        }
    }
}

pub(crate) fn users(command: &UserCommand, connections: &Connections, output: Output) -> Done {
    match command {
        UserCommand::Create { name, node } => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let request = CreateUser { name: name.clone() };
            let created: CreatedAccessKey = wait(client.post("/v1/users", &request))??;
            output.show(&created, || {
                format!(
                    "Access key of {}; the secret is shown here and never again:\n  access key  {}\n  secret key  {}",
                    created.user, created.access_key, created.secret_key
                )
            })
        }
        UserCommand::List(node) => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let keys: Vec<AccessKey> = wait(client.get("/v1/users"))??;
            output.show(&keys, || {
                let rows: Vec<_> = keys
                    .iter()
                    .map(|key| vec![key.user.clone(), key.access_key.clone(), moment(key.created_unix_s)])
                    .collect();
                table(
                    &["USER", "ACCESS KEY", "MADE"],
                    &rows,
                    "no users yet: make one with `nightlatch user create`",
                )
            })
        }
        UserCommand::Delete { name, access_key, node } => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let (path, what) = match (name, access_key) {
                (Some(name), _) => (format!("/v1/users/{}", segment(name)?), name),
                (None, Some(key)) => (format!("/v1/access-keys/{}", segment(key)?), key),
                (None, None) => {
                    return Err(Failure::usage("nobody is named", "give a user or --access-key KEY"));
                }
            };
            let _: Removed = wait(client.delete(&path))??;
            output.show(&serde_json::json!({ "removed": what }), || format!("Removed {what}."))
        }
    }
}

/// A name as one segment of a path: refused where it would need escaping.
fn segment(name: &str) -> Done<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(Failure::usage(format!("`{name}` is not a name"), "list what there is first"));
    }
    Ok(name)
}
