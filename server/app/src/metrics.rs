//! The server's metrics, as OpenTelemetry instruments: read by Prometheus at `/metrics`, and pushed by OTLP when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//! Every instrument is observed when it is read, from the watches and counters that capture, store and gateway keep: on
//! the way of a change nothing is recorded here.

use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tidegate_gateway::{GatewayMetrics, RouterMetrics, SourceStatus};
use tidegate_model::{Clock, SourceName};
use tidegate_store::Head;
use tokio::sync::watch;

use crate::capture_task::CaptureCounters;
use crate::telemetry::{otlp_wanted, resource};

/// What is observed of a source.
#[derive(Clone)]
pub(crate) struct ObservedSource {
    pub(crate) name: SourceName,
    pub(crate) status: watch::Receiver<SourceStatus>,
    pub(crate) head: watch::Receiver<Head>,
    pub(crate) counters: Arc<CaptureCounters>,
}

/// The instruments' owner.
pub(crate) struct Metrics {
    registry: Registry,
    provider: SdkMeterProvider,
}

impl Metrics {
    /// Registers the instruments.
    ///
    /// # Errors
    /// OpenTelemetry's environment variables cannot be read.
    pub(crate) fn new(
        sources: Vec<ObservedSource>,
        gateway: Arc<GatewayMetrics>,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let exporter =
            opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false).build()?;
        let mut builder = SdkMeterProvider::builder().with_reader(exporter).with_resource(resource());
        if otlp_wanted() {
            builder =
                builder.with_periodic_exporter(opentelemetry_otlp::MetricExporter::builder().with_tonic().build()?);
        }
        let provider = builder.build();
        let meter = provider.meter("tidegate");
        let sources: Arc<[ObservedSource]> = sources.into();
        observe_positions(&meter, &sources);
        observe_state(&meter, &sources, clock);
        observe_counters(&meter, &sources);
        observe_gateway(&meter, &gateway);
        observe_router(&meter, &gateway);
        Ok(Metrics { registry, provider })
    }

    /// Prometheus's text format.
    ///
    /// # Errors
    /// An instrument's values contradict each other.
    pub(crate) fn text(&self) -> anyhow::Result<String> {
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }

    /// Sends what is buffered, where metrics are pushed.
    pub(crate) async fn shutdown(&self) {
        let provider = self.provider.clone();
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "the last metrics were not sent");
        }
    }
}

type Read<T> = fn(&T) -> u64;

fn observe_positions(meter: &Meter, sources: &Arc<[ObservedSource]>) {
    let gauges: [(&'static str, &'static str, Read<SourceStatus>); 6] = [
        ("tidegate.received_lsn", "LSN up to which WAL was received.", |s| s.received_lsn.0),
        ("tidegate.durable_lsn", "LSN up to which changes are fsynced here.", |s| s.durable_lsn.0),
        ("tidegate.confirmed_flush_lsn", "LSN that PostgreSQL was told it need not keep.", |s| s.confirmed_flush_lsn.0),
        ("tidegate.server_lsn", "PostgreSQL's end of WAL as last seen, as LSN.", |s| s.server_lsn.0),
        ("tidegate.retained_wal", "WAL that PostgreSQL keeps for the slot: it fills the source's disk.", |s| {
            s.retained_wal_bytes
        }),
        ("tidegate.lag", "WAL that PostgreSQL has and Tidegate has not received.", |s| {
            s.server_lsn.0.saturating_sub(s.received_lsn.0)
        }),
    ];
    for (name, about, read) in gauges {
        let sources = Arc::clone(sources);
        meter
            .u64_observable_gauge(name)
            .with_unit("By")
            .with_description(about)
            .with_callback(move |observer| {
                for source in sources.iter() {
                    observer.observe(read(&source.status.borrow()), &[label(&source.name)]);
                }
            })
            .build();
    }
    let heads = Arc::clone(sources);
    meter
        .u64_observable_gauge("tidegate.changelog")
        .with_unit("By")
        .with_description("Size of the changelog on disk.")
        .with_callback(move |observer| {
            for source in heads.iter() {
                observer.observe(source.head.borrow().changelog_bytes, &[label(&source.name)]);
            }
        })
        .build();
}

fn observe_state(meter: &Meter, sources: &Arc<[ObservedSource]>, clock: Arc<dyn Clock>) {
    let up = Arc::clone(sources);
    meter
        .u64_observable_gauge("tidegate.source_connected")
        .with_description("1 while changes are received from the source, else 0.")
        .with_callback(move |observer| {
            for source in up.iter() {
                observer.observe(u64::from(source.status.borrow().connected()), &[label(&source.name)]);
            }
        })
        .build();
    let full = Arc::clone(sources);
    meter
        .u64_observable_gauge("tidegate.disk_full")
        .with_description("1 while the changelog's disk is full and the source is not confirmed, else 0.")
        .with_callback(move |observer| {
            for source in full.iter() {
                observer.observe(u64::from(source.head.borrow().disk_full), &[label(&source.name)]);
            }
        })
        .build();
    let heard = Arc::clone(sources);
    meter
        .f64_observable_gauge("tidegate.source_silence")
        .with_unit("s")
        .with_description("Time since the source was last heard of.")
        .with_callback(move |observer| {
            for source in heard.iter() {
                let heard_us = source.status.borrow().last_heard_us;
                if heard_us > 0 {
                    let silence = Duration::from_micros(clock.now_us().saturating_sub(heard_us).max(0).unsigned_abs());
                    observer.observe(silence.as_secs_f64(), &[label(&source.name)]);
                }
            }
        })
        .build();
}

