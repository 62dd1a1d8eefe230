//! The file that holds the URL is read again at each connection: a rotated password, or another address, takes effect
//! without a restart.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use tidegate_integration_tests::{Cluster, Ended, Recorder, Scratch, Server, ServerConfig};

fn write(path: &Path, url: &str) -> Result<()> {
    // As a secret's volume is updated: by a new file in the old one's place.
    let fresh = path.with_extension("new");
    fs::write(&fresh, format!("{url}\n"))?;
    Ok(fs::rename(fresh, path)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn is_taken_up_at_the_next_connection() -> Result<()> {
    let cluster = Cluster::start(&[("password_encryption", "scram-sha-256")]).await?;
    let database = cluster.database("rotated").await?;
    database.create_marker().await?;
    database.execute("create role cdc superuser login replication password 'first'").await?;
    cluster.allow("host all postgres all trust\nhost all,replication cdc all scram-sha-256\n")?;
    database.execute("select pg_reload_conf()").await?;
    let url = |password: &str| database.url().replace("postgres@", &format!("cdc:{password}@"));

    let scratch = Scratch::new()?;
    let file = scratch.join("url");
    write(&file, &url("first"))?;
    let mut config = ServerConfig::of(database.url());
    config.url = format!("file:{}", file.display());
    let server = Server::start(config).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);

    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cdc'";
    database.execute(&format!("alter role cdc password 'second'; {end}")).await?;
    let refused = server.until("shop", "refused", |status| status.detail.contains("refuses role 'cdc'")).await?;
    ensure!(!refused.detail.contains("first"), "{}", refused.detail);

    // While it is missing or half-written, that is said; it is not the end.
    fs::remove_file(&file)?;
    let missing = server.until("shop", "file missing", |status| status.detail.contains("url_file")).await?;
    ensure!(missing.detail.contains(&file.display().to_string()), "{}", missing.detail);
    write(&file, &url("second"))?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    server.streaming().await?;
    // A new table needs the control database, whose connection was ended too.
    database.execute("alter table marker add column note text; insert into marker values ('altered', 'x')").await?;
    ensure!(recorder.until_marker("altered").await? == Ended::Arrived);
    let log = server.process()?.log();
    ensure!(!log.contains("second"), "the password is in the log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_comes_to_name_another_database_is_refused() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("url_file").await?;
    database.create_marker().await?;
    let another = cluster.database("url_file_another").await?;
    let scratch = Scratch::new()?;
    let file = scratch.join("url");
    write(&file, database.url())?;
    let mut config = ServerConfig::of(database.url());
    config.url = format!("file:{}", file.display());
    let server = Server::start(config).await?;
    write(&file, another.url())?;
    let slot = server.slot();
    let end = format!("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{slot}'");
    database.execute(&end).await?;
    let refused = server.until("shop", "refused", |status| status.detail.contains("url_file_another")).await?;
    ensure!(refused.detail.contains("restart"), "{}", refused.detail);
    write(&file, database.url())?;
    server.streaming().await?;
    let publications = another.text("select count(*)::text from pg_publication").await?.context("a count")?;
    ensure!(publications == "0", "something was made in the other database");
    Ok(())
}
