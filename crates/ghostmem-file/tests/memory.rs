//! Folders that keep their files in memory are known as such.
#![cfg(target_os = "linux")] // mounts
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::path::Path;
use std::process::Command;

use ghostmem_file::{FileTier, OpenError, Options};

const ROLE: &str = "GHOSTMEM_TEST_ROLE";

fn kept_by(folder: &str) -> Option<&'static str> {
    Options::unnamed(folder).kept_in_memory_by()
}

#[test]
fn a_folder_on_a_disk_is_none_of_them() {
    if kept_by("/var/tmp").is_some() {
        eprintln!("SKIPPED: /var/tmp is in memory here");
        return;
    }
    let tier = FileTier::open(&Options::unnamed("/var/tmp").on_disk_only(true));
    assert!(tier.is_ok(), "{tier:?}");
    assert_eq!(kept_by("/proc"), None);
    assert_eq!(kept_by("/nowhere/at/all"), None);
}

/// tmpfs, ramfs, and an overlay on each, in a mount namespace of the test's own.
#[test]
fn memory_is_seen_below_a_mount_and_an_overlay() {
    if std::env::var_os(ROLE).is_some() {
        return inside();
    }
    let script = r#"set -e
        mount --make-rprivate /
        mount -t tmpfs none /mnt
        mkdir /mnt/tmpfs /mnt/ramfs /mnt/overlay /mnt/lower "/mnt/tmpfs/up per" /mnt/tmpfs/work
        mount -t ramfs none /mnt/ramfs
        mount -t overlay -o "lowerdir=/mnt/lower,upperdir=/mnt/tmpfs/up per,workdir=/mnt/tmpfs/work" \
            none /mnt/overlay || rmdir /mnt/overlay
        exec "$0" --exact memory_is_seen_below_a_mount_and_an_overlay --nocapture"#;
    let program = std::env::current_exe().unwrap();
    let may_mount = Command::new("unshare")
        .args(["--mount", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !may_mount {
        eprintln!("SKIPPED: nothing can be mounted here (unshare --mount): run it as root");
        return;
    }
    let ended = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(program)
        .env(ROLE, "inside")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}", ended.status);
    eprint!("{said}");
}

fn inside() {
    assert_eq!(kept_by("/mnt"), Some("a tmpfs"));
    assert_eq!(kept_by("/mnt/ramfs"), Some("a ramfs"));
    let options = Options::unnamed("/mnt/tmpfs").on_disk_only(true);
    let refused = FileTier::open(&options).err().unwrap();
    let is_in_memory = matches!(
        refused,
        OpenError::InMemory {
            kept_by: "a tmpfs",
            ..
        }
    );
    assert!(is_in_memory, "{refused:?}");
    let line = refused.to_string();
    for part in ["/mnt/tmpfs", "a tmpfs", "choose a directory on a disk"] {
        assert!(line.contains(part), "{line}");
    }
    let named = Options::named("/mnt/tmpfs/file").on_disk_only(true);
    assert!(FileTier::open(&named).is_err());
    assert!(!Path::new("/mnt/tmpfs/file").exists());
    if Path::new("/mnt/overlay").exists() {
        let by = kept_by("/mnt/overlay");
        assert_eq!(by, Some("an overlay with its upper folder there"));
    } else {
        eprintln!("SKIPPED: no overlay can be mounted here");
    }
}
