//! Cross-origin requests: which headers a browser gets to see, and the questions it asks before (OPTIONS).
//!
//! Fetch standard, "CORS protocol"; Amazon S3 User Guide, "Using cross-origin resource sharing (CORS)".

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use objects::BucketRef;
use s3s::dto::{CORSConfiguration, CORSRule};
use s3s::{Body, S3Error, S3ErrorCode, S3Result};

use crate::authority::pattern;
use crate::documents::{self, CORS};
use crate::slot::Serving;

/// Rules of a configuration (S3).
pub(crate) const RULES_MAX: usize = 100;

/// Methods that a rule may allow (S3).
pub(crate) const METHODS: [&str; 5] = ["GET", "PUT", "HEAD", "POST", "DELETE"];

/// What a browser asks.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    origin: String,
    method: String,
    headers: Vec<String>,
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

impl Question {
    /// What a request asks that comes from a page of another origin; `None` where it comes from none.
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Option<Self> {
        let origin = text(headers, "origin")?.to_owned();
        let asked = text(headers, "access-control-request-method");
        let method = asked.unwrap_or(method.as_str()).to_owned();
        let headers = text(headers, "access-control-request-headers").unwrap_or_default();
        let headers = headers.split(',').map(|name| name.trim().to_ascii_lowercase());
        let headers = headers.filter(|name| !name.is_empty()).collect();
        Some(Self { origin, method, headers })
    }

    fn allowed_by(&self, rule: &CORSRule) -> bool {
        let allowed = rule.allowed_headers.as_deref().unwrap_or_default();
        let header = |name: &String| {
            allowed.iter().any(|pattern| pattern::matches(&pattern.to_ascii_lowercase(), name))
        };
        rule.allowed_origins.iter().any(|pattern| pattern::matches(pattern, &self.origin))
            && rule.allowed_methods.contains(&self.method)
            && self.headers.iter().all(header)
    }

    /// The headers of the answer that let the page see it; `None` if no rule does.
    fn answer(&self, rules: &[CORSRule], preflight: bool) -> Option<HeaderMap> {
        let rule = rules.iter().find(|rule| self.allowed_by(rule))?;
        let everyone = rule.allowed_origins.iter().any(|origin| origin == "*");
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("access-control-allow-origin", if everyone { "*" } else { &self.origin });
        let methods: Vec<&str> = rule.allowed_methods.iter().map(String::as_str).collect();
        put("access-control-allow-methods", &methods.join(", "));
        put("vary", "Origin, Access-Control-Request-Headers, Access-Control-Request-Method");
        if !everyone {
            put("access-control-allow-credentials", "true");
        }
        if let Some(exposed) = rule.expose_headers.as_ref().filter(|exposed| !exposed.is_empty()) {
            put("access-control-expose-headers", &exposed.join(", "));
        }
        if preflight {
            if !self.headers.is_empty() {
                put("access-control-allow-headers", &self.headers.join(", "));
            }
            if let Some(seconds) = rule.max_age_seconds {
                put("access-control-max-age", &seconds.to_string());
            }
        }
        Some(headers)
    }
}

async fn rules(serving: &Serving, bucket: String) -> S3Result<Vec<CORSRule>> {
    let found: Option<CORSConfiguration> =
        serving.run(move |store| documents::find(store, &BucketRef::from(&bucket), CORS)).await?;
    Ok(found.map(|found| found.cors_rules).unwrap_or_default())
}

/// The headers to add to an answer. What goes wrong here leaves the answer as it is.
pub(crate) async fn headers(serving: &Serving, bucket: String, question: &Question) -> HeaderMap {
    let rules = rules(serving, bucket).await.unwrap_or_default();
    question.answer(&rules, false).unwrap_or_default()
}

/// Answers a browser that asks before it sends a request.
pub(crate) async fn preflight(serving: &Serving, bucket: String, head: &Parts) -> S3Result<Response<Body>> {
    let question = Question::of(&head.method, &head.headers)
        .filter(|_| head.headers.contains_key("access-control-request-method"));
    let question = question.ok_or_else(|| {
        let mut missing = S3Error::with_message(
            S3ErrorCode::Custom("BadRequest".into()),
            "OPTIONS needs the headers Origin and Access-Control-Request-Method",
        );
        missing.set_status_code(StatusCode::BAD_REQUEST);
        missing
    })?;
    let rules = rules(serving, bucket).await?;
    let headers = question.answer(&rules, true).ok_or_else(|| {
        let mut refused = S3Error::with_message(
            S3ErrorCode::Custom("AccessForbidden".into()),
            "no CORS rule of the bucket allows this request",
        );
        refused.set_status_code(StatusCode::FORBIDDEN);
        refused
    })?;
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origin: &str, methods: &[&str], headers: &[&str]) -> CORSRule {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        CORSRule {
            allowed_headers: Some(owned(headers)),
            allowed_methods: owned(methods),
            allowed_origins: owned(&[origin]),
            expose_headers: None,
            id: None,
            max_age_seconds: Some(60),
        }
    }

    fn ask(origin: &str, method: &str, headers: &[&str], rules: &[CORSRule]) -> Option<HeaderMap> {
        let headers = headers.iter().map(|name| (*name).to_owned()).collect();
        Question { origin: origin.to_owned(), method: method.to_owned(), headers }.answer(rules, true)
    }

    #[test]
    fn the_first_rule_that_fits_answers() {
        let rules = [rule("*suffix", &["GET"], &[]), rule("https://a.*.b", &["PUT"], &["x-amz-*"])];
        let answer = ask("foo.suffix", "GET", &[], &rules).unwrap();
        assert_eq!(answer["access-control-allow-origin"], "foo.suffix");
        assert!(ask("foo.suffix.x", "GET", &[], &rules).is_none());
        assert!(ask("foo.suffix", "PUT", &[], &rules).is_none());
        let answer = ask("https://a.c.b", "PUT", &["x-amz-date"], &rules).unwrap();
        assert_eq!(answer["access-control-allow-headers"], "x-amz-date");
        assert!(ask("https://a.c.b", "PUT", &["authorization"], &rules).is_none());
        let everyone = ask("any", "GET", &[], &[rule("*", &["GET"], &[])]).unwrap();
        assert_eq!(everyone["access-control-allow-origin"], "*");
        assert!(!everyone.contains_key("access-control-allow-credentials"));
    }
}
