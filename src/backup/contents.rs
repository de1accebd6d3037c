//! The list of an archive's contents (`pg_restore --list`), and what a restore takes from it.
//!
//! Left out is what the daemon puts into a new database by itself, as another role: the schemas `public` and `tenantd`,
//! and grants, which name roles of the database that was dumped. Extensions are created unless they are there already,
//! and their comments are left out, because those belong to whoever made them.

/// Beginnings of entries that are not restored. An entry reads `4; 2615 2200 SCHEMA - public owner`, and what kind it
/// is stands in front of every name that a tenant may choose.
const KINDS_LEFT_OUT: &[&str] = &["ACL ", "DEFAULT ACL ", "COMMENT - EXTENSION "];
/// Schemas that are there already.
const SCHEMAS_LEFT_OUT: &[&str] = &["public", "tenantd"];
/// The schema that every database begins with.
const PUBLIC_OID: &str = "2200";

/// What an archive has, in the passes in which it is restored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents<'a> {
    /// Everything but what follows.
    pub main: Vec<Entry<'a>>,
    /// The refreshes of materialized views.
    pub views: Vec<Entry<'a>>,
    /// Publications and what belongs to them. Some of them only a superuser can create.
    pub publications: Vec<Entry<'a>>,
}

impl<'a> Contents<'a> {
    /// Takes the output of `pg_restore --list`.
    pub(super) fn read(list: &'a str) -> Self {
        let mut contents = Self::default();
        for entry in list.lines().filter_map(entry).filter(|entry| !entry.is_left_out()) {
            let has = |beginnings: &[&str]| beginnings.iter().any(|beginning| entry.description.starts_with(beginning));
            if has(&["MATERIALIZED VIEW DATA "]) {
                contents.views.push(entry);
            } else if has(&["PUBLICATION ", "COMMENT - PUBLICATION "]) {
                contents.publications.push(entry);
            } else {
                contents.main.push(entry);
            }
        }
        contents
    }
}

/// A list for `pg_restore --use-list`: one id per line.
pub(super) fn list(entries: &[Entry<'_>]) -> String {
    entries.iter().fold(String::new(), |text, entry| text + entry.id + ";\n")
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    id: &'a str,
    oid: &'a str,
    /// Kind, schema or `-`, name, owner.
    pub description: &'a str,
}

impl Entry<'_> {
    fn is_left_out(&self) -> bool {
        KINDS_LEFT_OUT.iter().any(|beginning| self.description.starts_with(beginning))
            || self.schema("SCHEMA - ").is_some_and(|rest| self.oid == PUBLIC_OID || is_left_out(rest))
            || self.schema("COMMENT - SCHEMA ").is_some_and(is_left_out)
    }

    /// The name and the owner.
    fn schema(&self, beginning: &str) -> Option<&str> {
        self.description.strip_prefix(beginning)
    }
}

/// Whether this is one of the schemas with its owner. Both names may have blanks in them, and nothing tells them apart:
/// owners that have are those of `public` at most, which has another sign.
fn is_left_out(name_and_owner: &str) -> bool {
    let parts = name_and_owner.split_once(' ');
    parts.is_some_and(|(name, owner)| SCHEMAS_LEFT_OUT.contains(&name) && !owner.contains(' '))
}

/// `id; catalog oid description…`; anything else is a comment.
fn entry(line: &str) -> Option<Entry<'_>> {
    let (id, rest) = line.split_once("; ")?;
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (_catalog, rest) = rest.split_once(' ')?;
    let (oid, description) = rest.split_once(' ')?;
    Some(Entry { id, oid, description })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(list: &str) -> String {
        super::list(&Contents::read(list).main)
    }

    const LIST: &str = "\
;
; Archive created at 2026-11-21 01:50:44 UTC
;     dbname: erp_acme
;     TOC Entries: 12
;
; Selected TOC Entries:
;
5; 2615 2200 SCHEMA - public pg_database_owner
3400; 0 0 COMMENT - SCHEMA public pg_database_owner
6; 2615 16400 SCHEMA - ACL owner
7; 2615 16401 SCHEMA - public archive owner
8; 2615 16402 SCHEMA - tenantd old owner
9; 2615 16403 SCHEMA - tenantd owner
3405; 0 0 COMMENT - SCHEMA public archive owner
2; 3079 16401 EXTENSION - pgcrypto 
3401; 0 0 COMMENT - EXTENSION pgcrypto 
214; 1259 16389 TABLE public EXTENSION owner
215; 1259 16390 TABLE ACL ACL owner
3341; 0 16389 TABLE DATA public EXTENSION owner
3402; 0 0 ACL - SCHEMA public pg_database_owner
3403; 0 0 ACL public TABLE acc owner
2069; 826 16388 DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES owner
3404; 0 0 COMMENT public TABLE acc owner
3350; 0 0 SEQUENCE SET public acc_id_seq owner
";

    #[test]
    fn what_the_daemon_makes_by_itself_is_left_out_and_names_deceive_nobody() {
        assert_eq!(filter(LIST), "6;\n7;\n8;\n3405;\n2;\n214;\n215;\n3341;\n3404;\n3350;\n");
    }

    #[test]
    fn what_has_a_pass_of_its_own_is_told_by_its_kind() {
        let text = "1; 0 0 MATERIALIZED VIEW DATA public totals owner
2; 1259 1 MATERIALIZED VIEW public PUBLICATION owner
3; 6104 2 PUBLICATION - feed owner
4; 6106 3 PUBLICATION TABLE public feed things owner
5; 0 0 COMMENT - PUBLICATION feed owner
6; 0 0 COMMENT public TABLE things owner
";
        let Contents { main, views, publications } = Contents::read(text);
        assert_eq!(
            [&views, &main, &publications].map(|entries| super::list(entries)),
            ["1;\n", "2;\n6;\n", "3;\n4;\n5;\n"]
        );
    }

    #[test]
    fn public_is_known_whoever_owns_it() {
        assert_eq!(filter("5; 2615 2200 SCHEMA - public somebody else\n"), "");
    }

    #[test]
    fn an_empty_archive_has_an_empty_list() {
        assert_eq!(filter(";\n; Selected TOC Entries:\n;\n"), "");
    }
}
