//! A pause shorter than a millisecond, which is the grain of tokio's timers.
//!
//! On Linux a kernel timer is waited for like a socket; elsewhere the pause takes tokio's millisecond.

use std::time::Duration;

/// A timer, made at its first use.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    #[cfg(target_os = "linux")]
    timer: Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>,
}

#[cfg(target_os = "linux")]
impl Pause {
    /// Waits. Cancel safe. Without a kernel timer (no file descriptor left) it does not wait at all: a pause only saves work.
    pub(crate) async fn wait(&mut self, duration: Duration) {
        use std::os::fd::AsFd;

        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        if self.timer.is_none() {
            self.timer = new_timer().ok();
        }
        let Some(timer) = &self.timer else { return };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec { tv_sec: 0, tv_nsec: duration.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value };
        if timerfd_settime(timer.get_ref().as_fd(), TimerfdTimerFlags::empty(), &once).is_err() {
            return;
        }
        loop {
            let Ok(mut ready) = timer.readable().await else { return };
            // A timer that was set anew after a cancelled wait may look ready although it is not.
            let expired = ready.try_io(|fd| rustix::io::read(fd.get_ref(), &mut [0_u8; 8][..]).map_err(Into::into));
            if expired.is_ok() {
                return;
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(deprecated, reason = "unsound only for types whose descriptor may change; its successor needs unsafe code")]
fn new_timer() -> std::io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    tokio::io::unix::AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}

#[cfg(not(target_os = "linux"))]
impl Pause {
    /// Waits. Cancel safe.
    pub(crate) async fn wait(&mut self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_pause_lasts_at_least_as_long_as_asked_each_time() {
        let mut pause = Pause::default();
        for _ in 0..5 {
            let start = Instant::now();
            pause.wait(Duration::from_micros(300)).await;
            assert!(start.elapsed() >= Duration::from_micros(290), "{:?}", start.elapsed());
        }
    }
}
