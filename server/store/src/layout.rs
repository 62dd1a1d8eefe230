//! Where things lie in a store's directory, and how they get there so that a crash leaves the old or the new, never half.
//!
//! ```text
//! <dir>/lock                                  held while a writer is open
//! <dir>/epoch                                 manifest: the current epoch, as text
//! <dir>/run                                   see run.rs
//! <dir>/<epoch>/row_types                     see row_types.rs
//! <dir>/<epoch>/snapshots                     see snapshots.rs; where one is unfinished
//! <dir>/<epoch>/<lsn>-<ordinal>-<base>.log    see segment.rs; first record, and offset in the log, in hexadecimal
//! ```
//!
//! Invariant: the manifest names a directory that exists. Directories of other epochs are remnants and are removed.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tidegate_model::{Epoch, EpochInfo, Lsn, Position};

use crate::StoreError;

const MANIFEST: &str = "epoch";
const MANIFEST_VERSION: u32 = 1;

/// Turns an I/O error into one that says what was to be done, and where.
pub(crate) fn cannot(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { operation, path: path.to_owned(), source }
}

/// Makes the directory where it is missing and locks it. The lock ends with the file.
pub(crate) fn lock(dir: &Path) -> Result<File, StoreError> {
    fs::create_dir_all(dir).map_err(cannot("create", dir))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(cannot("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(cannot("lock", &path)(source)),
    }
}

/// What the kernel could not sync it has dropped, so this must not be taken for a full disk and tried again.
pub(crate) fn unsynced(source: io::Error) -> io::Error {
    io::Error::other(source)
}

/// Makes what was created, renamed or removed in the directory survive a crash.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(cannot("sync", dir))
}

/// The directory of an epoch.
pub(crate) fn epoch_dir(dir: &Path, epoch: Epoch) -> PathBuf {
    dir.join(epoch.to_string())
}

/// The file of the segment whose first record is at `first`. A value may be larger than a segment, so that several start
/// with the same position: the offset tells them apart.
pub(crate) fn segment_path(epoch_dir: &Path, first: Position, base: u64) -> PathBuf {
    epoch_dir.join(format!("{:016x}-{:08x}-{base:016x}.log", first.lsn.0, first.ordinal))
}

/// The segment files of an epoch, in no order.
pub(crate) fn segment_paths(epoch_dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(epoch_dir).map_err(cannot("list", epoch_dir))? {
        let path = entry.map_err(cannot("list", epoch_dir))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Removes the directories of all epochs but one.
pub(crate) fn remove_other_epochs(dir: &Path, current: Epoch) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(cannot("list", dir))? {
        let entry = entry.map_err(cannot("list", dir))?;
        let epoch = entry.file_name().to_str().and_then(|name| name.parse::<Epoch>().ok());
        if epoch.is_some_and(|epoch| epoch != current) {
            fs::remove_dir_all(entry.path()).map_err(cannot("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Puts a small file in the place of the one that is there.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(cannot("write", &path))?;
    sync_dir(dir)
}

/// Makes this epoch the current one; `reason` says why the one before it ended.
pub(crate) fn write_manifest(dir: &Path, info: &EpochInfo, reason: Option<&str>) -> Result<(), StoreError> {
    let EpochInfo { epoch, system_identifier, timeline, start_lsn } = info;
    let mut text = format!(
        "tidegate-changelog {MANIFEST_VERSION}\nepoch {epoch}\nsystem_identifier {system_identifier}\n\
         timeline {timeline}\nstart_lsn {start_lsn}\n"
    );
    if let Some(reason) = reason {
        text.push_str(&format!("reason {reason}\n"));
    }
    replace(dir, MANIFEST, text.as_bytes())
}

/// Why the epoch before the current one ended, where there was one.
pub(crate) fn read_reason(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join(MANIFEST)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("reason ").map(str::to_owned))
}

/// The current epoch; None for a new store.
pub(crate) fn read_manifest(dir: &Path) -> Result<Option<EpochInfo>, StoreError> {
    let path = dir.join(MANIFEST);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read", &path)(error)),
    };
    let damaged = |reason| StoreError::Damaged { path: path.clone(), offset: 0, reason };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("not text"))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let found = field("tidegate-changelog").and_then(|version| version.parse().ok());
    match found.ok_or_else(|| damaged("no version"))? {
        MANIFEST_VERSION => {}
        found => return Err(StoreError::Version { path, found, known: MANIFEST_VERSION }),
    }
    let info = || {
        Some(EpochInfo {
            epoch: field("epoch")?.parse().ok()?,
            system_identifier: field("system_identifier")?.parse().ok()?,
            timeline: field("timeline")?.parse().ok()?,
            start_lsn: field("start_lsn")?.parse::<Lsn>().ok()?,
        })
    };
    info().map(Some).ok_or_else(|| damaged("a field is missing or malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_manifest(dir.path()).unwrap(), None);
        let info =
            EpochInfo { epoch: Epoch(77), system_identifier: u64::MAX, timeline: 3, start_lsn: Lsn(0x16_B374_D848) };
        write_manifest(dir.path(), &info, None).unwrap();
        assert_eq!(read_manifest(dir.path()).unwrap(), Some(info));
        assert_eq!(read_reason(dir.path()), None);
        write_manifest(dir.path(), &info, Some("the slot is gone")).unwrap();
        assert_eq!(read_manifest(dir.path()).unwrap(), Some(info));
        assert_eq!(read_reason(dir.path()).as_deref(), Some("the slot is gone"));
    }

    #[test]
    fn a_manifest_of_a_later_release_is_refused_by_its_version() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MANIFEST), "tidegate-changelog 9\n").unwrap();
        assert!(matches!(read_manifest(dir.path()), Err(StoreError::Version { found: 9, known: 1, .. })));
        fs::write(dir.path().join(MANIFEST), "tidegate-changelog 1\nepoch 12\n").unwrap();
        assert!(matches!(read_manifest(dir.path()), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(StoreError::Locked(_))));
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }
}
