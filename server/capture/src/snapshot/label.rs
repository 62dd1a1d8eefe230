//! What all records of a snapshot say of it, so that whoever reads the log knows whom they are for.

use tidegate_control::SnapshotJob;
use tidegate_model::Position;

/// What kind of snapshot it is, and of which tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Label {
    /// Its tables have joined the publication: whoever selects one receives it.
    pub(crate) new_tables: bool,
    /// It was asked for by itself: whoever wants such snapshots receives it.
    pub(crate) ad_hoc: bool,
    pub(crate) tables: Vec<String>,
    /// Those of which it reads a part.
    pub(crate) partial: Vec<String>,
    /// Where it begins; None before it does.
    pub(crate) begin: Option<Position>,
}

impl Label {
    pub(crate) fn of(job: &SnapshotJob) -> Self {
        Label {
            new_tables: job.new_tables,
            ad_hoc: job.ad_hoc,
            tables: job.tables.iter().map(ToString::to_string).collect(),
            partial: job.parts.keys().map(ToString::to_string).collect(),
            begin: None,
        }
    }
}
