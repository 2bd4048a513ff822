//! Full disks, refusals, and what a person is told.

use crate::desk::{Desk, skip};
use crate::history::check;
use lampyris_tests::repository;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A small file system, unmounted when dropped; none where this process may not mount.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            skip("mounting a small disk needs root");
        }
        mounted.then(|| SmallDisk(path.to_path_buf()))
    }

    /// Fills what is left; the file to remove again.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        let block = [0_u8; 4096];
        while file.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_job_whose_disk_is_full_is_tried_again_when_there_is_room() {
    let desk = Desk::up("20 5", 1);
    let Some(disk) = SmallDisk::mount(&desk.path("runs"), "24m") else { return };
    let job = desk.submit("runs/one", 60, &["--max-retries", "50"]);
    desk.wait_step(&job, 10);
    let ballast = disk.fill();
    desk.wait_for("a full disk to be named", |desk| {
        let events = desk.run(&["events", "--job", &job]);
        Some(events.contains("infrastructure"))
    });
    fs::remove_file(ballast).unwrap();
    desk.wait_phase(&job, "succeeded");
    check(&desk, "runs/one", 60);
}

#[test]
fn a_job_whose_logs_find_no_room_trains_on() {
    let mut desk = Desk::of_real_ranks();
    // Ranks have something to say as soon as they are loaded.
    desk.set("OMP_DISPLAY_ENV", "TRUE");
    desk.start_scheduler(&[]);
    // Placed once there is a worker: the disk for the logs is there before the ranks are.
    let sets = ["--set", "parallel.threads_per_rank=1", "--set", "schedule.warmup_tokens=512"];
    let job = desk.submit("one", 4, &sets);
    let Some(disk) = SmallDisk::mount(&desk.path("one/logs"), "64k") else { return };
    let ballast = disk.fill();
    desk.start_worker(0, &[]);
    desk.wait_phase(&job, "succeeded");
    assert_eq!(desk.show(&job).unwrap()["step"], 4);
    let log = fs::metadata(desk.path("one/logs/rank-0.attempt-1.log")).unwrap();
    assert_eq!(log.len(), 0, "the disk was not full");
    fs::remove_file(ballast).unwrap();
    let job = desk.submit("two", 4, &sets);
    desk.wait_phase(&job, "succeeded");
    assert!(fs::metadata(desk.path("two/logs/rank-0.attempt-1.log")).unwrap().len() > 0);
}

#[test]
fn a_scheduler_whose_disk_is_full_loses_nothing_that_it_accepted() {
    let mut desk = Desk::new("20 5");
    let Some(disk) = SmallDisk::mount(&desk.path("state"), "2m") else { return };
    desk.start_scheduler(&["--state-dir", "state"]);
    desk.start_worker(0, &[]);
    let job = desk.submit("one", 60, &["--max-retries", "50"]);
    desk.wait_step(&job, 5);
    let ballast = disk.fill();
    let recipe = repository("recipes/debug_llama.toml").display().to_string();
    let refused = desk.command(&["submit", &recipe, "--run-dir", "two"]).output().unwrap();
    fs::remove_file(ballast).unwrap();
    if !refused.status.success() {
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("error: "), "{said}");
    }
    // It may have ended itself rather than forget.
    if desk.scheduler.as_mut().unwrap().try_wait().unwrap().is_some() {
        desk.start_scheduler(&["--state-dir", "state"]);
    }
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 60);
}

#[test]
fn what_is_wrong_is_said_with_what_to_try() {
    let desk = Desk::new("20 5");
    let said = |arguments: &[&str]| {
        let output = desk.command(arguments).env("COLUMNS", "80").output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let nobody = said(&["list"]);
    assert!(nobody.contains("no scheduler answers at unix:"), "{nobody}");
    assert!(nobody.contains("hint: `lampyris up` starts one"), "{nobody}");
    assert!(said(&["list", "--scheduler", "nonsense"]).contains("unix:/PATH"));
    let mut desk = desk;
    desk.start_scheduler(&[]);
    let output = desk.command(&["show", "7"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no job 7"), "{output:?}");
    let recipe = repository("recipes/debug_llama.toml").display().to_string();
    let output = desk.command(&["submit", &recipe, "--priority", "huge"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("\"huge\" is no priority") && said.contains("hint: low,"), "{said}");
    let job = desk.submit("one", 20, &["--group", "gpus"]);
    let shown = desk.run(&["show", &job]);
    assert!(shown.contains("no node of group gpus is known"), "{shown}");
}
