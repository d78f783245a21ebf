//! `nightlatch bucket` and `nightlatch quota`: the buckets of a node's object store, while its key is held.

use admin::api::{Bucket, CreateBucket, Done as Removed, Identities, IdentityChange, Quota, QuotaOf};
use units::ByteLen;

use crate::args::{BucketCommand, QuotaCommand};
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
                    .map(|bucket| {
                        let owner = if bucket.owner.is_empty() { "all users" } else { &bucket.owner };
                        let size = ByteLen(bucket.bytes).to_string();
                        let objects = bucket.objects.to_string();
                        vec![
                            bucket.name.clone(),
                            owner.to_owned(),
                            objects,
                            size,
                            moment(bucket.created_unix_s),
                        ]
                    })
                    .collect();
                table(
                    &["BUCKET", "OWNER", "OBJECTS", "SIZE", "MADE"],
                    &rows,
                    "no buckets yet: make one with `nightlatch bucket create`",
                )
            })
        }
        BucketCommand::Delete { name, node } => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let _: Removed = wait(client.delete(&format!("/v1/buckets/{}", segment(name)?)))??;
            output.show(&serde_json::json!({ "removed": name }), || format!("Removed the bucket {name}."))
        }
    }
}

pub(crate) fn quotas(command: &QuotaCommand, connections: &Connections, output: Output) -> Done {
    match command {
        QuotaCommand::Set { of, size, objects, none: _, node } => {
            let (of, whose) = match (&of.bucket, &of.user) {
                (Some(bucket), None) => (QuotaOf::Bucket(bucket.clone()), format!("the bucket {bucket}")),
                (None, Some(user)) => (QuotaOf::User(user.clone()), format!("the user {user}")),
                _ => return Err(Failure::usage("nothing is named", "give --bucket NAME or --user NAME")),
            };
            let bytes = size.map(|size| size.0);
            let change = IdentityChange::SetQuota { of, bytes, objects: *objects };
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let _: Removed = wait(client.post("/v1/identities", &change))??;
            output.show(&change, || match (bytes, objects) {
                (None, None) => format!("There is no quota for {whose} any more."),
                _ => format!("Set the quota of {whose}."),
            })
        }
        QuotaCommand::List(node) => {
            let client = wait(connections.node(node.node.as_deref(), Ask::Operate))??;
            let all: Identities = wait(client.get("/v1/identities"))??;
            output.show(&all.quotas, || {
                let row = |quota: &Quota| {
                    let (kind, name) = match &quota.of {
                        QuotaOf::Bucket(name) => ("bucket", name),
                        QuotaOf::User(name) => ("user", name),
                    };
                    let limit = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                    vec![
                        kind.to_owned(),
                        name.clone(),
                        limit(quota.bytes.map(|bytes| ByteLen(bytes).to_string())),
                        limit(quota.objects.map(|objects| objects.to_string())),
                    ]
                };
                let rows: Vec<_> = all.quotas.iter().map(row).collect();
                table(
                    &["OF", "NAME", "SIZE", "OBJECTS"],
                    &rows,
                    "no quotas: set one with `nightlatch quota set`",
                )
            })
        }
    }
}

/// A name as one segment of a path: refused where it would need escaping.
pub(super) fn segment(name: &str) -> Done<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(Failure::usage(format!("`{name}` is not a name"), "list what there is first"));
    }
    Ok(name)
}
