//! The house keeps its shape: the table of ranks, no cycles between files, a header on every file, the things that
//! stand in one place only, and sizes. The fixtures below prove that each rule can fail.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so")]

#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/source.rs"]
mod source;

use std::fs;
use std::path::Path;

use source::Source;

#[test]
fn the_house_keeps_its_shape() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    read(&root, &root, &mut sources);
    assert!(sources.len() > 10, "the sources are where this test looks");
    let found = rules::violations(&sources);
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

#[test]
fn tests_have_headers_too() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut sources = Vec::new();
    read(&root, &root, &mut sources);
    let bare: Vec<_> = sources.iter().filter(|source| !source.text.starts_with("//! ")).map(|s| &s.path).collect();
    assert!(bare.is_empty(), "without a //! header: {bare:?}");
}

fn read(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            sources.push(Source::parse(name, &fs::read_to_string(&path).unwrap()));
        }
    }
}

/// What the rules say of these files; headers are added.
fn check(files: &[(&str, &str)]) -> Vec<String> {
    let header = "//! A fixture for the rules of the house.\n";
    let sources: Vec<_> = files.iter().map(|(path, text)| Source::parse(path, &format!("{header}{text}"))).collect();
    rules::violations(&sources)
}

#[track_caller]
fn refused(files: &[(&str, &str)], reason: &str) {
    let found = check(files);
    assert!(found.len() == 1 && found[0].contains(reason), "expected one violation with {reason:?}: {found:#?}");
}

#[track_caller]
fn accepted(files: &[(&str, &str)]) {
    assert_eq!(check(files), Vec::<String>::new());
}

#[test]
fn imports_go_downwards() {
    accepted(&[("catalog/a.rs", "use crate::postgres::Server; use crate::domain::{tenant, route::Route};")]);
    accepted(&[("main.rs", "use tenantd::cli; use std::process::ExitCode;")]);
    refused(&[("postgres/a.rs", "use crate::catalog::Catalog;")], "postgres may not know catalog");
    refused(&[("catalog/a.rs", "use crate::accounts::Accounts;")], "catalog may not know accounts");
    refused(&[("domain/a.rs", "use crate::{domain::b, config::Config};")], "domain may not know config");
    refused(&[("domain/a.rs", "use super::super::config::Config;")], "domain may not know config");
    refused(&[("shutdown.rs", "use super::app;")], "shutdown may not know app");
    refused(&[("store/a.rs", "fn f() -> crate::api::Api { todo!() }")], "store may not know api");
    refused(&[("store/a.rs", "fn f() { log!(\"{}\", crate::api::NAME); }")], "store may not know api");
    refused(&[("store/a.rs", "mod inner { use super::super::super::api::Api; }")], "store may not know api");
    refused(&[("store/a.rs", "fn f() { tenantd::api::go() }")], "store may not know api");
    refused(&[("store/a.rs", "macro_rules! m { () => { $crate::api::go() } }")], "store may not know api");
    refused(&[("store/a.rs", "struct S { #[serde(with = \"crate::api::time\")] t: u8 }")], "store may not know api");
    refused(&[("store/a.rs", "#[cfg(test)] mod tests { use crate::api::Api; }")], "store may not know api");
    refused(&[("main.rs", "use tenantd::helpers;")], "helpers is no room");
    refused(&[("helpers.rs", "fn f() {}")], "helpers is no room");
}

#[test]
fn the_root_is_no_way_around() {
    refused(&[("store/a.rs", "use crate as all;")], "every room");
    refused(&[("store/a.rs", "use crate::*;")], "every room");
    refused(&[("store/a.rs", "use super::super::*;")], "every room");
    refused(&[("store/a.rs", "extern crate self as all;")], "extern crate");
    refused(&[("store/a.rs", "#[path = \"../api/x.rs\"] mod x;")], "#[path]");
    refused(&[("lib.rs", "pub mod store; pub use store::Store;")], "re-exports nothing");
    accepted(&[("lib.rs", "pub mod store;")]);
}

