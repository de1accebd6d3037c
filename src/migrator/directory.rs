//! A migration directory, read whole or refused whole. What tools of this kind skip in silence (a wrong name, a
//! second file of one version) is what leaves one tenant different from the others, so nothing is skipped here.
//!
//! Every entry must be a file `V<version>__<name>.sql`: no README, no dotfile, no sub-directory. The one exception
//! are entries that begin with `..`, by which a Kubernetes volume keeps its versions apart.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::gate::{GateError, Problem};
use super::rules;
use crate::domain::migration::MigrationFile;

/// A larger file is data, not a migration, and a rollout keeps every text in the catalog.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The history table's columns take no more.
const NAME_BYTES_MAX: usize = 255;

const NAME_ADVICE: &str = "call it V<version>__<name>.sql, as V7__add_colour.sql (the name of letters, digits and underscores), or move it elsewhere";

/// A directory that has passed the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// By version; no version twice.
    pub files: Vec<MigrationFile>,
    /// SHA-256 over versions, names and texts, in hexadecimal.
    pub hash: String,
}

impl Directory {
    /// Reads a directory of the file system. Blocks for as long as that takes.
    pub fn read(path: &Path) -> Result<Self, GateError> {
        let unreadable = |cause| GateError::Unreadable { path: path.to_owned(), cause };
        let mut entries: Vec<_> = fs::read_dir(path).and_then(Iterator::collect).map_err(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut gathered = Gathered::default();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") {
                gathered.entry(&name, &entry.path());
            }
        }
        gathered.finish(format!("the migration directory {}", path.display()))
    }

    /// The same gate for files that are not on a disk, given by name and text.
    pub fn from_files(files: &[(&str, &str)]) -> Result<Self, GateError> {
        let mut gathered = Gathered::default();
        for (name, text) in files {
            gathered.file(name, text.as_bytes());
        }
        gathered.finish("the migration directory".to_owned())
    }

    /// The newest version; 0 when there is no file.
    pub fn version(&self) -> i64 {
        self.files.last().map_or(0, |file| file.version)
    }
}

/// What has been read so far.
#[derive(Default)]
struct Gathered {
    /// By version, with the name of the entry.
    files: BTreeMap<i64, (String, MigrationFile)>,
    problems: Vec<Problem>,
}

impl Gathered {
    fn problem(&mut self, file: &str, line: Option<usize>, what: impl Into<String>, advice: &'static str) {
        self.problems.push(Problem { file: file.to_owned(), line, what: what.into(), advice });
    }

    fn entry(&mut self, name: &str, path: &Path) {
        match bytes_of(path) {
            Ok(Entry::Bytes(bytes)) => self.file(name, &bytes),
            Ok(Entry::NoFile) => {
                let what = "it is no file, and sub-directories are not read";
                self.problem(name, None, what, "move its files up, or move it elsewhere");
            }
            Ok(Entry::TooLarge(bytes)) => {
                let what = format!("it has {bytes} bytes, and at most {FILE_BYTES_MAX} are allowed");
                self.problem(name, None, what, "split it, or load data by other means");
            }
            Err(cause) => {
                self.problem(name, None, format!("it cannot be read: {cause}"), "check its permissions");
            }
        }
    }

