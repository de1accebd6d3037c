//! `tenantd server bootstrap`: prepares one server, once, with a superuser's rights that the daemon never has again.
//! Passwords go to the credentials file and nowhere else. Repeating it is harmless: an existing file is kept and used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::error::Error;
use crate::config::{Credentials, Keys, RoleLogin, ServerConfig, ServerTls, write_private};
use crate::domain::tenant::{DatabaseName, Naming, RoleName};
use crate::postgres::{ConnectRequest, Connection, Lane, Server, SessionOptions, bootstrap as postgres_bootstrap};
use crate::secrets::{keys_new, password_new};
use crate::shutdown::Tasks;

/// The roles that the daemon logs in as, on every server.
const DAEMON_ROLE: &str = "tenantd";
const DUMP_ROLE: &str = "tenantd_dump";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What to prepare, and as whom.
#[derive(Debug, Clone)]
pub struct BootstrapRequest {
    pub host: String,
    pub port: u16,
    pub tls: ServerTls,
    pub ca_file: Option<PathBuf>,
    pub superuser: RoleLogin,
    pub prefix: String,
    pub credentials_file: PathBuf,
    /// Made when missing, together with the escrow identity beside it.
    pub keys_file: Option<PathBuf>,
    /// Also makes the shared and the auth database; one server of a fleet has them.
    pub catalog: bool,
}

/// Answers with what was done, as sentences.
pub async fn bootstrap(request: &BootstrapRequest, tasks: &Tasks) -> Result<Vec<String>, Error> {
    let naming = Naming::new(&request.prefix).map_err(|error| Error::Usage(error.to_string()))?;
    let mut done = Vec::new();
    let credentials = credentials(&request.credentials_file, &mut done)?;
    if let Some(file) = &request.keys_file {
        keys(file, &mut done)?;
    }
    let config = ServerConfig {
        name: "bootstrap".to_owned(),
        host: request.host.clone(),
        port: request.port,
        tls: request.tls,
        ca_file: request.ca_file.clone(),
        connections_max: 8,
        connections_reserved: 4,
        connects_parallel_max: 1,
        credentials: credentials.clone(),
    };
    let server = Server::new(&config, tasks, Uuid::new_v4())?;
    let catalog = request.catalog.then_some(&naming);
    done.extend(prepare(&server, &request.superuser, &credentials, catalog).await?);
    Ok(done)
}

/// The server's roles, and a fleet's two databases when it is to have them.
pub(super) async fn prepare(
    server: &Server,
    login: &RoleLogin,
    credentials: &Credentials,
    catalog: Option<&Naming>,
) -> Result<Vec<String>, Error> {
    let client = superuser(server, login, server.maintenance_database()).await?;
    let mut done = postgres_bootstrap::bootstrap_roles(&client, credentials).await?;
    let (daemon, dump) = (&credentials.daemon.role, &credentials.dump.role);
    if let Some(naming) = catalog {
        done.extend(postgres_bootstrap::bootstrap_databases(&client, naming, daemon, dump).await?);
        for database in [naming.shared_database(), naming.auth_database()] {
            let inside = superuser(server, login, &database).await?;
            done.push(postgres_bootstrap::bootstrap_functions(&inside, naming, daemon, dump).await?);
        }
    }
    Ok(done)
}

/// A session with rights that the daemon never has.
async fn superuser(server: &Server, login: &RoleLogin, database: &DatabaseName) -> Result<Connection, Error> {
    let request = ConnectRequest {
        lane: Lane::Administration,
        login,
        database,
        application_name: &server.session_name("bootstrap"),
        options: SessionOptions::default(),
        deadline: tokio::time::Instant::now() + CONNECT_TIMEOUT,
    };
    Ok(server.connect(&request).await?)
}

/// Reads the file, or makes it with fresh passwords.
pub(super) fn credentials(file: &Path, done: &mut Vec<String>) -> Result<Credentials, Error> {
    if file.exists() {
        done.push(format!("kept the passwords in {}", file.display()));
        return Credentials::read(file).map_err(Error::Usage);
    }
    let login = |role: &str| -> Result<RoleLogin, Error> {
        let role = RoleName::new(role).map_err(|error| Error::Usage(error.to_string()))?;
        Ok(RoleLogin { role, password: password_new() })
    };
    let credentials = Credentials { daemon: login(DAEMON_ROLE)?, dump: login(DUMP_ROLE)? };
    write_private(file, &credentials.to_toml()).map_err(|source| Error::file(file, source))?;
    done.push(format!("wrote fresh passwords to {}", file.display()));
    Ok(credentials)
}

/// Makes the keys file when it is missing. The escrow identity is written first: a recipient whose identity was never
/// stored would be no escrow.
pub(super) fn keys(file: &Path, done: &mut Vec<String>) -> Result<(), Error> {
    if file.exists() {
        done.push(format!("kept the keys in {}", file.display()));
        return Ok(());
    }
    let new = keys_new();
    let escrow_file = file.with_extension("escrow-identity");
    let identity = format!("{}\n", secrecy::ExposeSecret::expose_secret(&new.escrow_identity));
    if escrow_file.exists() {
        return Err(Error::Usage(format!(
            "{} is there without {}: an earlier run was cut off; remove it and run again",
            escrow_file.display(),
            file.display()
        )));
    }
    write_private(&escrow_file, &identity).map_err(|source| Error::file(&escrow_file, source))?;
    let keys = Keys {
        key_encryption_key: new.key_encryption_key,
        manifest_signing_key: new.manifest_signing_key,
        escrow_recipient: new.escrow_recipient,
    };
    write_private(file, &keys.to_toml()).map_err(|source| Error::file(file, source))?;
    done.push(format!("wrote fresh keys to {}", file.display()));
    done.push(format!(
        "wrote the escrow identity to {}: it opens every backup; move it off this machine",
        escrow_file.display()
    ));
    Ok(())
}
