//! Which databases a command is about: those of a configuration, or one that is given by its URL.

use clap::Args;
use std::path::PathBuf;

use crate::config::{Config, Source};

/// Which databases a command is about.
#[derive(Args)]
pub(crate) struct DatabaseArgs {
    /// YAML file with the sources; without it, the environment names them.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// One database instead, such as one that is not configured yet, or another role's: postgres://user@host/database
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<String>,
    /// Only this source; with --url, the name that it has or shall have.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

impl DatabaseArgs {
    /// The sources; `tables` are captured of one that is given by its URL, all where there are none.
    ///
    /// # Errors
    /// The configuration cannot be used, or has no such source.
    pub(crate) fn sources(&self, tables: &[String]) -> anyhow::Result<Vec<Source>> {
        let config = match &self.url {
            Some(url) => self.configuration_of(url, tables)?,
            None => Config::load(self.config.as_deref())?,
        };
        let only = match &self.source {
            Some(name) => Some(config.source(Some(name))?.name.clone()),
            None => None,
        };
        let is_wanted = |source: &Source| only.as_ref().is_none_or(|name| *name == source.name);
        Ok(config.sources.into_iter().filter(is_wanted).collect())
    }

    /// A configuration of one source, through the same door as any other, so that the same is refused.
    fn configuration_of(&self, url: &str, tables: &[String]) -> anyhow::Result<Config> {
        let name = self.source.as_deref().unwrap_or("default").to_ascii_uppercase();
        let mut variables = vec![(format!("TIDEGATE_SOURCES__{name}__URL"), url.to_owned())];
        if !tables.is_empty() {
            variables.push((format!("TIDEGATE_SOURCES__{name}__TABLES"), tables.join(",")));
        }
        Ok(Config::read(None, &variables)?)
    }
}
