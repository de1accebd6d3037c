//! Values of types without a field of their own: PostgreSQL's own text form, which PostgreSQL reads back, for every type
//! that a server has and that sends its values.

use tenantd::proto::v1::value::Kind;

use super::{ask, only, run, text};
use crate::harness::Spec;
use crate::tenants::Rooms;

/// Type and value.
const TEXTS: &[(&str, &str)] = &[
    ("money", "-$1,234,567.05"),
    ("money", "92233720368547758.07"),
    ("money[]", "{0,12.30,NULL}"),
    ("tsvector", "'fat':2A,4 'it''s':1B 'ra\\\\t':3C"),
    ("tsvector", ""),
    ("tsquery", "'a' & ( 'b' | !'c':*AB )"),
    ("tsquery", "'a' <-> ( 'b' <2> 'c' )"),
    ("tsquery", "( 'a' & 'b' ) <-> 'c'"),
    ("tsquery", "!( 'a' | 'b' ) & !!'c'"),
    ("tsquery", ""),
    ("point", "(1.5,-1e+20)"),
    ("point", "(NaN,Infinity)"),
    ("lseg", "[(0,0),(1,0.1)]"),
    ("box", "(2,2),(0,0)"),
    ("path", "[(1,2),(3,4)]"),
    ("path", "((1,2),(3,4))"),
    ("polygon", "((0,0),(1,1),(2,0))"),
    ("line", "{1,-1,1e-05}"),
    ("circle", "<(1,2),3>"),
    ("point[]", "{\"(1,2)\",NULL}"),
    ("box[]", "{(2,2),(0,0);(1,1),(0,0)}"),
    ("hstore", "\"a\"=>\"1\", \"b c\"=>NULL, \"d\\\"e\"=>\"\\\\\""),
    ("citext", "Mixed"),
    ("ltree", "top.below"),
    ("int2vector", "1 2 3"),
    ("oidvector", ""),
    ("tid", "(7,3)"),
    ("pg_snapshot", "10:20:10,14"),
    ("macaddr8", "08:00:2b:01:02:03:04:05"),
    ("inet", "192.168.0.1/24"),
    ("numeric", "Infinity"),
    ("numeric", "-Infinity"),
    ("numeric", "1e-16000"),
    ("numeric", "1e100000"),
    ("numeric", "0.00000000000000000000000000000000000000000001"),
    ("timetz", "24:00:00+15:59:59"),
    ("interval", "-178000000 years"),
    ("interval", "1 mon -1 days +00:00:00.000001"),
    ("date", "4713-01-01 BC"),
    ("int8range[]", "{\"[1,3)\",empty}"),
    ("nummultirange", "{(,1.5],[2.50,3)}"),
    ("daterange", "[2024-01-01,2024-02-29)"),
    ("varbit", ""),
    ("bit varying[]", "{101,NULL}"),
    ("jsonpath", "$.\"a\"[*]?(@ > 1)"),
    ("xml", "<a b=\"c\">d</a>"),
    ("xid8", "18446744073709551615"),
    ("pg_lsn", "FFFFFFFF/FFFFFFFF"),
    ("pair", "(1,\"a \"\"b\"\" \\\\ ,\")"),
    ("pair[]", "{\"(1,x)\",NULL,\"(,)\"}"),
    ("nested", "(\"(1,x)\",\"{1,2}\",1.5)"),
    ("record_of", "(t,1e+20,1e+06,\\\\x00ff)"),
    ("record_of", "(t,1591589595395282.25,3e10,)"),
    ("point", "(619693371567747.25,6.189700196426902e+26)"),
    ("float8[]", "{{1e+20,NaN},{-0,0.1}}"),
    ("char", "x"),
    ("\"char\"", "x"),
];

#[tokio::test]
async fn values_are_postgresqls_own_text() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let made = [
        "CREATE EXTENSION hstore",
        "CREATE EXTENSION citext",
        "CREATE EXTENSION ltree",
        "CREATE TYPE pair AS (a integer, b text)",
        "CREATE TYPE nested AS (a pair, b integer[], c float8)",
        "CREATE TYPE record_of AS (a bool, b float8, c float4, d bytea)",
    ];
    for statement in made {
        ask(&rooms, &acme, statement).await.unwrap();
    }
    let mut wrong = Vec::new();
    for (ty, given) in TEXTS {
        let sql = format!("SELECT $1::{ty}, $1::{ty}::text");
        match run(&rooms, &acme, &sql, &[text(given)], 0).await {
            Ok(output) => {
                let own = output.rows[0].values[1].clone();
                let came = only(&output);
                let is_array = matches!(came.kind, Some(Kind::ArrayValue(_)));
                if came != own && !is_array {
                    wrong.push(format!("{ty}: {given} came as {came:?}, and PostgreSQL writes {own:?}"));
                }
                // What came is taken again, and is the same.
                let again = run(&rooms, &acme, &format!("SELECT $1::{ty}::text"), &[came], 0).await;
                if again.as_ref().map(only).ok() != Some(own) {
                    wrong.push(format!("{ty}: {given} went back as {again:?}"));
                }
            }
            Err(error) => wrong.push(format!("{ty}: {given}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Names of objects are numbers here.
    let class = ask(&rooms, &acme, "SELECT 'pg_class'::regclass").await.unwrap();
    assert_eq!(only(&class), text("1259"));
    rooms.finish().await;
}