fn observe_counters(meter: &Meter, sources: &Arc<[ObservedSource]>) {
    let counters: [(&'static str, &'static str, Read<CaptureCounters>); 2] = [
        ("tidegate.events", "Changes captured.", |c| c.events.load(Relaxed)),
        ("tidegate.source_errors", "Connections to the source, or to the control database, that failed.", |c| {
            c.errors.load(Relaxed)
        }),
    ];
    for (name, about, read) in counters {
        let sources = Arc::clone(sources);
        meter
            .u64_observable_counter(name)
            .with_description(about)
            .with_callback(move |observer| {
                for source in sources.iter() {
                    observer.observe(read(&source.counters), &[label(&source.name)]);
                }
            })
            .build();
    }
}

fn observe_gateway(meter: &Meter, gateway: &Arc<GatewayMetrics>) {
    let subscribers = Arc::clone(gateway);
    meter
        .u64_observable_gauge("tidegate.subscribers")
        .with_description("Open subscriptions.")
        .with_callback(move |observer| {
            for (name, source) in subscribers.sources() {
                observer.observe(source.subscribers(), &[label(name)]);
            }
        })
        .build();
    let sessions = Arc::clone(gateway);
    meter
        .u64_observable_gauge("tidegate.sessions")
        .with_description("Open streams, each with any number of subscriptions.")
        .with_callback(move |observer| observer.observe(sessions.sessions(), &[]))
        .build();
    let changes = Arc::clone(gateway);
    meter
        .u64_observable_counter("tidegate.delivered_events")
        .with_description("Changes sent, to all subscribers together.")
        .with_callback(move |observer| {
            for (name, source) in changes.sources() {
                observer.observe(source.changes(), &[label(name)]);
            }
        })
        .build();
    let bytes = Arc::clone(gateway);
    meter
        .u64_observable_counter("tidegate.delivered")
        .with_unit("By")
        .with_description("Messages sent, to all subscribers together.")
        .with_callback(move |observer| {
            for (name, source) in bytes.sources() {
                observer.observe(source.bytes(), &[label(name)]);
            }
        })
        .build();
    let errors = Arc::clone(gateway);
    meter
        .u64_observable_counter("tidegate.errors")
        .with_description("Errors sent to clients, by their reason.")
        .with_callback(move |observer| {
            for (reason, count) in errors.errors() {
                observer.observe(count, &[KeyValue::new("reason", reason)]);
            }
        })
        .build();
}

fn observe_router(meter: &Meter, gateway: &Arc<GatewayMetrics>) {
    let gauges: [(&'static str, &'static str, Read<RouterMetrics>); 3] = [
        ("tidegate.shapes", "Shapes that changes are routed to; equal ones are one.", RouterMetrics::shapes),
        ("tidegate.shape_conditions", "Different conditions in the indexes of shapes.", RouterMetrics::conditions),
        ("tidegate.shape_indexes", "Indexes of shapes, by table and row type.", RouterMetrics::indexes),
    ];
    let counters: [(&'static str, &'static str, Read<RouterMetrics>); 4] = [
        ("tidegate.shape_lookups", "Changes that an index of shapes was asked about.", RouterMetrics::changes),
        ("tidegate.shape_candidates", "Conditions that indexes have found for changes.", RouterMetrics::candidates),
        (
            "tidegate.shape_evaluations",
            "Conditions that were evaluated for a change, since no lookup proves them.",
            RouterMetrics::evaluations,
        ),
        ("tidegate.shape_verdicts", "How often a change concerned a shape.", RouterMetrics::verdicts),
    ];
    for (name, about, read) in gauges {
        let gateway = Arc::clone(gateway);
        let gauge = meter.u64_observable_gauge(name).with_description(about);
        gauge
            .with_callback(move |observer| each_router(&gateway, read, &mut |value, of| observer.observe(value, of)))
            .build();
    }
    for (name, about, read) in counters {
        let gateway = Arc::clone(gateway);
        let counter = meter.u64_observable_counter(name).with_description(about);
        counter
            .with_callback(move |observer| each_router(&gateway, read, &mut |value, of| observer.observe(value, of)))
            .build();
    }
}

fn each_router(gateway: &GatewayMetrics, read: Read<RouterMetrics>, observe: &mut dyn FnMut(u64, &[KeyValue])) {
    for (name, source) in gateway.sources() {
        observe(read(source.router()), &[label(name)]);
    }
}

fn label(source: &SourceName) -> KeyValue {
    KeyValue::new("source", source.as_str().to_owned())
}
