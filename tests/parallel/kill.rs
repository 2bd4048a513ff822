//! Two ranks, one of them killed with signal 9 inside a save: the run ends, nothing that was committed is lost, and each
//! resume goes on bit for bit. (`LAMPYRIS_FAIL_POINT`, which only debug builds know.)

use lampyris_tests::desk::Desk;
use std::process::{Command, Output};

const FAIL_POINT: &str = "LAMPYRIS_FAIL_POINT";

/// 16 steps, a save after each; experts and optimizer state are spread over the ranks.
const SETS: [&str; 8] = [
    "batch.micro_batch=1",
    "batch.leaves=8",
    "schedule.total_tokens=8_192",
    "eval.every_steps=0",
    "output.sample_tokens=0",
    "checkpoint.every_steps=1",
    "parallel.data=2",
    "parallel.expert=2",
];

/// Who dies where. Rank 1 commits nothing: it opens the run directory with the operations 1 to 4 and then only writes
/// shards. Of rank 0, the first files it writes and syncs are those of the attempt.
const KILLS: [&str; 6] = [
    "1 any 5 kill",
    "1 write 2 kill",
    "0 rename 2 kill",
    "1 sync 4 kill",
    "0 remove_file 2 kill",
    "0 write 5 kill",
];

fn ended(command: &mut Command) -> Output {
    command.output().expect("lampyris runs")
}

#[test]
fn either_of_two_ranks_killed_inside_a_save_resumes_bit_for_bit() {
    let desk = Desk::new();
    let whole = desk.train("debug_moe", "undisturbed", &SETS);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let want = desk.losses("undisturbed");
    for (nth, point) in KILLS.into_iter().enumerate() {
        let mut command = match nth {
            0 => desk.train_command("debug_moe", "killed", &SETS),
            _ => desk.command(&["resume", "killed"]),
        };
        let killed = ended(command.env(FAIL_POINT, point));
        let text = String::from_utf8_lossy(&killed.stderr);
        assert_eq!(killed.status.code(), Some(1), "{point}: {text}");
        assert!(text.contains("killed by SIGKILL"), "{point}: {text}");
        assert!(text.contains(&format!("rank {}", &point[..1])), "{point}: {text}");
        for (step, loss) in desk.losses("killed") {
            assert_eq!(want.get(&step), Some(&loss), "{point}, step {step}");
        }
    }
    let last = desk.run(&["resume", "killed"]);
    assert_eq!(last.code, 0, "{}", last.stderr);
    assert_eq!(desk.losses("killed"), want);
    desk.assert_same_state("killed", "undisturbed");
}
