//! Long test: what `hf::export` writes, `transformers` loads with every key in place and computes equal logits from.

use super::{CASES, oracle};
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::hf::{Folder, Options, StorageType, export};
use std::path::Path;
use std::process::Command;

#[test]
#[ignore = "long: downloads torch and transformers once (scripts/peers.sh)"]
fn exported_folders_load_in_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = Command::new(root.join("scripts/peers.sh")).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let python = String::from_utf8(python.stdout).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cases = CASES.map(|case| (case, false)).into_iter().chain([("deepseek_v3", true)]);
    for (case, with_mtp) in cases {
        let folder = Folder::open(&oracle(case)).unwrap();
        let target = dir.path().join(format!("{case}-{with_mtp}"));
        // In several files, so that the index is read too.
        let options = Options {
            storage: StorageType::Fp32,
            with_mtp,
            file_bytes: 100_000,
            ..Options::default()
        };
        export(&RealDisk, folder.spec(), &options, &target, |name, first, out| {
            if folder.shape(name).is_some() {
                return folder.read_into(name, first, out);
            }
            out.fill(0.5);
            Ok(())
        })
        .unwrap();
        let output = Command::new(python.trim())
            .arg(root.join("tests/peers/export_transformers.py"))
            .arg(&target)
            .arg("--logits")
            .arg(oracle(case).join("golden.safetensors"))
            .args(with_mtp.then_some("--with-mtp"))
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {report}{log}");
        eprintln!("{case}: {report}");
    }
}
