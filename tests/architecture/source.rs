//! A source file as the rules see it: every path that its tokens name (macros and attributes included), resolved to
//! a module of the crate where it is one, with the line, and whether a test or a `use` says it. Knows no rule.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use syn::visit::Visit;

/// One file of `src/`.
#[derive(Debug, Default)]
pub struct Source {
    /// Relative to `src/`, as `catalog/tenants.rs`.
    pub path: String,
    /// As `["catalog", "tenants"]`; `lib.rs` and `main.rs` are the crate's root.
    pub module: Vec<String>,
    pub text: String,
    pub references: Vec<Reference>,
    /// It has files of its own below it.
    pub is_face: bool,
    /// Things that hide what a file names, and are refused for that.
    pub oddities: Vec<(usize, String)>,
    /// Modules that the file declares, by name.
    pub children: BTreeSet<String>,
    /// Macros that the file defines: lower-case names that are no functions.
    pub macros: BTreeSet<String>,
    /// Functions outside of tests, with their lengths in lines.
    pub functions: Vec<(usize, String, usize)>,
    test_lines: Vec<RangeInclusive<usize>>,
}

/// One path that a file names.
#[derive(Debug, Clone)]
pub struct Reference {
    pub segments: Vec<String>,
    /// The module that it stands in (a file may have inline modules).
    module: Vec<String>,
    pub line: usize,
    pub in_test: bool,
    /// The name that a `use` gives it, when it stands in one.
    pub used_as: Option<String>,
}

impl Reference {
    pub fn text(&self) -> String {
        self.segments.join("::")
    }

    /// Whether the path has these segments in a row.
    pub fn names(&self, part: &[&str]) -> bool {
        self.segments.windows(part.len()).any(|window| window == part)
    }

    pub fn last(&self) -> &str {
        self.segments.last().map_or("", String::as_str)
    }
}

impl Source {
    /// # Panics
    /// When the text is no Rust.
    pub fn parse(path: &str, text: &str) -> Self {
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut source =
            Self { path: path.to_owned(), module: module_of(path), text: text.to_owned(), ..Self::default() };
        let place = Place { module: source.module.clone(), in_test: false };
        Scanner { source: &mut source }.items(tokens, &place);
        let mut lengths = Lengths(Vec::new());
        lengths.visit_file(&syntax);
        source.functions = lengths.0.into_iter().filter(|(line, ..)| !source.is_test_line(*line)).collect();
        source
    }

    /// The room: the folder or file right under `src/`.
    pub fn room(&self) -> &str {
        match self.path.as_str() {
            "main.rs" => "main",
            "lib.rs" => "lib",
            _ => self.module.first().map_or("", String::as_str),
        }
    }

    pub fn lines_outside_tests(&self) -> usize {
        (1..=self.text.lines().count()).filter(|line| !self.is_test_line(*line)).count()
    }

    fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// The path from the crate's root, if `reference` is one into the crate: `crate::`, `super::` chains, `self::`,
    /// `tenantd::` and the file's own child modules.
    pub fn resolve(&self, reference: &Reference) -> Option<Vec<String>> {
        let (first, rest) = reference.segments.split_first()?;
        let joined = |base: &[String], rest: &[String]| Some(base.iter().chain(rest).cloned().collect());
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "tenantd" if !rest.is_empty() => Some(rest.to_vec()),
            "self" if !rest.is_empty() => joined(&reference.module, rest),
            "super" => {
                let ups = reference.segments.iter().take_while(|segment| *segment == "super").count();
                let kept = reference.module.len().checked_sub(ups)?;
                joined(&reference.module[..kept], &reference.segments[ups..])
            }
            child if self.children.contains(child) => joined(&reference.module, &reference.segments),
            _ => None,
        }
    }

    /// The names that the file's own `use` lines bring in, and where they come from.
    pub fn imports(&self) -> BTreeMap<&str, Vec<String>> {
        let own = self.references.iter().filter(|reference| reference.module == self.module);
        own.filter_map(|reference| Some((reference.used_as.as_deref()?, self.resolve(reference)?))).collect()
    }
}

