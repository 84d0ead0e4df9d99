//! The OpenAPI document of the control protocol.
//!
//! The derives of `utoipa` generate it from the handlers and the types of [`crate::protocol`]. The
//! result differs in details from what the daemon accepts; [`document`] corrects that.
//! `tests/system/openapi.sh` tests a daemon with schemathesis, and with a client in another
//! language that is generated from the document.
//!
//! Contract: pure; every daemon of a version has the same document.

use axum::Json;
use serde_json::{Value, json};
use utoipa::OpenApi;

use crate::daemon::server::routes::{
    clients, devices, diff, disks, events, map, message, meta, monitor, places, plan, state, stats,
    tables,
};
use crate::protocol::{self, route};

/// The document as the derives generate it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "blkswitch control protocol",
        description = "HTTP/1.1 with JSON bodies over a unix socket. See docs/control-api.md."
    ),
    paths(
        meta::version,
        meta::targets,
        openapi,
        stats::metrics,
        devices::list,
        devices::create,
        devices::show,
        devices::remove,
        devices::remove_all,
        devices::rename,
        tables::load,
        tables::clear,
        tables::suspend,
        tables::resume,
        tables::wipe,
        disks::attach,
        disks::detach,
        disks::attach_vhost_user,
        disks::detach_vhost_user,
        clients::disconnect,
        message::message,
        events::events,
        monitor::monitor,
        map::runs,
        map::picture,
        map::export,
        places::places,
        diff::devices,
        diff::message,
        plan::plan,
        stats::stats,
        state::list,
        state::forget,
    ),
    components(schemas(
        protocol::ErrorBody,
        protocol::Errno,
        protocol::MapForm,
        protocol::DiffForm,
        protocol::PlanForm
    ))
)]
struct Derived;

/// The OpenAPI document, as JSON.
pub fn document() -> Value {
    // Writing it cannot fail, because it has only text, numbers and lists.
    let mut document = serde_json::to_value(Derived::openapi()).unwrap_or_default();
    correct(&mut document);
    document
}

/// This document.
#[utoipa::path(
    get,
    path = route::OPENAPI,
    tag = "meta",
    responses(
        (status = 200, description = "An OpenAPI 3.1 document", content_type = "application/json")
    )
)]
pub async fn openapi() -> Json<Value> {
    Json(document())
}

/// Corrects this part of the document and everything in it.
fn correct(part: &mut Value) {
    match part {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                correct(member);
                match name.as_str() {
                    "format" => correct_format(member),
                    "oneOf" => close_variants(member),
                    "requestBody" => correct_body(member),
                    _ => {}
                }
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(correct),
        _ => {}
    }
}

/// utoipa 5.5 writes `u-int32`; the registry of formats has `uint32`.
fn correct_format(format: &mut Value) {
    if let Some(name) = format.as_str().and_then(|name| name.strip_prefix("u-")) {
        *format = format!("u{name}").into();
    }
}

/// A variant of an enum is an object with one member. The daemon refuses additional members, which
/// the derive does not say.
fn close_variants(variants: &mut Value) {
    let variants = variants.as_array_mut().into_iter().flatten();
    for variant in variants.filter(|variant| variant["type"] == "object") {
        variant["additionalProperties"] = false.into();
    }
}

/// An optional body may be missing, but it may not be `null`.
fn correct_body(body: &mut Value) {
    let Some(schema) = body.pointer_mut("/content/application~1json/schema") else { return };
    let [Some(null), Some(other), None] = [0, 1, 2].map(|at| schema["oneOf"].get(at)) else {
        return;
    };
    if null["type"] == "null" {
        *schema = json!({ "$ref": other["$ref"] });
        body["required"] = false.into();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::protocol::{Errno, route};

    /// Checks that `docs/openapi.json` agrees with the code; `UPDATE_EXPECT=1` writes it.
    #[test]
    fn the_document_in_the_repository_is_up_to_date() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let generated = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&file, &generated).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            kept == generated,
            "docs/openapi.json is out of date: UPDATE_EXPECT=1 cargo test writes it"
        );
    }

    /// Collects the targets of all `$ref`s of a document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                let here = members.get("$ref").and_then(Value::as_str);
                found.extend(here.map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(members) => members.iter().for_each(|member| references(member, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_has_what_it_refers_to() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{found:?}");
        for reference in &found {
            let place = reference.strip_prefix('#').expect("nothing refers to other documents");
            assert!(document.pointer(place).is_some(), "{reference} is not in the document");
        }
    }

    #[test]
    fn the_document_has_every_route_of_the_protocol() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let source = include_str!("../../protocol/mod.rs");
        let routes: Vec<&str> = source
            .lines()
            .filter(|line| {
                line.trim_start().starts_with("pub const ") && line.contains("&str = \"/")
            })
            .filter_map(|line| line.split('"').nth(1))
            .collect();
        assert!(routes.len() >= 16, "{routes:?}");
        for route in &routes {
            assert!(paths.contains_key(*route), "{route} is not in the document");
        }
        assert_eq!(paths.len(), routes.len());
    }

    #[test]
    fn the_document_says_what_the_wire_has() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        let names: Vec<&str> = Errno::ALL.iter().map(|errno| errno.name()).collect();
        assert_eq!(schemas["Errno"]["enum"], json!(names));
        // A variant has one member and allows no other.
        let rename = schemas["Rename"]["oneOf"].as_array().unwrap();
        assert!(
            rename.iter().all(|variant| variant["additionalProperties"] == false),
            "{rename:?}"
        );
        assert_eq!(schemas["AttachUblk"]["properties"]["queues"]["maximum"], 4096);
        assert_eq!(schemas["Device"]["properties"]["minor"]["format"], "uint32");
        // Optional bodies are not `null` either.
        for (path, name) in [(route::REMOVE_ALL, "RemoveAll"), (route::SUSPEND, "Suspend")] {
            let body = &document["paths"][path]["post"]["requestBody"];
            let schema = json!({"$ref": format!("#/components/schemas/{name}")});
            assert_eq!(body["content"]["application/json"]["schema"], schema);
            assert_eq!(body["required"], false);
        }
        // Every errno has its status, and the right schema.
        let answers = document["paths"][route::RESUME]["post"]["responses"].as_object().unwrap();
        for errno in Errno::ALL {
            let answer = &answers[&errno.http_status().to_string()];
            assert!(answer["description"].as_str().unwrap().contains(errno.name()), "{answer}");
        }
    }
}
