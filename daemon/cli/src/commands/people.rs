//! `nightlatch login`, `logout`, `people`, `approval`: second factors, and what takes more than one person.

use std::io::{BufRead, IsTerminal, Write};

use identity::PrivateFile;
use keyholder::api::{
    Approval, ApprovalState, Code, CreateToken, CreatedToken, Done as Empty, EnrolledFactor, Login,
    PersonEntry, Reason, TokenEntry,
};

use crate::args::{ApprovalCommand, PeopleCommand, TokenCommand};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms, moment, table};

/// Reads a code from a person or a pipe: never from the command line, where others could see it.
fn read_code() -> Done<Code> {
    if std::io::stdin().is_terminal() {
        let _ = write!(std::io::stderr(), "Code from your authenticator: ");
    }
    let mut code = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut code)
        .map_err(|error| Failure::local(format!("cannot read a code: {error}"), "type it, or pipe it in"))?;
    if code.trim().is_empty() {
        return Err(Failure::usage("no code was given", "type the six digits, or pipe them in"));
    }
    Ok(Code { code: code.trim().to_owned() })
}

pub(crate) fn login(connections: &Connections, output: Output) -> Done {
    let keyholder = connections.keyholder(Ask::Trail)?;
    let login: Login = wait(keyholder.post("/v1/login", &read_code()?))??;
    let (who, file) = connections.keep_login(Ask::Trail, &login)?;
    let made = serde_json::json!({ "who": who, "lasts_ms": login.lasts_ms, "file": file });
    output.show(&made, || format!("Logged in as {who} for {}.\n", duration_ms(login.lasts_ms)))
}

pub(crate) fn logout(connections: &Connections, output: Output) -> Done {
    let keyholder = connections.keyholder(Ask::Trail)?;
    let ended: Empty = wait(keyholder.post("/v1/logout", &Empty {}))??;
    connections.forget_login(Ask::Trail)?;
    output.show(&ended, || "Logged out.\n".to_owned())
}

pub(crate) fn people(command: &PeopleCommand, connections: &Connections, output: Output) -> Done {
    match command {
        PeopleCommand::Enrol => enrol(connections, output),
        PeopleCommand::List => {
            let people: Vec<PersonEntry> = wait(connections.keyholder(Ask::Trail)?.get("/v1/people"))??;
            output.show(&people, || {
                let rows: Vec<_> = people
                    .iter()
                    .map(|person| {
                        let now = if person.logged_in { "logged in" } else { "" };
                        vec![person.who.clone(), moment(person.enrolled_unix_s), now.to_owned()]
                    })
                    .collect();
                table(
                    &["WHO", "SINCE", ""],
                    &rows,
                    "nobody has a second factor yet (`nightlatch people enrol`)",
                )
            })
        }
        PeopleCommand::Forget { who } => {
            let keyholder = connections.keyholder(Ask::Decide)?;
            let done: Empty = wait(keyholder.delete(&format!("/v1/people/{who}/second-factor")))??;
            output.show(&done, || format!("{who} has no second factor any more and can enrol a new one.\n"))
        }
    }
}

fn enrol(connections: &Connections, output: Output) -> Done {
    let keyholder = connections.keyholder(Ask::Trail)?;
    let made: EnrolledFactor = wait(keyholder.post("/v1/people/me/second-factor", &Empty {}))??;
    if output.is_json() {
        // Its reader has to compute the code, so it comes before that is asked for.
        output.announce(&made)?;
    } else {
        let _ = writeln!(
            std::io::stderr(),
            "For your authenticator, shown once:\n  secret {}\n  {}\nIt counts once you have typed a code of it.",
            made.secret,
            made.uri
        );
    }
    let done: Empty = wait(keyholder.post("/v1/people/me/second-factor/confirm", &read_code()?))??;
    if output.is_json() {
        return output.announce(&done);
    }
    output
        .show(&done, || "Your second factor counts from now on; log in with `nightlatch login`.\n".to_owned())
}

