//! Databases of different default collations.

use anyhow::{Context, Result};
use tidegate_integration_tests::{Cluster, Database};

/// What a database's text is ordered by, unless a column says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locale {
    C,
    /// The operating system's en_US.
    Libc,
    /// en-US of ICU, from 15.
    Icu,
    /// PostgreSQL's own C.UTF-8, from 17.
    Builtin,
}

/// A database, and the server that ends with it.
pub(crate) struct Home {
    pub(crate) database: Database,
    _own: Option<Cluster>,
}

impl Locale {
    /// None where the server's version has no such databases, which is said.
    pub(crate) async fn database(self, name: &str) -> Result<Option<Home>> {
        if self == Locale::Libc {
            let own = Cluster::start_in("en_US.UTF-8").await?;
            let database = own.database(name).await?;
            return Ok(Some(Home { database, _own: Some(own) }));
        }
        let shared = Cluster::shared().await?;
        let postgres = Database::connect(&shared.url("postgres")).await?;
        let version = postgres.server_version().await?;
        let (since, options) = match self {
            Locale::C | Locale::Libc => (14, ""),
            Locale::Icu => (15, "locale_provider icu icu_locale 'en-US'"),
            Locale::Builtin => (17, "locale_provider builtin builtin_locale 'C.UTF-8'"),
        };
        if version < since {
            println!("{self:?}: NOT COMPARED, PostgreSQL {version} has no such databases, {since} has");
            return Ok(None);
        }
        let name = format!("{name}_{self:?}").to_lowercase();
        let options = format!("template template0 encoding 'UTF8' {options}");
        postgres
            .execute(&format!("create database {name} {options}"))
            .await
            .context("is PostgreSQL built with ICU?")?;
        Ok(Some(Home { database: Database::connect(&shared.url(&name)).await?, _own: None }))
    }
}
