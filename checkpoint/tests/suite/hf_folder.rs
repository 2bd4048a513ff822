//! Opening folders, matching their tensors with a model, golden files.

use super::{CASES, oracle};
use lampyris_checkpoint::hf::{Folder, Golden, Import};
use lampyris_plan::Inventory;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors_of(case: &str) -> Tensors {
    let bytes = std::fs::read(oracle(case).join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    parsed
        .iter()
        .map(|(name, view)| {
            (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn zeros(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::F32, shape.to_vec(), vec![0; shape.iter().product::<usize>() * 4])
}

/// A folder of `case` after `change`.
fn folder(case: &str, change: impl FnOnce(&mut Tensors)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(oracle(case).join("config.json"), dir.path().join("config.json")).unwrap();
    let mut tensors = tensors_of(case);
    change(&mut tensors);
    write(&dir.path().join("model.safetensors"), &tensors);
    dir
}

fn import(dir: &Path) -> lampyris_checkpoint::Result<Import> {
    Import::new(Folder::open(dir)?)
}

fn message(dir: &Path) -> String {
    import(dir).unwrap_err().to_string()
}

#[test]
fn every_parity_case_fills_its_model() {
    for case in CASES {
        let import = import(&oracle(case)).unwrap();
        assert_eq!(import.mtp_left_out, case != "llama_gqa", "{case}");
        assert_eq!((import.spec.mtp_layers, import.unexpected.len()), (0, 0), "{case}");
        let read: usize = import
            .inventory
            .parameters
            .iter()
            .map(|parameter| {
                let mut values = vec![f32::NAN; parameter.elements()];
                import.read_parameter(parameter, &mut values).unwrap();
                assert!(values.iter().all(|v| v.is_finite()), "{}", parameter.name);
                values.len()
            })
            .sum();
        let held: usize = tensors_of(case)
            .iter()
            .filter(|(name, _)| !name.ends_with("e_score_correction_bias"))
            .map(|(_, (_, shape, _))| shape.iter().product::<usize>())
            .sum();
        assert_eq!(read, held, "{case}");
    }
}

#[test]
fn stacked_parameters_hold_their_parts_one_below_the_other() {
    let import = import(&oracle("llama_gqa")).unwrap();
    let qkv = import.inventory.find("layers.1.attention.qkv").unwrap();
    let mut values = vec![0.0; qkv.elements()];
    import.read_parameter(qkv, &mut values).unwrap();
    let mut expected = Vec::new();
    for name in ["q", "k", "v"] {
        let name = format!("model.layers.1.self_attn.{name}_proj.weight");
        expected.extend(import.folder().tensor(&name).unwrap().1);
    }
    assert_eq!(values, expected);
}

#[test]
fn ranges_and_half_precision_are_converted() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let source = folder("llama_gqa", |_| {});
    let (shape, exact) = Folder::open(source.path()).unwrap().tensor(name).unwrap();
    assert_eq!(shape, [88, 32]);
    for dtype in [Dtype::BF16, Dtype::F16] {
        let round = |value: f32| match dtype {
            Dtype::BF16 => half::bf16::from_f32(value).to_f32(),
            _ => half::f16::from_f32(value).to_f32(),
        };
        let dir = folder("llama_gqa", |tensors| {
            let bytes = exact.iter().flat_map(|&v| match dtype {
                Dtype::BF16 => half::bf16::from_f32(v).to_le_bytes(),
                _ => half::f16::from_f32(v).to_le_bytes(),
            });
            let bytes = bytes.collect();
            tensors.insert(name.to_string(), (dtype, vec![88, 32], bytes));
        });
        let folder = Folder::open(dir.path()).unwrap();
        let mut part = vec![0.0; 1000];
        folder.read_into(name, 37, &mut part).unwrap();
        let expected: Vec<f32> = exact[37..1037].iter().map(|&v| round(v)).collect();
        assert_eq!(part, expected);
        assert!(folder.read_into(name, 88 * 32 - 999, &mut part).is_err());
    }
}

#[test]
fn a_folder_in_several_files_reads_like_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(oracle("deepseek_v3").join("config.json"), dir.path().join("config.json"))
        .unwrap();
    let mut files: [Tensors; 2] = Default::default();
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in tensors_of("deepseek_v3").into_iter().enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", index % 2 + 1);
        map.insert(name.clone(), file.into());
        files[index % 2].insert(name, tensor);
    }
    for (index, tensors) in files.iter().enumerate() {
        write(&dir.path().join(format!("model-{:05}-of-00002.safetensors", index + 1)), tensors);
    }
    let index_path = dir.path().join("model.safetensors.index.json");
    let index = |map| serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(&index_path, index(map.clone())).unwrap();
    let one = import(&oracle("deepseek_v3")).unwrap();
    let several = import(dir.path()).unwrap();
    for name in one.folder().names() {
        assert_eq!(one.folder().tensor(name).unwrap(), several.folder().tensor(name).unwrap());
    }

    map.insert("ghost".to_string(), "model-00001-of-00002.safetensors".into());
    std::fs::write(&index_path, index(map.clone())).unwrap();
    assert!(message(dir.path()).contains("ghost"));
    map.insert("ghost".to_string(), "../elsewhere.safetensors".into());
    std::fs::write(&index_path, index(map)).unwrap();
    assert!(message(dir.path()).contains("not a file name"));
}

#[test]
fn missing_misshapen_and_unknown_tensors_are_told_apart() {
    let gone = "model.layers.2.mlp.experts.5.up_proj.weight";
    let dir = folder("deepseek_v3", |tensors| {
        tensors.remove(gone);
        tensors.remove("model.layers.1.mlp.gate.e_score_correction_bias");
    });
    let text = message(dir.path());
    assert!(text.contains("missing tensors") && text.contains(gone), "{text}");
    assert!(text.contains("layers.1.mlp.gate.e_score_correction_bias"), "{text}");

    let dir = folder("llama_gqa", |tensors| {
        tensors.insert("lm_head.weight".to_string(), zeros(&[68, 32]));
    });
    let text = message(dir.path());
    assert!(text.contains("lm_head.weight: [68, 32], config.json says [67, 32]"), "{text}");

    let dir = folder("llama_gqa", |tensors| {
        tensors.insert("model.layers.0.self_attn.q_proj.bias".to_string(), zeros(&[32]));
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), zeros(&[4]));
    });
    let import = import(dir.path()).unwrap();
    assert_eq!(import.unexpected, ["model.layers.0.self_attn.q_proj.bias"]);
}

