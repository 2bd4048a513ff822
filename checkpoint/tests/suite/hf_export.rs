//! Writing folders: what is exported imports again with the same values.

use super::fixture::{SMALL, id, meta, new_run, open};
use super::{CASES, oracle};
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::hf::{Exported, Folder, Import, Options, StorageType};
use lampyris_checkpoint::hf::{config, export, from_checkpoint};
use lampyris_checkpoint::tensors::tensor_list;
use lampyris_checkpoint::{Error, Kind, Meta, Piece};
use lampyris_plan::{ModelSpec, Rank};
use std::path::Path;

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Exports the weights of `folder` as `spec`; tensors it lacks get values made from their name's length.
fn export_of(
    folder: &Folder,
    spec: &ModelSpec,
    options: &Options,
    target: &Path,
) -> lampyris_checkpoint::Result<Exported> {
    export(&RealDisk, spec, options, target, |name, first, out| {
        if folder.shape(name).is_some() {
            return folder.read_into(name, first, out);
        }
        out.fill(name.len() as f32);
        Ok(())
    })
}

#[test]
fn an_exported_folder_imports_with_equal_bits() {
    for case in CASES {
        let folder = Folder::open(&oracle(case)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, file_bytes) in [("one", u64::MAX), ("several", 100_000)] {
            let options = Options { storage: StorageType::Fp32, file_bytes, ..Options::default() };
            let target = dir.path().join(name);
            let exported = export_of(&folder, folder.spec(), &options, &target).unwrap();
            assert_eq!(exported.files.len() > 1, name == "several", "{exported:?}");
            let import = Import::new(Folder::open(&target).unwrap()).unwrap();
            assert_eq!((import.spec.mtp_layers, import.unexpected.len()), (0, 0));
            let original: Vec<&str> = folder.names().collect();
            assert_eq!(import.folder().names().collect::<Vec<_>>(), original);
            for name in original {
                let (a, b) = (folder.tensor(name).unwrap(), import.folder().tensor(name).unwrap());
                assert_eq!(a, b, "{case} {name}");
            }
        }
        assert_eq!(names(dir.path()), ["one", "several"]);
    }
}

#[test]
fn a_checkpoint_is_exported_without_its_moments() {
    let folder = Folder::open(&oracle("deepseek_v3")).unwrap();
    let import = Import::new(folder).unwrap();
    let tensors = tensor_list(&import.inventory, &[Kind::Weight]);
    let values: Vec<_> =
        tensors.iter().map(|entry| import.folder().tensor(&entry.name).unwrap().1).collect();
    let pieces: Vec<Piece<'_>> = tensors
        .iter()
        .zip(&values)
        .map(|(entry, data)| Piece { tensor: &entry.name, kind: entry.kinds[0], start: 0, data })
        .collect();
    let (dir, run) = new_run();
    let report = run.write_shard(id(1, 1), Rank(0), &pieces, SMALL).unwrap();
    run.commit(&Meta { tensors: tensors.clone(), ..meta(id(1, 1)) }, &[report]).unwrap();
    let reader = open(&run, id(1, 1)).unwrap();
    let target = dir.path().join("exported");
    let options = Options { storage: StorageType::Fp32, ..Options::default() };
    export(&RealDisk, &import.spec, &options, &target, from_checkpoint(&reader)).unwrap();
    let exported = Folder::open(&target).unwrap();
    for (entry, values) in tensors.iter().zip(values) {
        assert_eq!(exported.tensor(&entry.name).unwrap(), (entry.shape.clone(), values));
    }
}

#[test]
fn bf16_rounds_matrices_and_keeps_gate_biases() {
    let folder = Folder::open(&oracle("deepseek_v3")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("bf16");
    export_of(&folder, folder.spec(), &Options::default(), &target).unwrap();
    let out = Folder::open(&target).unwrap();
    for name in folder.names() {
        let (exact, written) = (folder.tensor(name).unwrap().1, out.tensor(name).unwrap().1);
        let keep = name.ends_with("e_score_correction_bias");
        let expected = |v: f32| if keep { v } else { half::bf16::from_f32(v).to_f32() };
        assert!(exact.iter().map(|&v| expected(v)).eq(written), "{name}");
    }
    let config = std::fs::read_to_string(target.join("config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"bfloat16\""), "{config}");
}

#[test]
fn the_mtp_layer_is_written_on_request_with_its_copies() {
    let folder = Folder::open(&oracle("deepseek_v3")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { with_mtp: true, storage: StorageType::Fp32, ..Options::default() };
    for tied in [false, true] {
        let spec = ModelSpec { tie_embeddings: tied, ..folder.spec().clone() };
        let target = dir.path().join(format!("tied-{tied}"));
        export_of(&folder, &spec, &options, &target).unwrap();
        let import = Import::new(Folder::open(&target).unwrap()).unwrap();
        assert_eq!((import.spec.mtp_layers, import.mtp_left_out), (1, false));
        let copy = import.folder().tensor("model.layers.3.embed_tokens.weight").unwrap();
        assert_eq!(copy, folder.tensor("model.embed_tokens.weight").unwrap());
        let head = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let copy = import.folder().tensor("model.layers.3.shared_head.head.weight").unwrap();
        assert_eq!(copy, folder.tensor(head).unwrap());
    }
}

#[test]
fn further_files_come_along() {
    let folder = Folder::open(&oracle("llama_gqa")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        tokens: config::Tokens { bos: Some(3), eos: None },
        extra_files: vec![("tokenizer.json".to_string(), b"{}".to_vec())],
        ..Options::default()
    };
    let target = dir.path().join("out");
    export_of(&folder, folder.spec(), &options, &target).unwrap();
    assert_eq!(names(&target), ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn an_existing_target_is_never_touched() {
    let folder = Folder::open(&oracle("llama_gqa")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    std::fs::create_dir(&target).unwrap();
    let result = export_of(&folder, folder.spec(), &Options::default(), &target);
    assert!(matches!(result, Err(Error::Exists { path }) if path == target));
    assert_eq!(names(&target), [] as [&str; 0]);
}

#[test]
fn a_failed_export_leaves_nothing_behind() {
    let folder = Folder::open(&oracle("llama_gqa")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let mut calls = 0;
    let result =
        export(&RealDisk, folder.spec(), &Options::default(), &target, |name, first, out| {
            calls += 1;
            match calls {
                9 => folder.read_into("ghost", first, out),
                _ => folder.read_into(name, first, out),
            }
        });
    assert!(result.unwrap_err().to_string().contains("ghost"));
    assert_eq!(names(dir.path()), [] as [&str; 0]);
}
