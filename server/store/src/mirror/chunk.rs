//! A table's rows in chunks, each as of a position of its own, so that between two nothing is held: neither rows nor a snapshot
//! of the engine, which would keep what has been overwritten on the disk.
//!
//! Invariant: a chunk is the whole of what lies between its two ends at its position. Its ends are keys of rows, not of the
//! engine, and so outlast a TRUNCATE.

use bytes::Bytes;
use tidegate_model::Position;

use super::{
    IndexId, MirrorReader, MirrorRow, RowForm, Scan,
    error::Result,
    key,
    reader::{being_read, complete, passes},
};

/// Staged rows that are copied for a chunk; it ends with them where there are more.
const STAGED_MAX: usize = 4096;
/// What a row costs besides its bytes.
const ROW_BYTES: usize = 64;

/// A run of a table's rows, in the order of their keys' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChunk {
    /// Where the rows were as they are here: the end of a transaction.
    pub position: Position,
    /// None where there are none up to `next`.
    pub rows: Vec<MirrorRow>,
    /// To go on behind; None where the table ends.
    pub next: Option<Bytes>,
    /// Tables, by name, that snapshots in the log read which have begun before the position and not ended.
    pub being_read: Vec<String>,
}

impl MirrorReader {
    /// The rows behind the end of another chunk, or from the first on: about so many bytes, or fewer where much is staged.
    ///
    /// # Errors
    /// The table is not complete, or the engine fails.
    pub fn chunk(
        &self,
        table_oid: u32,
        behind: Option<&[u8]>,
        (byte_count, form): (usize, RowForm),
    ) -> Result<RowChunk> {
        self.chunk_of((table_oid, form), behind, (byte_count, STAGED_MAX))
    }

    /// With at most so many staged rows.
    pub(super) fn chunk_of(
        &self,
        (table_oid, form): (u32, RowForm),
        behind: Option<&[u8]>,
        (byte_count, staged_max): (usize, usize),
    ) -> Result<RowChunk> {
        let (table, after, (cut, until), passes) = self.with_view(|view| {
            let table = complete(view, table_oid)?;
            let after = behind.map(|end| key::joined(&table.rows(), end));
            let cut = view.cut_behind(&table.rows(), after.as_deref(), staged_max);
            Ok((table, after, cut, passes(view)))
        })?;
        // Not under the lock: this reads from the disk.
        let (prefix_len, being_read) = (table.rows().len(), being_read(&passes)?);
        let chunk = gather(Scan::rows(cut, table, after.as_deref()).with(form), byte_count, (prefix_len, until))?;
        Ok(RowChunk { being_read, ..chunk })
    }

    /// The rows whose indexed fields have exactly these bytes (a projection of the encoded row), behind the end of another chunk of the
    /// table or of them, or from the first on: about so many bytes.
    ///
    /// # Errors
    /// Index or table are not complete, or the engine fails.
    pub fn lookup_chunk(
        &self,
        index: IndexId,
        value: &[u8],
        behind: Option<&[u8]>,
        (byte_count, form): (usize, RowForm),
    ) -> Result<RowChunk> {
        let (scan, prefix_len, passes) = self.lookup_behind(index, value, behind)?;
        let being_read = being_read(&passes)?;
        let chunk = gather(scan.with(form), byte_count, (prefix_len, None))?;
        Ok(RowChunk { being_read, ..chunk })
    }
}

/// Up to so many bytes, or to the key in the engine behind which it is not known what is staged.
fn gather(mut scan: Scan, byte_count: usize, (prefix_len, until): (usize, Option<Bytes>)) -> Result<RowChunk> {
    let mut chunk = RowChunk { position: scan.position(), rows: Vec::new(), next: None, being_read: Vec::new() };
    let mut held_bytes = 0;
    while let Some((at, row)) = scan.advance()? {
        if until.as_ref().is_some_and(|until| at > *until) {
            break;
        }
        held_bytes += ROW_BYTES + row.row.len();
        chunk.rows.push(row);
        if held_bytes >= byte_count {
            chunk.next = Some(at.slice(prefix_len..));
            return Ok(chunk);
        }
    }
    chunk.next = until.map(|until| until.slice(prefix_len..));
    Ok(chunk)
}
