//! The file `run`: did the run before this one end so that nothing that was delivered can be missing here?
//!
//! ```text
//! tidegate-run 1
//! boot <id>                   the run goes on, or has ended without a word, in this boot of the machine
//! clean                       or: it has ended in order, everything fsynced
//! delivered stored            what subscribers may have received: no more than what is stored,
//! delivered <lsn>             no more than up to here,
//! delivered unknown           or nobody knows
//! ```
//!
//! What is shown has been written to a file, but not always fsynced. It outlives the process, in the kernel's memory; it does
//! not outlive the machine. So what is stored is all that was delivered where the run has ended in order, or where the
//! machine has been up since. After a failed fsync nobody knows.
//!
//! Invariant: where the file says that nothing is in doubt, nothing is. Where it is missing or cannot be written, all is.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use tidegate_model::{Delivered, Lsn, Position};

use crate::{
    StoreError,
    layout::{self, cannot},
};

const NAME: &str = "run";
const VERSION: &str = "tidegate-run 1";

/// How much may have been delivered of what is durable up to `durable`, by the end of the run before.
pub(crate) fn delivered(dir: &Path, durable: Position) -> Result<Delivered, StoreError> {
    let path = dir.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(judge(&text, boot().as_deref(), durable)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(Delivered::Unknown),
        Err(error) => Err(cannot("read", &path)(error)),
    }
}

fn judge(text: &str, boot: Option<&str>, durable: Position) -> Delivered {
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) {
        return Delivered::Unknown;
    }
    let ended = lines.next().unwrap_or_default();
    let is_certain = ended == "clean" || boot.is_some_and(|boot| ended.strip_prefix("boot ") == Some(boot));
    match lines.next().and_then(|line| line.strip_prefix("delivered ")) {
        Some("stored") if is_certain => Delivered::Stored,
        Some(lsn) if is_certain => match lsn.parse::<Lsn>() {
            Ok(lsn) if lsn <= durable.lsn => Delivered::Stored,
            Ok(lsn) => Delivered::UpTo(lsn),
            Err(_) => Delivered::Unknown,
        },
        Some(_) | None => Delivered::Unknown,
    }
}

/// This boot of the machine (random(4)); None where the system does not say.
fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// The run of this writer.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    dir: PathBuf,
    delivered: Delivered,
}

impl Run {
    /// Before anything is delivered.
    pub(crate) fn begin(dir: &Path, delivered: Option<Delivered>) -> Self {
        let run = Run { dir: dir.to_owned(), delivered: delivered.unwrap_or(Delivered::Stored) };
        run.write_running();
        run
    }

    /// What is known of it from now on.
    pub(crate) fn delivered(&mut self, delivered: Delivered) {
        if self.delivered != delivered {
            self.delivered = delivered;
            self.write_running();
        }
    }

    /// Everything is fsynced, or the writer has failed.
    pub(crate) fn end(&mut self, is_orderly: bool) {
        if !is_orderly {
            self.delivered = Delivered::Unknown;
        }
        self.write("clean");
    }

    fn write_running(&self) {
        let boot = boot().unwrap_or_else(|| "unknown to the system".to_owned());
        self.write(&format!("boot {boot}"));
    }

    /// A disk that is full must not keep the server from serving: without the file, all is in doubt, which is safe.
    fn write(&self, ended: &str) {
        let delivered = match self.delivered {
            Delivered::Stored => "stored".to_owned(),
            Delivered::UpTo(lsn) => lsn.to_string(),
            Delivered::Unknown => "unknown".to_owned(),
        };
        let Err(error) =
            layout::replace(&self.dir, NAME, format!("{VERSION}\n{ended}\ndelivered {delivered}\n").as_bytes())
        else {
            return;
        };
        tracing::warn!(%error, "if the server's timeline changes before the next restart, a new epoch will begin");
        let path = self.dir.join(NAME);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(cannot("remove", &path)),
        };
        if let Err(error) = removed.and_then(|()| layout::sync_dir(&self.dir)) {
            tracing::warn!(%error, "what the last run has left cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURABLE: Position = Position { lsn: Lsn(0x50), ordinal: 0 };

    fn left(run: impl FnOnce(&mut Run)) -> (Delivered, Delivered) {
        let dir = tempfile::tempdir().unwrap();
        run(&mut Run::begin(dir.path(), None));
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        (delivered(dir.path(), DURABLE).unwrap(), judge(&text, Some("another boot"), DURABLE))
    }

    #[test]
    fn nothing_is_in_doubt_after_an_orderly_end_or_in_the_same_boot() {
        assert_eq!(left(|_| {}), (Delivered::Stored, Delivered::Unknown));
        assert_eq!(left(|run| run.end(true)), (Delivered::Stored, Delivered::Stored));
        assert_eq!(left(|run| run.end(false)), (Delivered::Unknown, Delivered::Unknown));
    }

    #[test]
    fn a_doubt_outlives_orderly_ends_until_it_is_made_up_for() {
        let beyond = Delivered::UpTo(Lsn(0x51));
        assert_eq!(left(|run| run.delivered(beyond)), (beyond, Delivered::Unknown));
        let ended = |delivered| {
            left(|run| {
                run.delivered(delivered);
                run.end(true);
            })
        };
        assert_eq!(ended(beyond), (beyond, beyond));
        assert_eq!(ended(Delivered::UpTo(Lsn(0x50))), (Delivered::Stored, Delivered::Stored));
        assert_eq!(ended(Delivered::Unknown), (Delivered::Unknown, Delivered::Unknown));
    }

    #[test]
    fn without_the_file_or_with_another_all_is_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(delivered(dir.path(), DURABLE).unwrap(), Delivered::Unknown);
        for text in
            ["", "tidegate-run 2\nclean\ndelivered stored\n", "tidegate-run 1\nclean\n", "tidegate-run 1\nboot \n"]
        {
            assert_eq!(judge(text, Some(""), DURABLE), Delivered::Unknown, "{text}");
        }
    }
}
