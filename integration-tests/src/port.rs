//! Ports of the loopback address, for servers that are stopped and started again on the same one.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail};

/// Below the range that the kernel takes the local ports of connections from: one that it hands out would be lost to a
/// connection of another test while the server is down.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A TCP port that nobody listens on, and that no one else in this process has been or will be given.
///
/// # Errors
/// None is free.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin at different places.
    let start = std::process::id().wrapping_mul(7_919) % u32::from(COUNT);
    loop {
        let taken = NEXT.fetch_add(1, Ordering::Relaxed);
        if taken >= COUNT {
            bail!("this process has been given all of the {COUNT} ports from {FIRST} on");
        }
        let port = FIRST + u16::try_from((start + u32::from(taken)) % u32::from(COUNT))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}