pub(crate) fn tokens(command: &TokenCommand, connections: &Connections, output: Output) -> Done {
    match command {
        TokenCommand::Create { name, scopes, days, output: file } => {
            // With a colon it needs no quotes in a shell.
            let scopes = scopes.iter().map(|scope| scope.replacen(":/", " /", 1)).collect();
            let request = CreateToken { name: name.clone(), scopes, days: *days };
            let made: CreatedToken = wait(connections.keyholder(Ask::Trail)?.post("/v1/tokens", &request))??;
            let ends = moment(made.expires_unix_s);
            match file {
                None => output.show(&made, || format!("{}\nToken {} ends {ends}.\n", made.token, made.id)),
                Some(file) => {
                    PrivateFile::create(file, made.token.as_bytes())?;
                    let kept = serde_json::json!({ "id": made.id, "file": file, "expires_unix_s": made.expires_unix_s });
                    output.show(&kept, || {
                        format!("Wrote token {} to {}; it ends {ends}.\n", made.id, file.display())
                    })
                }
            }
        }
        TokenCommand::List => {
            let all: Vec<TokenEntry> = wait(connections.keyholder(Ask::Trail)?.get("/v1/tokens"))??;
            output.show(&all, || {
                let row = |token: &TokenEntry| {
                    let ends = moment(token.expires_unix_s);
                    vec![
                        token.id.clone(),
                        token.name.clone(),
                        token.who.clone(),
                        ends,
                        token.scopes.join(", "),
                    ]
                };
                let rows: Vec<_> = all.iter().map(row).collect();
                table(&["TOKEN", "NAME", "WHOSE", "ENDS", "FOR"], &rows, "there is no token")
            })
        }
        TokenCommand::Revoke { id } => {
            let keyholder = connections.keyholder(Ask::Either)?;
            let done: Empty = wait(keyholder.delete(&format!("/v1/tokens/{id}")))??;
            output.show(&done, || format!("Token {id} has ended.\n"))
        }
    }
}

pub(crate) fn approvals(command: &ApprovalCommand, connections: &Connections, output: Output) -> Done {
    match command {
        ApprovalCommand::List => {
            let waiting: Vec<Approval> = wait(connections.keyholder(Ask::Trail)?.get("/v1/approvals"))??;
            output.show(&waiting, || {
                let rows: Vec<_> = waiting.iter().map(row).collect();
                table(&["REQUEST", "BY", "WHAT", "STATE", "LAPSES IN"], &rows, "nothing waits for approval")
            })
        }
        ApprovalCommand::Approve { id } => {
            let keyholder = connections.keyholder(Ask::Either)?;
            let approved: Approval =
                wait(keyholder.post(&format!("/v1/approvals/{id}/approve"), &Empty {}))??;
            output.show(&approved, || describe(&approved))
        }
        ApprovalCommand::Refuse { id } => {
            let keyholder = connections.keyholder(Ask::Either)?;
            let done: Empty = wait(keyholder.post(&format!("/v1/approvals/{id}/refuse"), &Empty {}))??;
            output.show(&done, || format!("Request {id} is refused.\n"))
        }
        ApprovalCommand::BreakGlass { id, reason } => {
            let keyholder = connections.keyholder(Ask::Decide)?;
            let body = Reason { reason: reason.clone() };
            let broken: Approval = wait(keyholder.post(&format!("/v1/approvals/{id}/break-glass"), &body))??;
            output.show(&broken, || describe(&broken))
        }
    }
}

fn state(approval: &Approval) -> String {
    match approval.state {
        ApprovalState::Wanted => {
            format!("{} of {} have approved", approval.approved_by.len(), approval.need.saturating_sub(1))
        }
        ApprovalState::Approved => format!("approved by {}", approval.approved_by.join(", ")),
        ApprovalState::GlassBroken => "GLASS BROKEN".to_owned(),
    }
}

fn row(approval: &Approval) -> Vec<String> {
    let lapses = duration_ms(approval.lapses_ms);
    vec![approval.id.clone(), approval.by.clone(), approval.act.clone(), state(approval), lapses]
}

fn describe(approval: &Approval) -> String {
    let next = match approval.state {
        ApprovalState::Wanted => String::new(),
        _ => format!(" {} says the same again now, within {}.", approval.by, duration_ms(approval.lapses_ms)),
    };
    format!("{}: {}.{next}\n", approval.act, state(approval))
}