    fn file(&mut self, name: &str, bytes: &[u8]) {
        let parsed = parse_name(name);
        if let Err(what) = &parsed {
            self.problem(name, None, *what, NAME_ADVICE);
            if !Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sql")) {
                return;
            }
        }
        let Some(sql) = self.text(name, bytes) else { return };
        for finding in rules::findings(sql) {
            self.problem(name, Some(finding.line), finding.what, finding.advice);
        }
        let Ok((version, title)) = parsed else { return };
        if let Some((other, _)) = self.files.get(&version) {
            let what = format!("it has the version {version}, and so has {other}");
            self.problem(
                name,
                None,
                what,
                "give one of them another version; if one was applied already, keep that one",
            );
            return;
        }
        let file = MigrationFile { version, name: title.to_owned(), sql: sql.to_owned() };
        self.files.insert(version, (name.to_owned(), file));
    }

    /// The file's text, if its bytes are fit to be one.
    fn text<'a>(&mut self, name: &str, bytes: &'a [u8]) -> Option<&'a str> {
        let line_at = |offset: usize| 1 + bytes.iter().take(offset).filter(|byte| **byte == b'\n').count();
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let line = line_at(error.valid_up_to());
                self.problem(name, Some(line), "the text is not UTF-8", "save it as UTF-8");
                return None;
            }
        };
        if text.starts_with('\u{feff}') {
            let what = "it begins with a byte order mark, which PostgreSQL takes for SQL";
            self.problem(name, Some(1), what, "save it as UTF-8 without a byte order mark");
        }
        if let Some(offset) = text.find('\0') {
            self.problem(name, Some(line_at(offset)), "there is a NUL byte in it", "remove it");
            return None;
        }
        if let Some(offset) = text.find('\r') {
            let what =
                "there is a carriage return (CR) in it, which would change the checksum from one checkout to another";
            self.problem(name, Some(line_at(offset)), what, "end lines with LF alone, and write E'\\r' in strings");
        }
        Some(text)
    }

    fn finish(mut self, directory: String) -> Result<Directory, GateError> {
        if !self.problems.is_empty() {
            self.problems.sort();
            return Err(GateError::Refused { directory, problems: self.problems });
        }
        let files: Vec<_> = self.files.into_values().map(|(_, file)| file).collect();
        let hash = hash(&files);
        Ok(Directory { files, hash })
    }
}

enum Entry {
    Bytes(Vec<u8>),
    NoFile,
    TooLarge(u64),
}

fn bytes_of(path: &Path) -> io::Result<Entry> {
    let metadata = fs::metadata(path)?;
    Ok(if !metadata.is_file() {
        Entry::NoFile
    } else if metadata.len() > FILE_BYTES_MAX {
        Entry::TooLarge(metadata.len())
    } else {
        Entry::Bytes(fs::read(path)?)
    })
}

/// The version and the title of `V<version>__<title>.sql`, or what is wrong with the name.
fn parse_name(name: &str) -> Result<(i64, &str), &'static str> {
    const SHAPE: &str = "it is no migration by its name";
    let stem = name.strip_suffix(".sql").ok_or(SHAPE)?;
    let (version, title) = stem.strip_prefix('V').and_then(|rest| rest.split_once("__")).ok_or(SHAPE)?;
    if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("its version is no whole number");
    }
    if title.is_empty() || !title.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(SHAPE);
    }
    if title.len() > NAME_BYTES_MAX {
        return Err("its name is too long for the history table");
    }
    match version.parse() {
        Ok(version) if version > 0 => Ok((version, title)),
        Ok(_) => Err("its version is 0, which stands for a database without migrations"),
        Err(_) => Err("its version is too large"),
    }
}

