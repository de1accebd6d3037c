//! Strings in every notation that PostgreSQL has, and calls that stand where a careless reader sees another string:
//! whatever a statement's words look like, the next caller finds a session without anything of it.

use super::{ask, only, text};
use crate::harness::Spec;
use crate::tenants::Rooms;

/// More than it takes until a plain read runs without a guard.
const OFTEN: usize = 105;

/// What may stand before a quote that is none, and behind it.
fn hiding() -> Vec<(String, String)> {
    let tags = ["€", "💩", "a€", "€1", "\u{a0}", "é_1", "_", "A1", ""];
    let tags = tags.map(|tag| (format!("${tag}$ ' ${tag}$"), format!("${tag}$ ' ${tag}$")));
    let others = [
        ("e'\\' '", "e'\\' '"),
        ("E'a'\n'\\' '", "E'a' --\n'\\' '"),
        ("E'a' -- b'\n'\\' '", "e'\\' '"),
        ("u&'a'\n'' || $a€$ ' $a€$", "$a€$ ' $a€$"),
        ("N'a' || $é$ ' $é$", "$é$ ' $é$"),
        ("'a' || 1$é$ ' $é$", "$é$ ' $é$"),
        ("1 as a€$ , $é$ ' $é$", "$é$ ' $é$"),
        ("$1$ ' $1$", "$1$ ' $1$"),
        ("/* /* */ ' */ 'a'", "/* ' */ 'a'"),
        ("'a' --\r ", "'a' --'"),
        ("'a'+--'\n1", "'a' --'"),
    ];
    let others = others.map(|(before, after)| (before.to_owned(), after.to_owned()));
    tags.into_iter().chain(others).collect()
}

#[tokio::test]
async fn no_call_hides_in_what_looks_like_a_string() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let mut taken = 0;
    for (before, after) in hiding() {
        let sql = format!("SELECT {before}, set_config('app.kept', 'yes', false) AS kept, {after}");
        if let Err(refused) = ask(&rooms, &acme, &sql).await {
            assert!(matches!(refused, tenantd::query::Error::Sql(_)), "{sql}: {refused:?}");
            continue;
        }
        taken += 1;
        for _ in 0..OFTEN {
            ask(&rooms, &acme, &sql).await.unwrap();
        }
        let kept = "SELECT coalesce(current_setting('app.kept', true), '') AS kept";
        assert_eq!(only(&ask(&rooms, &acme, kept).await.unwrap()), text(""), "{sql}");
    }
    assert!(taken >= 12, "PostgreSQL took only {taken} of them");
    rooms.finish().await;
}
