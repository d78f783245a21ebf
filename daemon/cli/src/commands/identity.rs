//! `nightlatch user`, `nightlatch group` and `nightlatch access-policy`: who uses a node's object store, and what they may do.

use admin::api::{
    AccessKey, Attached, CreateUser, CreatedAccessKey, Done as Changed, Identities, IdentityChange, Policy,
};
use identity::HttpsClient;

use super::store::segment;
use crate::args::{AccessPolicyCommand, GroupCommand, NodeArg, PolicyTarget, UserCommand};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table, until};

pub(crate) fn users(command: &UserCommand, connections: &Connections, output: Output) -> Done {
    match command {
        UserCommand::Create { name, expires_in, node } => {
            let client = client(connections, node)?;
            let created = create_key(&client, name, expires_in.map(|span| span.0))?;
            output.show(&created, || new_key(&created))
        }
        UserCommand::Rotate { name, grace, node } => {
            let client = client(connections, node)?;
            let earlier: Vec<AccessKey> = wait(client.get("/v1/users"))??;
            let created = create_key(&client, name, None)?;
            let earlier = earlier.into_iter().filter(|key| key.user == *name);
            let ending: Vec<String> = earlier.map(|key| key.access_key).collect();
            for access_key in &ending {
                let in_s = Some(grace.0);
                change(&client, &IdentityChange::Expire { access_key: access_key.clone(), in_s })?;
            }
            let shown = serde_json::json!({ "created": created, "ending": ending, "ending_in_s": grace.0 });
            output.show(&shown, || {
                let ends = match ending.len() {
                    0 => "There was no other key.".to_owned(),
                    count => format!("{count} earlier key(s) end in {}.", until(grace.0)),
                };
                format!("{}\n{ends}", new_key(&created))
            })
        }
        UserCommand::Expire { access_key, within, never, node } => {
            let in_s = within.map(|span| span.0).filter(|_| !never);
            let expire = IdentityChange::Expire { access_key: access_key.clone(), in_s };
            change(&client(connections, node)?, &expire)?;
            output.show(&expire, || match in_s {
                Some(in_s) => format!("{access_key} ends in {}.", until(in_s)),
                None => format!("{access_key} does not end by itself any more."),
            })
        }
        UserCommand::List(node) => {
            let keys: Vec<AccessKey> = wait(client(connections, node)?.get("/v1/users"))??;
            output.show(&keys, || list_of_keys(&keys))
        }
        UserCommand::Show { name, node } => {
            let all = identities(connections, node)?;
            let found = all.users.into_iter().find(|user| user.name == *name);
            let user = found.ok_or_else(|| missing("user", name))?;
            output.show(&user, || {
                let decides = match user.limited {
                    true => "what its policies allow",
                    false => "what it owns, and what others let it",
                };
                format!(
                    "{}\n  may          {decides}\n  groups       {}\n  policies     {}\n  access keys  {}",
                    user.name,
                    list(&user.groups),
                    list(&user.policies),
                    list(&user.access_keys)
                )
            })
        }
        UserCommand::Delete { name, access_key, node } => {
            let client = client(connections, node)?;
            let (path, what) = match (name, access_key) {
                (Some(name), _) => (format!("/v1/users/{}", segment(name)?), name),
                (None, Some(key)) => (format!("/v1/access-keys/{}", segment(key)?), key),
                (None, None) => {
                    return Err(Failure::usage("nobody is named", "give a user or --access-key KEY"));
                }
            };
            let _: Changed = wait(client.delete(&path))??;
            output.show(&serde_json::json!({ "removed": what }), || format!("Removed {what}."))
        }
    }
}

pub(crate) fn groups(command: &GroupCommand, connections: &Connections, output: Output) -> Done {
    let member = |user: &String, group: &String, member| IdentityChange::SetMember {
        user: user.clone(),
        group: group.clone(),
        member,
    };
    let (node, asked, done) = match command {
        GroupCommand::List(node) => {
            let groups = identities(connections, node)?.groups;
            return output.show(&groups, || {
                let row = |group: &admin::api::Group| {
                    vec![group.name.clone(), list(&group.members), list(&group.policies)]
                };
                let rows: Vec<_> = groups.iter().map(row).collect();
                let empty = "no groups yet: make one with `nightlatch group create`";
                table(&["GROUP", "MEMBERS", "POLICIES"], &rows, empty)
            });
        }
        GroupCommand::Create { name, node } => {
            (node, IdentityChange::CreateGroup { group: name.clone() }, format!("Made the group {name}."))
        }
        GroupCommand::Delete { name, node } => {
            (node, IdentityChange::DeleteGroup { group: name.clone() }, format!("Removed the group {name}."))
        }
        GroupCommand::Add { group, user, node } => {
            (node, member(user, group, true), format!("{user} belongs to {group}."))
        }
        GroupCommand::Remove { group, user, node } => {
            (node, member(user, group, false), format!("{user} does not belong to {group} any more."))
        }
    };
    change(&client(connections, node)?, &asked)?;
    output.show(&asked, || done.clone())
}

