//! The sets of a condition's subqueries, as the subqueries themselves select them.

use std::collections::HashSet;

use anyhow::{Context, Result};
use tidegate_views::{Members, Membership, Predicate, Subquery};

use crate::catalog::Table;

pub(crate) struct Sets {
    sets: Vec<Set>,
}

#[derive(Default)]
struct Set {
    /// None is NULL.
    members: HashSet<Option<Vec<u8>>>,
    /// PostgreSQL may fail where these decided otherwise.
    hides_error: bool,
}

impl Members for Sets {
    fn membership(&self, subquery: usize, member: Option<&[u8]>) -> Option<bool> {
        let members = &self.sets[subquery].members;
        let contains = member.is_some_and(|member| members.contains(&Some(member.to_vec())));
        Membership { contains, has_null: members.contains(&None), is_empty: members.is_empty() }.of(member)
    }
}

impl Sets {
    /// None where a subquery's condition fails for a row.
    pub(crate) fn of(predicate: &Predicate, tables: &[Table]) -> Result<Option<Self>> {
        let mut sets = Vec::new();
        for subquery in predicate.written_subqueries() {
            let Some(set) = Set::of(subquery, tables)? else { return Ok(None) };
            sets.push(set);
        }
        Ok(Some(Sets { sets }))
    }

    pub(crate) fn hide_error(&self) -> bool {
        self.sets.iter().any(|set| set.hides_error)
    }
}

impl Set {
    fn of(subquery: &Subquery, tables: &[Table]) -> Result<Option<Self>> {
        let Some(inner) = Sets::of(subquery.condition(), tables)? else { return Ok(None) };
        let table = tables.iter().find(|table| table.name == *subquery.table()).context("a table that was given")?;
        let mut set = Set { hides_error: inner.hide_error(), ..Set::default() };
        let mut room = Vec::new();
        for row in &table.rows {
            let written = subquery.condition().evaluate_given(row, &inner)?;
            set.hides_error |= written.hides_error || written.verdict.is_err();
            match subquery.condition().selects_given(row, &inner) {
                Ok(true) => {
                    set.members.insert(subquery.member(row, &mut room)?.map(<[u8]>::to_vec));
                }
                Ok(false) => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(set))
    }
}