#[test]
fn an_mtp_layer_is_whole_or_left_out() {
    let spec = Folder::open(&oracle("deepseek_v3")).unwrap().spec().clone();
    let inventory = Inventory::new(&spec);
    let whole = |tensors: &mut Tensors| {
        for parameter in inventory.parameters.iter().filter(|p| p.layer == Some(3)) {
            for part in &parameter.parts {
                let mut shape = parameter.shape.clone();
                shape[0] = part.rows;
                tensors.insert(part.hf_name.clone(), zeros(&shape));
            }
        }
        let bias = "model.layers.3.mlp.gate.e_score_correction_bias";
        tensors.insert(bias.to_string(), zeros(&[8]));
    };
    let copies = |tensors: &mut Tensors| {
        tensors.insert("model.layers.3.embed_tokens.weight".to_string(), zeros(&[67, 32]));
        tensors.insert("model.layers.3.shared_head.head.weight".to_string(), zeros(&[67, 32]));
    };
    for with_copies in [false, true] {
        let dir = folder("deepseek_v3", |tensors| {
            whole(tensors);
            if with_copies {
                copies(tensors);
            }
        });
        let import = import(dir.path()).unwrap();
        assert_eq!((import.spec.mtp_layers, import.mtp_left_out), (1, false));
        assert_eq!(import.unexpected, [] as [&str; 0]);
    }
    let partly = folder("deepseek_v3", |tensors| {
        whole(tensors);
        tensors.remove("model.layers.3.eh_proj.weight");
    });
    assert!(message(partly.path()).contains("model.layers.3.eh_proj.weight"));
    let only_copies = folder("deepseek_v3", copies);
    assert!(message(only_copies.path()).contains("model.layers.3.enorm.weight"));
}

#[test]
fn a_tied_head_needs_no_tensor() {
    let dir = folder("llama_gqa", |tensors| {
        tensors.remove("lm_head.weight");
    });
    assert!(message(dir.path()).contains("lm_head.weight"));
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let tied = text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_ne!(tied, text);
    std::fs::write(&path, tied).unwrap();
    assert!(import(dir.path()).unwrap().spec.tie_embeddings);
}

