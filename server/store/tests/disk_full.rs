//! A full disk holds back the feed and nothing else. Runs on a small tmpfs, which takes the right to mount.
#![allow(clippy::unwrap_used, reason = "tests only")]

use std::{fs, path::Path, process::Command};

use tidegate_feed::{FeedItem, Publish};

mod support;

use support::{
    INFO, Running, START, config, read,
    records::{Event, blocks, records},
};

/// A file system of 1 MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None, with a message, where mounting is not allowed.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tidegate-test"]).arg(dir.path()).output();
        match mount {
            Ok(output) if output.status.success() => Some(SmallDisk(dir)),
            Ok(output) => {
                eprintln!("skipped: mounting a tmpfs failed: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("skipped: mount cannot be run: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "unmount {}", self.path().display());
    }
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let dir = disk.path().join("store");
    // Segments small enough that some attempts fail at making one, and others at appending.
    let config = tidegate_store::StoreConfig { segment_bytes: 50_000, tail_bytes: 0, ..config(&dir) };
    let mut running = Running::begin(config.clone()).await;
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 800_000]).unwrap();
    let all = records(&vec![Event::Transaction(vec![190; 20]); 100]);
    let (mut head, mut durable) = (running.store.head(), running.publisher.durable());
    let first = all.len() / 5;
    running.publish(blocks(&all[..first], 3000)).await;
    running.durable(all[first - 1].0).await;
    running.publish(blocks(&all[first..], 3000)).await;
    durable.wait_for(|durable| durable.disk_full).await.unwrap();
    let full = *head.wait_for(|head| head.disk_full && head.durable == head.complete).await.unwrap();
    // Serving goes on.
    let seen = all.iter().filter(|record| record.0 <= full.complete).count();
    assert!(0 < seen && seen < all.len());
    assert!(read(&mut running.reader(START), seen).await == all[..seen]);

    fs::remove_file(&ballast).unwrap();
    durable.wait_for(|durable| !durable.disk_full).await.unwrap();
    running.durable(all[all.len() - 1].0).await;
    assert!(read(&mut running.reader(START), all.len()).await == all);
    running.close().await.unwrap();
    let running = Running::open(config).await;
    assert_eq!(running.store.recovered().unwrap().durable, all[all.len() - 1].0);
}

#[tokio::test]
async fn a_writer_with_a_full_disk_stops_when_told() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut running = Running::open(config(&disk.path().join("store"))).await;
    let mut ballast = 0;
    while fs::write(disk.path().join(format!("ballast-{ballast}")), vec![0; 4096]).is_ok() {
        ballast += 1;
    }
    running.publisher.publish(FeedItem::Epoch(INFO, None)).await.unwrap();
    running.publisher.durable().wait_for(|durable| durable.disk_full).await.unwrap();
    running.stop.cancel();
    running.ended().await.unwrap();
}
