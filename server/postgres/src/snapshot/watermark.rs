//! How far the WAL is written, and what is visible.
//!
//! Invariant: a watermark is an *end* LSN, as commits and keepalives name them. The insert LSN is where the next record begins,
//! which after a page that was filled to its end lies behind the next page's header, and no end LSN ever reaches that.

use tidegate_model::{Lsn, TableName, Visibility};

use crate::{CatalogError, Session, snapshot::SnapshotReadError};

/// SizeOfXLogShortPHD: the header of a page of WAL (xlog_internal.h).
const PAGE_HEADER_BYTES: u64 = 24;
/// SizeOfXLogLongPHD: that of a segment's first page.
const SEGMENT_HEADER_BYTES: u64 = 40;

/// Which transactions a query sees now.
///
/// # Errors
/// The connection or the server.
pub async fn current_visibility(session: &Session) -> Result<Visibility, CatalogError> {
    const DOING: &str = "read the visible transactions";
    let doing = CatalogError::while_we(DOING);
    let rows = session.client().query_typed("SELECT pg_current_snapshot()::text", &[]).await.map_err(&doing)?;
    let text: Option<&str> = rows.first().map(|row| row.try_get(0)).transpose().map_err(&doing)?;
    let visibility = text.and_then(|text| text.parse().ok());
    visibility.ok_or_else(|| CatalogError::Unexpected { doing: DOING, problem: format!("{text:?}") })
}

/// The end of what is inserted into the WAL: at or above the end of every commit that anyone has seen so far.
pub(super) async fn high_watermark(session: &Session, table: &TableName) -> Result<Lsn, SnapshotReadError> {
    const SQL: &str = "
        SELECT pg_current_wal_insert_lsn()::text, current_setting('wal_block_size')::int8,
               pg_size_bytes(current_setting('wal_segment_size'))";
    let doing = SnapshotReadError::of(table, "read the end of the WAL");
    let rows = session.client().query_typed(SQL, &[]).await.map_err(&doing)?;
    let unexpected = || SnapshotReadError::Unexpected { table: table.clone(), problem: "no end of the WAL" };
    let row = rows.first().ok_or_else(unexpected)?;
    let insert_lsn: Lsn = row.try_get::<_, &str>(0).map_err(&doing)?.parse().map_err(|_| unexpected())?;
    let page_bytes = u64::try_from(row.try_get::<_, i64>(1).map_err(&doing)?).map_err(|_| unexpected())?;
    let segment_bytes = u64::try_from(row.try_get::<_, i64>(2).map_err(&doing)?).map_err(|_| unexpected())?;
    end_of_record(insert_lsn, page_bytes, segment_bytes).ok_or_else(unexpected)
}

/// The end of the last record before this insert LSN.
fn end_of_record(insert_lsn: Lsn, page_bytes: u64, segment_bytes: u64) -> Option<Lsn> {
    let in_segment = insert_lsn.0.checked_rem(segment_bytes)?;
    let in_page = in_segment.checked_rem(page_bytes)?;
    let header_bytes = if in_segment < page_bytes { SEGMENT_HEADER_BYTES } else { PAGE_HEADER_BYTES };
    Some(if in_page == header_bytes { Lsn(insert_lsn.0 - header_bytes) } else { insert_lsn })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_lsn_behind_a_page_header_means_the_page() {
        let end = |lsn| end_of_record(Lsn(lsn), 8192, 16 << 20).expect("sizes are not zero").0;
        let segment = 0x16_B300_0000;
        assert_eq!(end(segment + 40), segment);
        assert_eq!(end(segment + 8192 + 24), segment + 8192);
        for other in [segment, segment + 24, segment + 8192, segment + 8192 + 40, segment + 500] {
            assert_eq!(end(other), other);
        }
    }
}
