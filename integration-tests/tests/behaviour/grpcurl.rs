//! What a person with grpcurl sees: services, a table's message, and rows with their column names.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_client::MirrorState;
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Server, ServerConfig, tool};
use tokio::io::{AsyncBufReadExt, BufReader};

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database
        .execute("create table orders (id bigint primary key, \"Total Price\" numeric(10, 2), placed timestamptz, note text)")
        .await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    Ok((database, server))
}

async fn grpcurl(server: &Server, request: &str, arguments: &[&str]) -> Result<String> {
    let mut command = tokio::process::Command::new(tool("grpcurl")?);
    command.args(["-plaintext", "-d", request, &server.address()]).args(arguments).kill_on_drop(true);
    let output = command.output().await?;
    ensure!(output.status.success(), "grpcurl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The first responses of Watch, up to the one for which `last` holds.
async fn watch(server: &Server, request: &str, last: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    let mut command = tokio::process::Command::new(tool("grpcurl")?);
    command.args(["-plaintext", "-d", request, &server.address(), "tidegate.v1.Changes/Watch"]);
    let mut child = command.kill_on_drop(true).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let (mut responses, mut text) = (Vec::new(), String::new());
    let reading = async {
        while let Some(line) = lines.next_line().await? {
            text.push_str(&line);
            // grpcurl indents what is within a response.
            if line == "}" {
                let response: Value = serde_json::from_str(&std::mem::take(&mut text))?;
                let done = last(&response);
                responses.push(response);
                if done {
                    return Ok(responses);
                }
            }
        }
        anyhow::bail!("Watch ended after {responses:?}")
    };
    tokio::time::timeout(DEADLINE, reading).await.context("Watch did not deliver in time")?
}

#[tokio::test(flavor = "multi_thread")]
async fn it_lists_services_and_describes_a_table() -> Result<()> {
    let (database, server) = served("grpcurl_describe").await?;
    let services = grpcurl(&server, "{}", &["list"]).await?;
    for service in ["tidegate.v1.Changes", "tidegate.v1.Catalog", "grpc.health.v1.Health"] {
        ensure!(services.contains(service), "{service} is not in\n{services}");
    }
    database.execute("insert into orders values (1, 9.50, now(), 'first')").await?;
    watch(&server, r#"{"start": {"at": "EARLIEST"}}"#, |response| response.get("row").is_some()).await?;
    let message = grpcurl(&server, "{}", &["describe", "tidegate.rows.shop.public.orders"]).await?;
    ensure!(message.contains("json_name = \"Total Price\""), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_watches_rows_by_column_name() -> Result<()> {
    let (database, server) = served("grpcurl_watch").await?;
    database.execute("insert into orders values (7, 9.50, '2026-01-02 03:04:05+00', null)").await?;
    database.execute("update orders set note = 'paid' where id = 7").await?;
    database.execute("delete from orders where id = 7").await?;
    let request = r#"{"tables": {"names": ["orders"]}, "start": {"at": "EARLIEST"}}"#;
    let responses = watch(&server, request, |response| response["op"] == "DELETE").await?;
    let changes: Vec<&Value> = responses.iter().filter(|response| response.get("op").is_some()).collect();
    let [insert, update, delete] = changes.as_slice() else { anyhow::bail!("three changes were made: {changes:?}") };
    let row = &insert["row"];
    ensure!(row["id"] == "7" && row["Total Price"] == "9.50" && row.get("note").is_none(), "{insert}");
    ensure!(update["row"]["note"] == "paid" && update["key"]["id"] == "7", "{update}");
    ensure!(delete["key"]["id"] == "7" && delete.get("row").is_none(), "{delete}");
    ensure!(delete["table"] == "public.orders" && delete["token"].is_string(), "{delete}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_asks_for_the_rows_of_a_shape_by_column_name() -> Result<()> {
    let database = Cluster::shared().await?.database("grpcurl_query").await?;
    database.execute("create table orders (id bigint primary key, \"Total Price\" numeric, note text)").await?;
    database.execute("insert into orders values (1, 9.50, 'a'), (2, 10, 'b'), (3, null, null)").await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [orders]".to_owned());
    let server = Server::start(config).await?;
    let is_complete = |state| state == MirrorState::Complete;
    server.until("shop", "a mirror", |status| status.mirror.iter().any(|table| is_complete(table.state()))).await?;
    let request = r#"{"shape": {"table": "orders", "columns": ["Total Price"]}, "limit": 2,
                      "order_by": [{"expression": "\"Total Price\"", "descending": true, "nulls": "LAST"}]}"#;
    let printed = grpcurl(&server, request, &["tidegate.v1.Shapes/Query"]).await?;
    let responses = serde_json::Deserializer::from_str(&printed).into_iter::<Value>().collect::<Result<Vec<_>, _>>()?;
    let [begin, first, second, end] = responses.as_slice() else { anyhow::bail!("{printed}") };
    ensure!(begin["begin"]["position"].is_string() && begin["begin"]["source"] == "shop", "{begin}");
    ensure!(first["row"]["row"]["id"] == "2" && first["row"]["row"]["Total Price"] == "10", "{first}");
    ensure!(second["row"]["row"]["Total Price"] == "9.50" && second["row"]["row"].get("note").is_none(), "{second}");
    ensure!(end["end"]["rowCount"] == "2" && end["end"]["token"].is_string(), "{end}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_sees_a_new_column_and_a_new_table() -> Result<()> {
    let (database, server) = served("grpcurl_new").await?;
    database.execute("alter table orders add column express boolean").await?;
    database.execute("insert into orders (id, express) values (1, true)").await?;
    let request = r#"{"start": {"at": "EARLIEST"}}"#;
    let responses = watch(&server, request, |response| response.get("row").is_some()).await?;
    let row = &responses.last().context("no response")?["row"];
    ensure!(row["express"] == true, "{row}");
    let message = grpcurl(&server, "{}", &["describe", "tidegate.rows.shop.public.orders"]).await?;
    ensure!(message.contains("express"), "{message}");
    Ok(())
}
