//! `tenantd server bootstrap`: prepares one server, once, with a superuser's rights that the daemon never has again.
//! Passwords go to the credentials file and nowhere else. Repeating it is harmless: an existing file is kept and used, and
//! roles that are there keep their passwords unless new ones are asked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::error::Error;
use crate::config::{Credentials, Keys, RoleLogin, ServerConfig, ServerTls, write_private};
use crate::domain::tenant::{DatabaseName, Naming, RoleName};
use crate::postgres::roles::roles_existing;
use crate::postgres::{ConnectRequest, Connection, Lane, Server, SessionOptions, bootstrap as postgres_bootstrap};
use crate::secrets::{self, Envelope, ManifestSigner, keys_new, password_new};
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
    /// Roles that are there get fresh passwords when there is no credentials file.
    pub new_passwords: bool,
}

/// Answers with what was done, as sentences.
pub async fn bootstrap(request: &BootstrapRequest, tasks: &Tasks) -> Result<Vec<String>, Error> {
    let naming = Naming::new(&request.prefix).map_err(|error| Error::Usage(error.to_string()))?;
    files_check(request)?;
    let config = ServerConfig {
        name: "bootstrap".to_owned(),
        host: request.host.clone(),
        port: request.port,
        tls: request.tls,
        ca_file: request.ca_file.clone(),
        connections_max: 8,
        connections_reserved: 4,
        connects_parallel_max: 1,
        credentials: credentials_find(&request.credentials_file)?,
    };
    let server = Server::new(&config, tasks, Uuid::new_v4())?;
    // Nothing is written before the server has let us in.
    let client = superuser(&server, &request.superuser, server.maintenance_database()).await?;
    if !request.credentials_file.exists() && !request.new_passwords {
        let login = &config.credentials;
        let roles = roles_existing(&client, &[login.daemon.role.clone(), login.dump.role.clone()]).await?;
        if !roles.is_empty() {
            return Err(passwords_kept(request, &roles));
        }
    }
    drop(client);
    let mut done = Vec::new();
    let credentials = credentials(&request.credentials_file, &mut done)?;
    if let Some(file) = &request.keys_file {
        keys(file, &mut done)?;
    }
    let catalog = request.catalog.then_some(&naming);
    done.extend(prepare(&server, &request.superuser, &credentials, catalog).await?);
    Ok(done)
}

/// Files that are there must be what they are taken for, before anything is done with a server.
fn files_check(request: &BootstrapRequest) -> Result<(), Error> {
    let Some(keys_file) = &request.keys_file else { return Ok(()) };
    let place = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if place(keys_file) == place(&request.credentials_file) {
        return Err(Error::Usage("--credentials-file and --keys-file are the same file; name two".to_owned()));
    }
    if keys_file.exists() {
        keys_read(keys_file)?;
    }
    Ok(())
}

/// Keys that are of use.
fn keys_read(file: &Path) -> Result<Keys, Error> {
    let keys = Keys::read(file).map_err(Error::Usage)?;
    let bad = |error: secrets::Error| Error::Usage(format!("{}: {error}", file.display()));
    Envelope::new(&keys.key_encryption_key).map_err(bad)?;
    ManifestSigner::new(&keys.manifest_signing_key).map_err(bad)?;
    Ok(keys)
}

/// The credentials in the file, or those that it would get but for their passwords.
fn credentials_find(file: &Path) -> Result<Credentials, Error> {
    if file.exists() {
        return Credentials::read(file).map_err(Error::Usage);
    }
    credentials_new()
}

fn credentials_new() -> Result<Credentials, Error> {
    let login = |role: &str| -> Result<RoleLogin, Error> {
        let role = RoleName::new(role).map_err(|error| Error::Usage(error.to_string()))?;
        Ok(RoleLogin { role, password: password_new() })
    };
    Ok(Credentials { daemon: login(DAEMON_ROLE)?, dump: login(DUMP_ROLE)? })
}

/// Whoever logs in as these roles would be locked out.
fn passwords_kept(request: &BootstrapRequest, roles: &[RoleName]) -> Error {
    let names = roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    Error::Usage(format!(
        "nothing was changed: the server {}:{} has {names} already, and {} does not exist, so that they would get new passwords and a daemon that logs in as them would be locked out. Name the credentials file that has their passwords; or write one with other roles in it; or, when the passwords are lost, add --new-passwords and give the new file to every daemon",
        request.host,
        request.port,
        request.credentials_file.display()
    ))
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
        let credentials = Credentials::read(file).map_err(Error::Usage)?;
        done.push(format!("kept the passwords in {}", file.display()));
        return Ok(credentials);
    }
    let credentials = credentials_new()?;
    write_private(file, &credentials.to_toml()).map_err(|source| Error::file(file, source))?;
    done.push(format!("wrote fresh passwords to {}", file.display()));
    Ok(credentials)
}

/// Makes the keys file when it is missing. The escrow identity is written first: a recipient whose identity was never
/// stored would be no escrow.
pub(super) fn keys(file: &Path, done: &mut Vec<String>) -> Result<(), Error> {
    if file.exists() {
        keys_read(file)?;
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
