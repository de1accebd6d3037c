//! The rules of the house: who may import whom, what stands in one place only, how long things may be. Each rule
//! answers with sentences, none when all is well; the fixtures in `architecture.rs` show that each can fail.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Reference, Source};

/// Imports go strictly downwards; rooms of one rank never import each other.
const RANKS: &[&[&str]] = &[
    &["domain"],
    &["config", "telemetry", "shutdown", "proto", "secrets"],
    &["postgres", "store"],
    &["catalog", "accounts"],
    &["router", "access", "shares"],
    &["query", "migrator", "backup"],
    &["operations"],
    &["scheduler"],
    &["api", "console", "embedded"],
    &["app"],
    &["cli"],
    &["main"],
];

/// The command line is a client: it names the daemon's insides only in the arms that are the daemon.
const CLI_MAY_NAME: &[&str] = &["proto", "domain", "config", "telemetry"];
const CLI_LOCAL_ARMS: &[&str] = &["serve", "dev", "check_config", "doctor", "server"];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 90;

/// What `std::env` gives of the environment; the program's path and its arguments are no part of it.
const ENVIRONMENT: &[&str] =
    &["var", "vars", "var_os", "vars_os", "set_var", "remove_var", "home_dir", "temp_dir", "*"];

/// Every rule, over every file.
pub fn violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        found.extend(header(source));
        found.extend(oddities(source));
        found.extend(directions(source));
        found.extend(one_place(source));
        found.extend(lengths(source));
        if source.path == "lib.rs" {
            found.extend(lib_only_declares(source));
        }
    }
    found.extend(faces(sources));
    found.extend(cycles(sources));
    found
}

/// Each file opens with a paragraph that says what it is for.
fn header(source: &Source) -> Option<String> {
    let first = source.text.lines().next().unwrap_or_default();
    let good = first.strip_prefix("//! ").is_some_and(|text| text.len() > 8);
    (!good).then(|| format!("{}: opens without a //! paragraph (purpose, what it must not know)", source.path))
}

fn oddities(source: &Source) -> Vec<String> {
    source.oddities.iter().map(|(line, text)| format!("{}:{line}: {text}", source.path)).collect()
}

fn rank(room: &str) -> Option<usize> {
    RANKS.iter().position(|rooms| rooms.contains(&room))
}

/// The table of ranks, for every path that a file names, its tests included.
fn directions(source: &Source) -> Vec<String> {
    let from = source.room();
    let Some(from_rank) = rank(from).or((from == "lib").then_some(0)) else {
        return vec![format!("{}: {from} is no room of the house", source.path)];
    };
    let check = |reference: &Reference| {
        let target = source.resolve(reference)?;
        let refusal = match target.first().map_or("*", String::as_str) {
            "*" => "names the crate's root, and so every room".to_owned(),
            room if room == from => return None,
            room => match rank(room) {
                None => format!("{room} is no room of the house"),
                Some(_) if from == "lib" => return None,
                Some(rank) if rank >= from_rank => format!("{from} may not know {room}: imports go downwards"),
                Some(_) if from == "cli" && !CLI_MAY_NAME.contains(&room) && !is_local_arm(source) => {
                    format!("the command line is a client, and may not know {room} in this file")
                }
                Some(_) => return None,
            },
        };
        Some(format!("{}:{}: {} — {refusal}", source.path, reference.line, reference.text()))
    };
    source.references.iter().filter_map(check).collect()
}

fn is_local_arm(source: &Source) -> bool {
    source.module.iter().skip(1).any(|part| CLI_LOCAL_ARMS.contains(&part.as_str()))
}

/// What only one file or room may do.
fn one_place(source: &Source) -> Vec<String> {
    let inside = |places: &[&str]| places.iter().any(|place| source.path.starts_with(place));
    let check = |reference: &Reference| {
        let (path, last) = (&source.path, reference.last());
        let renamed = |name: &str| last == name && reference.used_as.as_deref().is_some_and(|alias| alias != name);
        let refusal = if !inside(&["api/status.rs", "api/status/"]) && (builds_status(reference) || renamed("Status")) {
            "only api/status.rs builds a Status"
        } else if !inside(&["postgres/programs"]) && (starts_processes(reference) || renamed("process")) {
            "only postgres/programs starts child processes"
        } else if !inside(&["catalog/", "accounts/", "postgres/statement.rs"])
            && reference.segments.iter().any(|segment| segment.starts_with("sea_query"))
        {
            "only catalog and accounts hold SQL for their databases"
        } else if !inside(&["config/"]) && (reads_environment(reference) || renamed("env")) {
            "only config reads the environment"
        } else {
            return None;
        };
        Some(format!("{path}:{}: {} — {refusal}", reference.line, reference.text()))
    };
    source.references.iter().filter(|reference| !reference.in_test).filter_map(check).collect()
}

/// `Status::not_found` and the like; a constant or a type of that name builds nothing.
fn builds_status(reference: &Reference) -> bool {
    let builds = |name: &str| name.starts_with(char::is_lowercase) && name != "into_http";
    reference.segments.windows(2).any(|pair| pair[0] == "Status" && builds(&pair[1]))
}

fn starts_processes(reference: &Reference) -> bool {
    reference.names(&["process", "Command"]) || reference.names(&["process", "*"])
}

