//! The oracle's own reader of pgoutput, protocol version 1 (PostgreSQL manual, "Logical Replication Message Formats").
//!
//! Small and slow on purpose, and written apart from the product's decoder, so that one misreading does not hide another.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use crate::history::{Change, History, Row, Transaction, Value, position, shorten};

/// Reads messages that follow each other, with `separator` behind each where one is given.
pub(crate) fn read(bytes: &[u8], separator: Option<u8>) -> Result<History> {
    let mut reader = Reader { rest: bytes, relations: HashMap::new(), open: None, history: History::default() };
    while !reader.rest.is_empty() {
        reader.message().with_context(|| format!("{} bytes before the end", reader.rest.len()))?;
        if let Some(separator) = separator {
            ensure!(reader.byte()? == separator, "no separator");
        }
    }
    ensure!(reader.open.is_none(), "the stream ends within a transaction");
    Ok(reader.history)
}

struct Relation {
    name: String,
    columns: Vec<(String, bool)>,
}

struct Reader<'a> {
    rest: &'a [u8],
    relations: HashMap<u32, Relation>,
    open: Option<Transaction>,
    history: History,
}

impl<'a> Reader<'a> {
    fn message(&mut self) -> Result<()> {
        match self.byte()? {
            b'B' => self.begin(),
            b'C' => self.commit(),
            b'R' => self.relation(),
            b'I' => self.row("insert"),
            b'U' => self.row("update"),
            b'D' => self.row("delete"),
            b'T' => self.truncate(),
            b'M' => self.logical_message(),
            b'Y' => {
                self.u32()?;
                self.text()?;
                self.text().map(drop)
            }
            b'O' => {
                self.u64()?;
                self.text().map(drop)
            }
            // PostgreSQL 15 was seen to send Stream Abort in protocol 1 too, for a subtransaction that a crash rolled back.
            // Nothing of it was sent before, since there is no Stream Start, and so there is nothing to take back.
            b'A' => self.u64().map(drop),
            kind => bail!("unexpected message {:?}", char::from(kind)),
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.u64()?;
        let commit_time_us = self.time()?;
        let xid = self.u32()?;
        self.open = Some(Transaction { lsn: 0, commit_time_us, xid, changes: Vec::new() });
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.byte()?;
        self.u64()?;
        let end = self.u64()?;
        self.time()?;
        let mut transaction = self.open.take().context("commit without begin")?;
        transaction.lsn = end;
        for change in &mut transaction.changes {
            change.position = position(end, change.ordinal);
        }
        self.history.push(transaction);
        Ok(())
    }

    fn relation(&mut self) -> Result<()> {
        let oid = self.u32()?;
        let name = format!("{}.{}", self.text()?, self.text()?);
        self.byte()?;
        let count = self.u16()?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let key = self.byte()? & 1 != 0;
            columns.push((self.text()?, key));
            self.u32()?;
            self.u32()?;
        }
        self.relations.insert(oid, Relation { name, columns });
        Ok(())
    }

    fn row(&mut self, op: &'static str) -> Result<()> {
        let oid = self.u32()?;
        let (mut old, mut row) = (Row::None, Row::None);
        let mut kind = self.byte()?;
        if kind != b'N' {
            old = self.tuple(oid, kind)?;
        }
        if op != "delete" {
            if kind != b'N' {
                kind = self.byte()?;
            }
            row = self.tuple(oid, kind)?;
        }
        self.change(op, oid, row, old)
    }

    fn tuple(&mut self, oid: u32, kind: u8) -> Result<Row> {
        let count = usize::from(self.u16()?);
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(match self.byte()? {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                b't' => {
                    let length = self.u32()? as usize;
                    Value::Text(shorten(std::str::from_utf8(self.take(length)?)?))
                }
                other => bail!("unexpected value {:?}", char::from(other)),
            });
        }
        let columns = &self.relations.get(&oid).context("unknown relation")?.columns;
        ensure!(columns.len() == count, "a row of another width than its relation");
        let named = columns.iter().zip(values);
        Ok(match kind {
            b'K' => Row::Key(named.filter(|((_, key), _)| *key).map(|((name, _), v)| (name.clone(), v)).collect()),
            _ => Row::Full(named.map(|((name, _), v)| (name.clone(), v)).collect()),
        })
    }

    fn truncate(&mut self) -> Result<()> {
        let count = self.u32()?;
        let options = self.byte()?;
        for _ in 0..count {
            let oid = self.u32()?;
            let op = match options {
                0 => "truncate",
                1 => "truncate cascade",
                2 => "truncate restart",
                _ => "truncate cascade restart",
            };
            self.change(op, oid, Row::None, Row::None)?;
        }
        Ok(())
    }

    fn logical_message(&mut self) -> Result<()> {
        let transactional = self.byte()? & 1 != 0;
        let lsn = self.u64()?;
        let prefix = self.text()?;
        let length = self.u32()? as usize;
        let content = crate::hex(self.take(length)?);
        let what = format!("message {prefix} {}", shorten(&content));
        if transactional {
            let open = self.open.as_mut().context("message outside of transactions")?;
            let ordinal = open.next_ordinal();
            open.changes.push(Change { position: String::new(), ordinal, what, row: Row::None, old: Row::None });
        } else {
            self.history.push(Transaction::message(lsn, what));
        }
        Ok(())
    }

    fn change(&mut self, op: &str, oid: u32, row: Row, old: Row) -> Result<()> {
        let name = &self.relations.get(&oid).context("unknown relation")?.name;
        let what = format!("{op} {name}");
        let open = self.open.as_mut().context("change outside of transactions")?;
        let ordinal = open.next_ordinal();
        open.changes.push(Change { position: String::new(), ordinal, what, row, old });
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        ensure!(self.rest.len() >= count, "truncated message");
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into()?))
    }

    /// Microseconds since 1970 from those since 2000.
    fn time(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into()?) + 946_684_800_000_000)
    }

    fn text(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|byte| *byte == 0).context("unterminated text")?;
        let text = std::str::from_utf8(self.take(end)?)?.to_owned();
        self.byte()?;
        Ok(text)
    }
}