/// Lengths go in too, so that no two directories have the same bytes.
fn hash(files: &[MigrationFile]) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.version.to_be_bytes());
        for text in [&file.name, &file.sql] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
    }
    hex::encode(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of one file, as `line what`.
    fn problems(name: &str, bytes: &[u8]) -> Vec<String> {
        let mut gathered = Gathered::default();
        gathered.file(name, bytes);
        let problems = match gathered.finish(String::new()) {
            Ok(_) => return Vec::new(),
            Err(error) => error.problems().to_vec(),
        };
        problems.iter().map(|problem| format!("{} {}", problem.line.unwrap_or(0), problem.what)).collect()
    }

    #[test]
    fn names_are_taken_exactly_or_refused() {
        for name in ["V1__a.sql", "V001__a.sql", "V20240504090241__Add_colour_2.sql", "V9223372036854775807__x.sql"] {
            assert!(problems(name, b"SELECT 1;").is_empty(), "{name}");
        }
        let refused = [
            "v1__a.sql",
            "V1_a.sql",
            "V1__.sql",
            "V__a.sql",
            "V1.1__a.sql",
            "V1_7__a.sql",
            "V-1__a.sql",
            "V+1__a.sql",
            "V0__a.sql",
            "V9223372036854775808__a.sql",
            "V1__a-b.sql",
            "V1__a b.sql",
            "V1__é.sql",
            "V1__a.sql.bak",
            "V1__a.SQL",
            "U1__a.sql",
            "R__a.sql",
            "|1__a.sql",
            "V1__a.down.sql",
            "README.md",
            ".gitkeep",
            "V1__a\n.sql",
        ];
        for name in refused {
            assert_eq!(problems(name, b"SELECT 1;").len(), 1, "{name}");
        }
        assert_eq!(problems(&format!("V1__{}.sql", "a".repeat(256)), b"SELECT 1;").len(), 1);
    }

    #[test]
    fn texts_that_are_none_are_refused_with_their_line() {
        let cases: [(&[u8], &str); 6] = [
            (b"SELECT 1;\nSELECT '\xff';", "2 the text is not UTF-8"),
            (b"SELECT 1;\n\nSELECT '\0';", "3 there is a NUL byte in it"),
            (
                b"SELECT 1;\r\nSELECT 2;\r\n",
                "1 there is a carriage return (CR) in it, which would change the checksum from one checkout to another",
            ),
            (b"", "1 there is no statement in it"),
            (b" \n-- x\n", "1 there is no statement in it"),
            (b"\xef\xbb\xbfSELECT 1;", "1 it begins with a byte order mark, which PostgreSQL takes for SQL"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(problems("V1__a.sql", bytes), [expected]);
        }
    }

    #[test]
    fn files_come_in_the_order_of_versions_and_the_hash_knows_each_byte() {
        let one = Directory::from_files(&[("V10__b.sql", "SELECT 2;"), ("V9__a.sql", "SELECT 1;")]).unwrap();
        assert_eq!(one.files.iter().map(|file| file.version).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(one.version(), 10);
        let same = Directory::from_files(&[("V009__a.sql", "SELECT 1;"), ("V10__b.sql", "SELECT 2;")]).unwrap();
        assert_eq!(one.hash, same.hash);
        for other in [("V9__a.sql", "SELECT 1; "), ("V9__aa.sql", "SELECT 1;"), ("V8__a.sql", "SELECT 1;")] {
            let other = Directory::from_files(&[other, ("V10__b.sql", "SELECT 2;")]).unwrap();
            assert_ne!(one.hash, other.hash);
        }
        assert_eq!(Directory::from_files(&[]).unwrap().version(), 0);
    }

    #[test]
    fn a_person_reads_every_problem_at_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tenant-migrations");
        fs::create_dir_all(path.join("old")).unwrap();
        fs::create_dir_all(path.join("..data")).unwrap();
        let files: [(&str, &[u8]); 8] = [
            ("V1__articles.sql", b"CREATE TABLE articles (id uuid PRIMARY KEY);\n"),
            ("V01__partners.sql", b"CREATE TABLE partners (id uuid PRIMARY KEY);\n"),
            ("V2__add_colour.sql", b"ALTER TABLE articles ADD colour text;\nCOMMIT;\nSET search_path = x;\n"),
            ("V3__index.sql", b"CREATE INDEX CONCURRENTLY a ON articles (colour);\n"),
            ("V4__windows.sql", b"SELECT 1;\r\n\\echo done\r\n"),
            ("V5.1__decimal.sql", b"SELECT 1;\n"),
            ("v6__lower.sql", b"SELECT 1;\n"),
            ("README.md", b"# Our migrations\n"),
        ];
        for (name, bytes) in files {
            fs::write(path.join(name), bytes).unwrap();
        }
        let error = Directory::read(&path).unwrap_err();
        let message = error.to_string().replace(home.path().to_str().unwrap(), "/srv");
        insta::assert_snapshot!(message);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Directory::read(Path::new("/nonexistent/migrations")).unwrap_err();
        assert!(error.to_string().starts_with("the migration directory /nonexistent/migrations cannot be read: "));
        assert!(error.problems().is_empty());
    }
}