fn module_of(path: &str) -> Vec<String> {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if matches!(stem, "lib" | "main") { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

#[derive(Clone)]
struct Place {
    module: Vec<String>,
    in_test: bool,
}

struct Scanner<'a> {
    source: &'a mut Source,
}

impl Scanner<'_> {
    /// Walks one level of tokens; groups are walked recursively.
    fn items(&mut self, tokens: TokenStream, place: &Place) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        // The line of a `#[cfg(test)]` whose item has not ended yet.
        let mut test_from: Option<usize> = None;
        let mut at = 0;
        while at < tokens.len() {
            let here = Place { module: place.module.clone(), in_test: place.in_test || test_from.is_some() };
            let mut ended_on = None;
            match &tokens[at] {
                TokenTree::Punct(hash) if hash.as_char() == '#' => {
                    if let Some((group, next)) = attribute(&tokens, at) {
                        if compact(&group.stream()) == "cfg(test)" {
                            test_from.get_or_insert(line_of(&tokens[at]));
                        }
                        self.attribute(&group, &here);
                        at = next;
                        continue;
                    }
                }
                TokenTree::Punct(end) if end.as_char() == ';' => ended_on = Some(line_of(&tokens[at])),
                TokenTree::Group(group) => {
                    self.items(group.stream(), &here);
                    if group.delimiter() == Delimiter::Brace {
                        ended_on = Some(group.span_close().end().line);
                    }
                }
                TokenTree::Ident(ident) => {
                    let (next, end) = self.ident(&ident.to_string(), &tokens, at, &here);
                    at = next;
                    if let (Some(end), Some(from)) = (end, test_from) {
                        self.source.test_lines.push(from..=end);
                        test_from = None;
                    }
                    continue;
                }
                _ => {}
            }
            if let (Some(end), Some(from)) = (ended_on, test_from) {
                self.source.test_lines.push(from..=end);
                test_from = None;
            }
            at += 1;
        }
    }

    /// Takes what begins with the identifier at `at`; answers with the next position, and with the item's last line
    /// if it ended here.
    fn ident(&mut self, word: &str, tokens: &[TokenTree], at: usize, place: &Place) -> (usize, Option<usize>) {
        match word {
            "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(body)) = (tokens.get(at + 1), tokens.get(at + 2)) {
                    let name = name.to_string();
                    if place.module == self.source.module {
                        self.source.children.insert(name.clone());
                    }
                    if let TokenTree::Group(body) = body {
                        let module = place.module.iter().cloned().chain([name]).collect();
                        self.items(body.stream(), &Place { module, in_test: place.in_test });
                        return (at + 3, Some(body.span_close().end().line));
                    }
                    self.source.is_face |= !self.source.module.is_empty();
                    return (at + 3, Some(line_of(body)));
                }
            }
            "pub" if tokens.get(at + 1).is_some_and(is_visibility) => return (at + 2, None),
            "use" => {
                let end = (at..tokens.len()).find(|i| is_punct(&tokens[*i], ';')).unwrap_or(tokens.len() - 1);
                self.use_tree(&tokens[at + 1..end], &[], place);
                return (end + 1, Some(line_of(&tokens[end])));
            }
            "extern" if matches!(tokens.get(at + 1), Some(TokenTree::Ident(next)) if next == "crate") => {
                self.source.oddities.push((line_of(&tokens[at]), "extern crate hides what is named".to_owned()));
            }
            "macro_rules" => {
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 2) {
                    self.source.macros.insert(name.to_string());
                }
            }
            _ => {
                let (segments, next) = path(tokens, at);
                self.reference(segments, line_of(&tokens[at]), None, place);
                return (next, None);
            }
        }
        (at + 1, None)
    }

    fn use_tree(&mut self, tokens: &[TokenTree], prefix: &[String], place: &Place) {
        for branch in tokens.split(|token| is_punct(token, ',')) {
            let Some(start) = branch.iter().position(|token| !is_punct(token, ':')) else { continue };
            let (mut segments, next) = (prefix.to_vec(), path(branch, start));
            segments.extend(next.0);
            let (line, next) = (line_of(&branch[start]), next.1);
            if let Some(TokenTree::Group(group)) = branch.get(next) {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                self.use_tree(&inner, &segments, place);
                continue;
            }
            if branch.iter().any(|token| is_punct(token, '*')) {
                segments.push("*".to_owned());
            } else if segments.last().is_some_and(|last| last == "self") {
                segments.pop();
            }
            let alias = match branch.get(next..) {
                Some([TokenTree::Ident(word), TokenTree::Ident(alias)]) if word == "as" => Some(alias.to_string()),
                _ => None,
            };
            let name = alias.or_else(|| segments.last().cloned());
            self.reference(segments, line, name, place);
        }
    }

    fn reference(&mut self, segments: Vec<String>, line: usize, used_as: Option<String>, place: &Place) {
        if segments.len() < 2 && used_as.is_none() {
            return; // a bare name
        }
        let module = place.module.clone();
        self.source.references.push(Reference { segments, module, line, in_test: place.in_test, used_as });
    }

    /// Derives and serde's `with = "crate::…"` name paths too.
    fn attribute(&mut self, group: &Group, place: &Place) {
        let line = group.span_open().start().line;
        let text = compact(&group.stream());
        if text.starts_with("allow(") {
            self.source.oddities.push((line, "write #[expect(…, reason = \"…\")] instead of #[allow]".to_owned()));
        }
        if text.starts_with("path=") {
            self.source.oddities.push((line, "#[path] puts a module where nobody looks".to_owned()));
        }
        if text.starts_with("doc") {
            return;
        }
        self.items(group.stream(), place);
        self.literals(group.stream(), place);
    }

    fn literals(&mut self, tokens: TokenStream, place: &Place) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.literals(group.stream(), place),
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let text = text.trim_matches('"');
                    if (text.starts_with("crate::") || text.starts_with("super::"))
                        && let Ok(tokens) = text.parse::<TokenStream>()
                    {
                        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
                        self.reference(path(&tokens, 0).0, literal.span().start().line, None, place);
                    }
                }
                _ => {}
            }
        }
    }
}

