//! Where a private cluster's files are, and who owns them. PostgreSQL refuses to run as root, so root's cluster
//! belongs to an unprivileged user; when that user cannot enter the data directory (below `/root`, say), the files go
//! to a place that it can enter, and `cluster-location` in the data directory says where.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::errors::{Error, file};
use crate::postgres::programs::OsUser;

/// Where everybody may make a directory, and nothing is swept away at a restart.
const ELSEWHERE: &str = "/var/tmp";

/// The directory of a cluster, and the user to run it as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    /// `None`: the user of this process.
    pub(super) user: Option<OsUser>,
}

impl Place {
    /// The same place at every start with the same data directory, which exists.
    pub(super) async fn find(data_dir: &Path) -> Result<Self, Error> {
        let told = data_dir.join("cluster-location");
        let inside = data_dir.join("cluster");
        let dir = match fs::read_to_string(&told) {
            Ok(text) => PathBuf::from(text.trim()),
            Err(_) => inside.clone(),
        };
        if let Some(owner) = owner(&dir.join("data"))? {
            return Self::existing(dir, owner);
        }
        if !OsUser::current_is_root() {
            make(&dir, None)?;
            return Ok(Self { dir, user: None });
        }
        let user = OsUser::unprivileged().ok_or(Error::NoUser)?;
        make_enterable(data_dir)?;
        make(&inside, Some(&user))?;
        if user.can_use(&inside).await {
            return Ok(Self { dir: inside, user: Some(user) });
        }
        fs::remove_dir(&inside).map_err(file(&inside))?;
        let elsewhere = elsewhere(data_dir)?;
        make(&elsewhere, Some(&user))?;
        fs::write(&told, format!("{}\n", elsewhere.display())).map_err(file(&told))?;
        Ok(Self { dir: elsewhere, user: Some(user) })
    }

    /// A cluster runs as its files' owner.
    fn existing(dir: PathBuf, owner: (u32, u32)) -> Result<Self, Error> {
        let (uid, gid) = owner;
        if OsUser::current_uid() == Some(uid) {
            return Ok(Self { dir, user: None });
        }
        if !OsUser::current_is_root() {
            let owner = OsUser::by_uid(uid).map_or_else(|| uid.to_string(), |user| user.name);
            return Err(Error::Owner { dir, owner });
        }
        let name = OsUser::by_uid(uid).map_or_else(|| uid.to_string(), |user| user.name);
        Ok(Self { dir, user: Some(OsUser { name, uid, gid }) })
    }

    /// Gives a file to the cluster's user.
    pub(super) fn give(&self, path: &Path) -> Result<(), Error> {
        match &self.user {
            Some(user) => chown(path, Some(user.uid), Some(user.gid)).map_err(file(path)),
            None => Ok(()),
        }
    }
}

/// One place per data directory, whatever its path is called today.
fn elsewhere(data_dir: &Path) -> Result<PathBuf, Error> {
    let canonical = data_dir.canonicalize().map_err(file(data_dir))?;
    let hash = hex::encode(Sha256::digest(canonical.as_os_str().as_encoded_bytes()));
    Ok(Path::new(ELSEWHERE).join(format!("tenantd-{}", &hash[..16])))
}

/// Makes the directory with mode 0700. One that is there already must be the user's own: in a folder where everybody
/// may write, somebody else could have put it there.
fn make(dir: &Path, user: Option<&OsUser>) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(dir).map_err(file(dir))?;
            let owners = [OsUser::current_uid(), user.map(|user| user.uid)];
            if !found.is_dir() || !owners.contains(&Some(found.uid())) {
                return Err(Error::Foreign { dir: dir.to_owned() });
            }
        }
        Err(error) => return Err(file(dir)(error)),
    }
    if let Some(user) = user {
        chown(dir, Some(user.uid), Some(user.gid)).map_err(file(dir))?;
    }
    Ok(())
}

/// Lets the unprivileged user pass through the data directory; its files have modes of their own.
fn make_enterable(data_dir: &Path) -> Result<(), Error> {
    let mode = fs::metadata(data_dir).map_err(file(data_dir))?.mode();
    fs::set_permissions(data_dir, Permissions::from_mode(mode | 0o011)).map_err(file(data_dir))
}

fn owner(path: &Path) -> Result<Option<(u32, u32)>, Error> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some((found.uid(), found.gid()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file(path)(error)),
    }
}
