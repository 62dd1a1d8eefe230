//! What the server tells about itself: traces and metrics reach a collector, and log lines for machines are JSON without
//! secrets.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::any_value::Value,
    resource::v1::Resource,
};
use serde_json::Value as Json;
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Ended, Recorder, Server, ServerConfig, Stop};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// Service and name of each span and metric that has arrived.
#[derive(Clone, Debug, Default)]
struct Arrived {
    spans: Vec<(String, String)>,
    metrics: Vec<(String, String)>,
}

/// Takes what is exported, as an OpenTelemetry collector does.
#[derive(Clone)]
struct Collector(watch::Sender<Arrived>);

fn service(resource: Option<&Resource>) -> String {
    let attributes = resource.map(|resource| resource.attributes.as_slice()).unwrap_or_default();
    let name = attributes.iter().find(|attribute| attribute.key == "service.name");
    match name.and_then(|name| name.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(name)) => name.clone(),
        other => format!("no name but {other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for batch in request.into_inner().resource_spans {
            let service = service(batch.resource.as_ref());
            let names = batch.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| span.name);
            self.0.send_modify(|arrived| arrived.spans.extend(names.map(|name| (service.clone(), name))));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for batch in request.into_inner().resource_metrics {
            let service = service(batch.resource.as_ref());
            let names = batch.scope_metrics.into_iter().flat_map(|scope| scope.metrics).map(|metric| metric.name);
            self.0.send_modify(|arrived| arrived.metrics.extend(names.map(|name| (service.clone(), name))));
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A collector on a free port, as long as the set lives.
async fn collector() -> Result<(SocketAddr, watch::Receiver<Arrived>, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let collector = Collector(watch::Sender::new(Arrived::default()));
    let arrived = collector.0.subscribe();
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .add_service(MetricsServiceServer::new(collector))
        .serve_with_incoming(TcpIncoming::from(listener));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // The test fails by what does not arrive.
        serving.await.ok();
    });
    Ok((address, arrived, tasks))
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn received(name: &str, config: impl FnOnce(&Database) -> ServerConfig) -> Result<Server> {
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    let server = Server::start(config(&database)).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("here").await?;
    ensure!(recorder.until_marker("here").await? == Ended::Arrived);
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_and_metrics_reach_the_collector_that_the_environment_names() -> Result<()> {
    let (address, mut arrived, _collector) = collector().await?;
    let server = received("otlp", |database| ServerConfig {
        environment: variables(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}")),
            ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
            ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ]),
        ..ServerConfig::of(database.url())
    });
    let _server = server.await?;
    let has = |list: &[(String, String)], name: &str| list.contains(&("tidegate".to_owned(), name.to_owned()));
    let complete = arrived.wait_for(|arrived| {
        has(&arrived.spans, "connect")
            && has(&arrived.spans, "subscribe")
            && has(&arrived.metrics, "tidegate.received_lsn")
            && has(&arrived.metrics, "tidegate.delivered_events")
    });
    let in_time = tokio::time::timeout(DEADLINE, complete).await.is_ok_and(|arrived| arrived.is_ok());
    ensure!(in_time, "only these have arrived: {:?}", arrived.borrow());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_what_is_still_to_be_sent() -> Result<()> {
    let (address, arrived, _collector) = collector().await?;
    let mut server = received("otlp_stop", |database| ServerConfig {
        environment: variables(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}")),
            ("OTEL_SERVICE_NAME", "cdc"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ]),
        ..ServerConfig::of(database.url())
    })
    .await?;
    server.terminate().await?;
    let arrived = arrived.borrow().clone();
    ensure!(arrived.spans.contains(&("cdc".to_owned(), "connect".to_owned())), "{arrived:?}");
    ensure!(arrived.metrics.contains(&("cdc".to_owned(), "tidegate.durable_lsn".to_owned())), "{arrived:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_answer_harms_nothing() -> Result<()> {
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let mut server = received("otlp_silent", |database| ServerConfig {
        environment: variables(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")]),
        ..ServerConfig::of(database.url())
    })
    .await?;
    server.terminate().await
}

/// Each line as JSON, of a log without the password.
fn lines(log: &str, secret: &str) -> Result<Vec<Json>> {
    ensure!(!log.contains(secret), "the password is in the log:\n{log}");
    log.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

const SECRET: &str = "s3cret-0f-the-s0urce";

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_are_json_objects_without_secrets() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let database = cluster.database("logged").await?;
    database.create_marker().await?;
    let url = database.url().replace("postgres@", &format!("postgres:{SECRET}@"));
    let mut config = ServerConfig::of(&url);
    // As much as it can say.
    config.lines.push("log: {format: json, filter: 'info,tidegate=trace,tokio_postgres=trace,hyper=debug'}".to_owned());
    let mut server = Server::start(config).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("a value that is for nobody else").await?;
    ensure!(recorder.until_marker("a value that is for nobody else").await? == Ended::Arrived);
    // Errors are logged too.
    cluster.restart(Stop::Immediate).await?;
    let database = Database::connect(&cluster.url("logged")).await?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    server.streaming().await?;
    let log = server.scratch("tidegate.log");
    server.terminate().await?;
    let log = std::fs::read_to_string(log)?;
    let lines = lines(&log, SECRET)?;
    for field in ["timestamp", "level", "target", "message"] {
        ensure!(lines.iter().all(|line| line.get(field).is_some()), "a line without {field}:\n{log}");
    }
    ensure!(lines.iter().any(|line| line["source"] == "shop"), "no line names the source:\n{log}");
    ensure!(!log.contains("for nobody else"), "a row's value is in the log:\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_the_server_is_a_json_object_too() -> Result<()> {
    let mut config = ServerConfig::of(&format!("postgres://nobody:{SECRET}@127.0.0.1:1/nothing"));
    config.lines.push("log: {format: json}".to_owned());
    config.data_dir = Some("/proc/nowhere".into());
    let printed = Server::stopped(config)?.launch_in_vain().await?;
    let lines = lines(&printed, SECRET)?;
    let told = lines.iter().any(|line| line["level"] == "ERROR" && line.to_string().contains("/proc/nowhere"));
    ensure!(told, "{printed}");
    Ok(())
}