/// `#[…]` or `#![…]` at `at`: its inside, and the position after it.
fn attribute(tokens: &[TokenTree], at: usize) -> Option<(Group, usize)> {
    let skip = usize::from(tokens.get(at + 1).is_some_and(|token| is_punct(token, '!')));
    match tokens.get(at + 1 + skip) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Some((group.clone(), at + 2 + skip))
        }
        _ => None,
    }
}

/// The segments of the path that begins at `at`, and the position after it (and after a trailing `::`).
fn path(tokens: &[TokenTree], mut at: usize) -> (Vec<String>, usize) {
    let mut segments = Vec::new();
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        segments.push(ident.to_string().trim_start_matches("r#").to_owned());
        at += 1;
        let separator = tokens.get(at..at + 2).is_some_and(|two| two.iter().all(|token| is_punct(token, ':')));
        if !separator {
            break;
        }
        at += 2;
    }
    (segments, at)
}

/// `(crate)`, `(super)`, `(in …)` after `pub`.
fn is_visibility(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else { return false };
    let first = group.stream().into_iter().next();
    group.delimiter() == Delimiter::Parenthesis
        && matches!(first, Some(TokenTree::Ident(word)) if ["crate", "super", "self", "in"].iter().any(|w| word == w))
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}

fn compact(tokens: &TokenStream) -> String {
    tokens.to_string().split_whitespace().collect()
}

/// Functions with their first line, name and length.
struct Lengths(Vec<(usize, String, usize)>);

impl Lengths {
    fn push(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let (first, last) = (signature.fn_token.span.start().line, body.brace_token.span.close().end().line);
        self.0.push((first, signature.ident.to_string(), last + 1 - first));
    }
}

impl<'ast> Visit<'ast> for Lengths {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.push(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.push(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.push(&item.sig, body);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}