#[test]
fn damaged_files_are_refused_with_their_path() {
    let dir = folder("llama_gqa", |_| {});
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let text = message(dir.path());
        assert!(text.contains("model.safetensors: "), "{length}: {text}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(message(dir.path()).contains("holds neither model.safetensors nor"));
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(message(dir.path()).contains("not a JSON file"));
}

#[test]
fn golden_files_hold_inputs_results_and_gradients() {
    for case in CASES {
        let golden = Golden::open(&oracle(case).join("golden.safetensors")).unwrap();
        assert_eq!(golden.shape, [2, 48]);
        assert!(golden.input_ids.iter().all(|id| (0..67).contains(id)));
        let (shape, logits) = golden.logits().unwrap();
        assert_eq!(shape, [2, 48, 67]);
        let loss = cross_entropy(&golden.input_ids, &logits);
        assert!((loss - f64::from(golden.loss)).abs() < 1e-5, "{case}: {loss} {}", golden.loss);
        let import = import(&oracle(case)).unwrap();
        let wanted = import.folder().names().filter(|name| !name.ends_with("correction_bias"));
        assert!(wanted.eq(golden.gradients.iter().map(String::as_str)), "{case}");
        let name = &golden.gradients[0];
        assert_eq!(golden.gradient(name).unwrap().0, import.folder().shape(name).unwrap());
        assert!(golden.gradient("ghost").is_err());
    }
}

/// Mean over all next-token predictions of two sequences of 48 tokens, in fp64.
fn cross_entropy(ids: &[i64], logits: &[f32]) -> f64 {
    let mut sum = 0.0;
    for position in (0..96).filter(|p| p % 48 != 47) {
        let row = &logits[position * 67..(position + 1) * 67];
        let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        sum += total.ln() - f64::from(row[ids[position + 1] as usize]);
    }
    sum / 94.0
}

#[test]
fn weights_in_other_forms_are_named_with_what_converts_them() {
    for (name, words) in [
        ("pytorch_model.bin", "pytorch_model.bin is a PyTorch pickle"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("model-q4.gguf", "is of llama.cpp"),
        ("weights.safetensors", "name it model.safetensors"),
        ("README.md", "download them completely"),
    ] {
        let dir = folder("llama_gqa", |_| {});
        std::fs::rename(dir.path().join("model.safetensors"), dir.path().join(name)).unwrap();
        let message = message(dir.path());
        assert!(message.contains("holds neither model.safetensors nor"), "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn values_that_are_not_finite_are_named_and_counted() {
    let name = "model.layers.1.self_attn.k_proj.weight";
    let dir = folder("llama_gqa", |tensors| {
        let (_, _, bytes) = tensors.get_mut(name).unwrap();
        bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes[16..20].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    });
    let import = import(dir.path()).unwrap();
    let qkv = import.inventory.find("layers.1.attention.qkv").unwrap();
    let error = import.read_parameter(qkv, &mut vec![0.0; qkv.elements()]).unwrap_err();
    assert!(
        matches!(&error, lampyris_checkpoint::Error::Tensors { names, .. } if names.len() == 1)
    );
    assert!(error.to_string().contains(&format!("{name}: 2 of 512")), "{error}");
}

/// Refused by its figures, before a list of 2^24 layers or experts is made.
#[test]
fn a_configuration_of_a_model_far_larger_than_the_folder_is_refused() {
    for (case, key, value) in [
        ("llama_gqa", "num_hidden_layers", 1u64 << 24),
        ("deepseek_v3", "n_routed_experts", 1 << 24),
        ("deepseek_v3", "num_hidden_layers", 1 << 31),
    ] {
        let dir = folder(case, |_| {});
        let path = dir.path().join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let message = message(dir.path());
        assert!(message.contains("config.json: it describes"), "{message}");
        assert!(message.contains(&value.to_string()), "{message}");
        config[key] = (1u64 << 32).into();
        std::fs::write(&path, config.to_string()).unwrap();
        assert!(self::message(dir.path()).contains("larger than 2147483648"));
    }
}

#[test]
fn pipes_and_devices_in_place_of_files_are_refused() {
    for name in ["config.json", "model.safetensors"] {
        let dir = folder("llama_gqa", |_| {});
        let path = dir.path().join(name);
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(message(dir.path()).contains("a regular file is expected"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(message(dir.path()).contains("a regular file is expected"));
    }
}