pub(crate) fn policies(command: &AccessPolicyCommand, connections: &Connections, output: Output) -> Done {
    let (node, asked, done) = match command {
        AccessPolicyCommand::List(node) => {
            let policies = identities(connections, node)?.policies;
            return output.show(&policies, || {
                let rows: Vec<_> = policies.iter().map(|policy| vec![policy.name.clone()]).collect();
                table(&["POLICY"], &rows, "no policies yet: put one with `nightlatch access-policy put`")
            });
        }
        AccessPolicyCommand::Show { name, node } => {
            let found =
                identities(connections, node)?.policies.into_iter().find(|policy| policy.name == *name);
            let policy: Policy = found.ok_or_else(|| missing("policy", name))?;
            return output.show(&policy, || policy.document.clone());
        }
        AccessPolicyCommand::Put { name, file, node } => {
            let document = std::fs::read_to_string(file).map_err(|error| {
                Failure::local(format!("{} cannot be read: {error}", file.display()), "name a readable file")
            })?;
            let put = IdentityChange::PutPolicy { policy: name.clone(), document };
            (node, put, format!("Put the policy {name}."))
        }
        AccessPolicyCommand::Delete { name, node } => {
            let delete = IdentityChange::DeletePolicy { policy: name.clone() };
            (node, delete, format!("Removed the policy {name}."))
        }
        AccessPolicyCommand::Attach { name, to, node } => {
            let (to, whom) = attached(to)?;
            let attach = IdentityChange::Attach { policy: name.clone(), to, attached: true };
            (node, attach, format!("The policy {name} decides about {whom}."))
        }
        AccessPolicyCommand::Detach { name, from, node } => {
            let (to, whom) = attached(from)?;
            let detach = IdentityChange::Attach { policy: name.clone(), to, attached: false };
            (node, detach, format!("The policy {name} does not count for {whom} any more."))
        }
    };
    change(&client(connections, node)?, &asked)?;
    output.show(&asked, || done.clone())
}

fn client(connections: &Connections, node: &NodeArg) -> Done<HttpsClient> {
    wait(connections.node(node.node.as_deref(), Ask::Operate))?
}

fn identities(connections: &Connections, node: &NodeArg) -> Done<Identities> {
    Ok(wait(client(connections, node)?.get("/v1/identities"))??)
}

fn change(client: &HttpsClient, change: &IdentityChange) -> Done {
    let _: Changed = wait(client.post("/v1/identities", change))??;
    Ok(())
}

fn create_key(client: &HttpsClient, name: &str, expires_in_s: Option<u64>) -> Done<CreatedAccessKey> {
    let request = CreateUser { name: name.to_owned(), expires_in_s };
    Ok(wait(client.post("/v1/users", &request))??)
}

fn new_key(created: &CreatedAccessKey) -> String {
    format!(
        "Access key of {}; the secret is shown here and never again:\n  access key  {}\n  secret key  {}",
        created.user, created.access_key, created.secret_key
    )
}

fn list_of_keys(keys: &[AccessKey]) -> String {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let ends = |key: &AccessKey| match key.expires_unix_s {
        None => "never".to_owned(),
        Some(expires) if expires <= now => "has ended".to_owned(),
        Some(expires) => format!("in {}", until(expires - now)),
    };
    let row = |key: &AccessKey| {
        vec![key.user.clone(), key.access_key.clone(), moment(key.created_unix_s), ends(key)]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let empty = "no access keys yet: make one with `nightlatch user create`";
    table(&["USER", "ACCESS KEY", "MADE", "ENDS"], &rows, empty)
}

fn attached(target: &PolicyTarget) -> Done<(Attached, String)> {
    match (&target.user, &target.group) {
        (Some(user), None) => Ok((Attached::User(user.clone()), format!("the user {user}"))),
        (None, Some(group)) => Ok((Attached::Group(group.clone()), format!("the group {group}"))),
        _ => Err(Failure::usage("nobody is named", "give --user NAME or --group NAME")),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

fn missing(kind: &str, name: &str) -> Failure {
    Failure::usage(
        format!("there is no {kind} `{name}`"),
        format!("`nightlatch {kind} list` shows those there are"),
    )
}
