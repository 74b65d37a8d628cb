//! Deletion of old segments by the writer, which records it first.

use crate::audit::Pending;
use crate::audit::checkpoints;
use crate::audit::operations::TrimmedRecord;
use crate::audit::record::Record;
use crate::audit::retention;
use crate::audit::writer::{BEST_EFFORT_SYNC, Writer};
use crate::model::text::hex;
use crate::model::time::Timestamp;

impl Writer {
    /// Deletes segments that were written before a time, once the line that says so is durable.
    pub(super) fn trim(&mut self, before: Timestamp, now: Timestamp) -> std::io::Result<()> {
        let Some(old) = retention::old(&self.options.folder, &self.key, before)? else { return Ok(()) };
        if self.trimmed == Some(old.before) {
            return old.delete();
        }
        let (tree, root) = checkpoints::root_before(&self.options.folder, old.before)?;
        let record = TrimmedRecord { before: old.before, hash: old.hash.clone(), tree, root: hex(root) };
        let (line, record) = (self.next, Record::Trimmed(record));
        self.commit(vec![Pending { at: now, record, done: None }]);
        self.settle(now.plus(BEST_EFFORT_SYNC));
        let is_recorded = line < self.next && self.durable.is_some_and(|durable| durable >= line);
        if !is_recorded {
            return Ok(());
        }
        self.trimmed = Some(old.before);
        old.delete()
    }
}
