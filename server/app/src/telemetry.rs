//! Logs to standard error, as text or JSON, and traces by OTLP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//! Standard output stays free for what a command prints. It deliberately holds no metrics: see `metrics`.

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use std::{io::IsTerminal, sync::OnceLock};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Is every line of standard error a JSON object? Then nothing but the log may be printed there.
pub(crate) fn lines_are_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

/// Sends what is buffered when it is shut down.
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts logging and tracing for the whole process; must be called once, in the runtime.
///
/// # Errors
/// The filter or OpenTelemetry's environment variables cannot be read.
pub(crate) fn start(log: &Log) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&log.filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let traces = if otlp_wanted() { Some(trace_provider()?) } else { None };
    // The exporter's own connection must not be traced, or each export causes the next.
    let spans = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("tidegate"))
            .with_filter(filter_fn(|metadata| metadata.target().starts_with("tidegate")))
    });
    tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).try_init()?;
    FORMAT.set(log.format).ok();
    // What panics has a line of the log's form too.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %backtrace, "this is a bug in Tidegate, please report it");
    }));
    Ok(Telemetry { traces })
}

/// Is a collector named in the environment?
pub(crate) fn otlp_wanted() -> bool {
    std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some_and(|endpoint| !endpoint.is_empty())
}

/// What the process is called in traces and metrics; OpenTelemetry's own variables win.
pub(crate) fn resource() -> Resource {
    let builder = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_some() {
        return builder.build();
    }
    builder.with_service_name("tidegate").build()
}

fn trace_provider() -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}

impl Telemetry {
    /// Sends what is buffered. Blocks for as long as the collector takes, at most OpenTelemetry's export timeout.
    pub(crate) async fn shutdown(self) {
        let Some(traces) = self.traces else { return };
        let flushed = tokio::task::spawn_blocking(move || traces.shutdown()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}
