//! `postgresql://` URLs whose parts may hold any character. A URL with a password is a secret.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use secrecy::{ExposeSecret as _, SecretString};

use crate::config::{ServerConfig, ServerTls};
use crate::domain::tenant::{DatabaseName, RoleName};

/// The URL that a driver takes; with the password when there is one.
pub fn url(
    server: &ServerConfig,
    database: &DatabaseName,
    role: &RoleName,
    password: Option<&SecretString>,
) -> SecretString {
    let mut url = format!("postgresql://{}", encoded(role.as_str()));
    if let Some(password) = password {
        url.push(':');
        url.push_str(&encoded(password.expose_secret()));
    }
    url.push('@');
    url.push_str(&host(&server.host));
    let _infallible = write!(url, ":{}/{}", server.port, encoded(database.as_str()));
    if server.tls == ServerTls::VerifyFull {
        url.push_str("?sslmode=verify-full");
    }
    url.into()
}

/// Addresses of IPv6 stand in brackets; the directory of a Unix socket is encoded, slashes too.
fn host(host: &str) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { encoded(host) }
}

/// Everything but RFC 3986's unreserved characters in `%XX`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credentials, RoleLogin};

    fn server(host: &str, tls: ServerTls) -> ServerConfig {
        let login = || RoleLogin { role: RoleName::new("r").unwrap(), password: "p".into() };
        ServerConfig {
            name: "main".to_owned(),
            host: host.to_owned(),
            port: 5432,
            tls,
            ca_file: None,
            connections_max: 10,
            connections_reserved: 4,
            connects_parallel_max: 2,
            credentials: Credentials { daemon: login(), dump: login() },
        }
    }

    fn of(host: &str, database: &str, role: &str, password: Option<&str>) -> String {
        let password = password.map(SecretString::from);
        let (database, role) = (DatabaseName::new(database).unwrap(), RoleName::new(role).unwrap());
        url(&server(host, ServerTls::Disable), &database, &role, password.as_ref()).expose_secret().to_owned()
    }

    #[test]
    fn every_part_may_hold_every_character() {
        assert_eq!(
            of("db.example.com", "erp_acme", "erp_acme__a", None),
            "postgresql://erp_acme__a@db.example.com:5432/erp_acme"
        );
        assert_eq!(
            of("db", "a/b?c#d", "u@x:y", Some("p@s:s/w%é ")),
            "postgresql://u%40x%3Ay:p%40s%3As%2Fw%25%C3%A9%20@db:5432/a%2Fb%3Fc%23d"
        );
    }

    #[test]
    fn hosts_of_every_kind() {
        assert_eq!(of("::1", "d", "u", None), "postgresql://u@[::1]:5432/d");
        assert_eq!(of("/var/run/postgresql", "d", "u", None), "postgresql://u@%2Fvar%2Frun%2Fpostgresql:5432/d");
    }

    #[test]
    fn the_driver_reads_the_same_parts() {
        let config: tokio_postgres::Config = of("db", "a/b", "u@x", Some("p:%")).parse().unwrap();
        assert_eq!(config.get_user(), Some("u@x"));
        assert_eq!(config.get_password(), Some("p:%".as_bytes()));
        assert_eq!(config.get_dbname(), Some("a/b"));
    }

    proptest::proptest! {
        /// Whatever stands in a part, the driver finds it there, and nowhere else.
        #[test]
        fn every_part_comes_back(
            user in "[^\0]{1,15}", password in "[^\0]{1,40}", database in "[^\0]{1,15}",
            host in "[a-z][a-z0-9.-]{0,20}", port in 1_u16..,
        ) {
            let (database, role) = (DatabaseName::new(&*database).unwrap(), RoleName::new(&*user).unwrap());
            let config = ServerConfig { port, ..server(&host, ServerTls::Disable) };
            let url = url(&config, &database, &role, Some(&password.as_str().into()));
            let read: tokio_postgres::Config = url.expose_secret().parse().unwrap();
            proptest::prop_assert_eq!(read.get_user(), Some(role.as_str()));
            proptest::prop_assert_eq!(read.get_password(), Some(password.as_bytes()));
            proptest::prop_assert_eq!(read.get_dbname(), Some(database.as_str()));
            proptest::prop_assert_eq!(read.get_hosts().to_vec(), vec![tokio_postgres::config::Host::Tcp(host)]);
            proptest::prop_assert_eq!(read.get_ports().to_vec(), vec![port]);
            proptest::prop_assert_eq!(read.get_options(), None);
        }
    }

    #[test]
    fn encryption_is_asked_for() {
        let (database, role) = (DatabaseName::new("d").unwrap(), RoleName::new("u").unwrap());
        let url = url(&server("db", ServerTls::VerifyFull), &database, &role, None);
        assert_eq!(url.expose_secret(), "postgresql://u@db:5432/d?sslmode=verify-full");
    }
}