fn reads_environment(reference: &Reference) -> bool {
    ENVIRONMENT.iter().any(|name| reference.names(&["env", name]))
}

fn lengths(source: &Source) -> Vec<String> {
    let lines = source.lines_outside_tests();
    let file = (lines > FILE_LINES_MAX)
        .then(|| format!("{}: {lines} lines outside of tests; {FILE_LINES_MAX} are the most", source.path));
    let long = source.functions.iter().filter(|(.., length)| *length > FUNCTION_LINES_MAX);
    let functions = long.map(|(line, name, length)| {
        format!("{}:{line}: {name} has {length} lines; {FUNCTION_LINES_MAX} are the most", source.path)
    });
    file.into_iter().chain(functions).collect()
}

fn lib_only_declares(source: &Source) -> Vec<String> {
    let parsed = syn::parse_file(&source.text).map(|file| file.items).unwrap_or_default();
    let other = parsed.iter().any(|item| !matches!(item, syn::Item::Mod(item) if item.content.is_none()));
    other.then(|| "lib.rs: declares the rooms and nothing else; it re-exports nothing".to_owned()).into_iter().collect()
}

/// A folder's `mod.rs`, or the file of its name beside it, is its face. It declares its children, re-exports and calls them. They may name its types,
/// constants, macros and what it imports, but neither call its functions nor import it whole: so it may stand above
/// them without a cycle.
fn faces(sources: &[Source]) -> Vec<String> {
    let faces: BTreeMap<&[String], &Source> =
        sources.iter().filter(|source| source.is_face).map(|face| (face.module.as_slice(), face)).collect();
    let check = |source: &Source, reference: &Reference| {
        let target = source.resolve(reference)?;
        let (face, rest) = longest(&faces, &target)?;
        let below = source.module.len() > face.module.len() && source.module.starts_with(&face.module);
        let refused = match rest.first().map(String::as_str) {
            None => reference.used_as.is_some(),
            Some("*") => true,
            Some(name) => {
                let known = face.children.contains(name) || face.macros.contains(name);
                name.starts_with(char::is_lowercase) && !known && !face.imports().contains_key(name)
            }
        };
        let advice = "a child names its mod.rs's types only: give functions a file of their own";
        (below && refused).then(|| format!("{}:{}: {} — {advice}", source.path, reference.line, reference.text()))
    };
    let all = sources.iter().flat_map(|source| source.references.iter().map(move |reference| (source, reference)));
    all.filter(|(_, reference)| !reference.in_test).filter_map(|(source, reference)| check(source, reference)).collect()
}

/// The module that `target` lies in, and what is left of the path.
fn longest<'a, 't>(
    modules: &BTreeMap<&[String], &'a Source>,
    target: &'t [String],
) -> Option<(&'a Source, &'t [String])> {
    (1..=target.len()).rev().find_map(|length| Some((*modules.get(&target[..length])?, &target[length..])))
}

/// No file of a room needs itself. A name that a `mod.rs` imports counts as the file that it comes from; what a
/// `mod.rs` names of its own children does not count (see [`faces`]).
fn cycles(sources: &[Source]) -> Vec<String> {
    let modules: BTreeMap<&[String], &Source> = sources
        .iter()
        .filter(|source| !source.module.is_empty())
        .map(|source| (source.module.as_slice(), source))
        .collect();
    let mut edges: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for source in sources {
        for reference in source.references.iter().filter(|reference| !reference.in_test) {
            let Some(target) = source.resolve(reference).and_then(|target| origin(&modules, target)) else { continue };
            let own_child = source.is_face && target.module.starts_with(&source.module);
            if target.room() == source.room() && target.path != source.path && !own_child {
                edges.entry(&source.path).or_default().entry(&target.path).or_insert(reference.line);
            }
        }
    }
    let mut found = BTreeSet::new();
    for start in edges.keys() {
        let mut trail = vec![*start];
        walk(&edges, &mut trail, &mut found);
    }
    found.into_iter().map(|cycle| format!("a cycle of files: {cycle}")).collect()
}

/// The file that defines what `target` names, looking through imports.
fn origin<'a>(modules: &BTreeMap<&[String], &'a Source>, mut target: Vec<String>) -> Option<&'a Source> {
    let hops_max = 8;
    for _ in 0..hops_max {
        let (source, rest) = longest(modules, &target)?;
        let Some(imported) = rest.first().and_then(|name| source.imports().get(name.as_str()).cloned()) else {
            return Some(source);
        };
        target = imported.into_iter().chain(rest[1..].iter().cloned()).collect();
    }
    None
}

/// Follows the edges from the end of `trail`, and notes each way back to its start (from the cycle's first name only).
fn walk<'a>(
    edges: &BTreeMap<&'a str, BTreeMap<&'a str, usize>>,
    trail: &mut Vec<&'a str>,
    found: &mut BTreeSet<String>,
) {
    let Some(nexts) = trail.last().and_then(|last| edges.get(last)) else { return };
    for next in nexts.keys() {
        if *next == trail[0] {
            found.insert(format!("{} → {next}", trail.join(" → ")));
        } else if *next > trail[0] && !trail.contains(next) {
            trail.push(next);
            walk(edges, trail, found);
            trail.pop();
        }
    }
}