#[test]
fn the_command_line_is_a_client() {
    accepted(&[("cli/tenant.rs", "use crate::proto::v1; use crate::domain::tenant;")]);
    accepted(&[("cli/serve.rs", "use crate::app;"), ("cli/dev/demo.rs", "use crate::embedded;")]);
    refused(&[("cli/tenant.rs", "use crate::catalog::Catalog;")], "client");
}

#[test]
fn a_header_opens_every_file() {
    let bare = rules::violations(&[Source::parse("store/a.rs", "fn f() {}")]);
    assert!(bare.len() == 1 && bare[0].contains("//! paragraph"), "{bare:?}");
}

#[test]
fn files_of_a_room_form_no_cycle() {
    let [a, b] = ["fn f() { super::b::g() }", "use crate::store::a::f;"];
    refused(&[("store/a.rs", a), ("store/b.rs", b)], "store/a.rs → store/b.rs → store/a.rs");
    let face = "mod a; mod b; pub use a::A; pub use b::B;";
    let through = [("store/mod.rs", face), ("store/a.rs", "use super::B;"), ("store/b.rs", "use super::A;")];
    refused(&through, "store/a.rs → store/b.rs → store/a.rs");
    accepted(&[("store/a.rs", a), ("store/b.rs", "#[cfg(test)] mod tests { use super::super::a::f; }")]);
}

#[test]
fn a_face_may_use_its_children_and_they_its_types() {
    let face = "mod a; pub use a::A; pub struct Store; fn help() { a::open() }";
    accepted(&[("store/mod.rs", face), ("store/a.rs", "use super::Store; impl Store { fn f() {} }")]);
    refused(&[("store/mod.rs", face), ("store/a.rs", "fn f() { super::help() }")], "a file of their own");
    refused(&[("store/mod.rs", face), ("store/a.rs", "use super::*;")], "a file of their own");
}

#[test]
fn some_things_stand_in_one_place() {
    let status = "fn f() -> Status { tonic::Status::not_found(\"x\") }";
    accepted(&[("api/status.rs", status)]);
    refused(&[("api/tenants.rs", status)], "only api/status.rs");
    refused(&[("api/tenants.rs", "use tonic::Status as Answer;")], "only api/status.rs");

    let command = "use tokio::process::Command;";
    accepted(&[("postgres/programs.rs", command), ("cli/tenant.rs", "enum Command { A } fn f() { Command::A; }")]);
    refused(&[("backup/a.rs", command)], "starts child processes");
    refused(&[("backup/a.rs", "use std::{fs, process::{Child, Command}};")], "starts child processes");
    refused(&[("backup/a.rs", "fn f() { std::process::Command::new(\"ls\"); }")], "starts child processes");
    refused(&[("backup/a.rs", "use std::process as p;")], "starts child processes");

    accepted(&[("catalog/a.rs", "use sea_query::Query;"), ("postgres/statement.rs", "use sea_query::Values;")]);
    refused(&[("router/a.rs", "use sea_query::Query;")], "hold SQL");

    accepted(&[("config/a.rs", "use std::env; fn f() { env::var(\"X\"); }")]);
    accepted(&[("cli/a.rs", "fn f() { env!(\"CARGO_PKG_VERSION\"); std::env::args(); }")]);
    refused(&[("cli/a.rs", "use std::env; fn f() { env::var_os(\"X\"); }")], "reads the environment");
    refused(&[("store/a.rs", "use std::env::vars;")], "reads the environment");
}

#[test]
fn lints_are_expected_with_a_reason() {
    refused(&[("store/a.rs", "#[allow(dead_code)] fn f() {}")], "#[expect");
}

#[test]
fn sizes_only_count_what_is_no_test() {
    let body = "    let _ = 1;\n";
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", body.repeat(lines));
    accepted(&[("store/a.rs", &function(80))]);
    refused(&[("store/a.rs", &function(100))], "f has 102 lines");
    let many = function(50).repeat(12);
    refused(&[("store/a.rs", &many)], "lines outside of tests");
    accepted(&[("store/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{many}{}}}\n", function(100)))]);
}
