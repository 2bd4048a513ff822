//! Compiles the C++ shim against the headers of `$LIBTORCH` and tells dependents where its libraries are, so that
//! every program carries an rpath and needs no `LD_LIBRARY_PATH`.

use std::env;
use std::path::{Path, PathBuf};

/// Instruction sets of the row kernels: name of the namespace, compiler flags.
const ISAS: [(&str, &[&str]); 3] = [
    (
        "avx512",
        &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
    ),
    ("avx2", &["-mavx2"]),
    ("baseline", &[]),
];

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "LIBTORCH is not set; build through `make`, or: export LIBTORCH=$(scripts/libtorch.sh)"
        )
    });
    for (isa, flags) in ISAS {
        let mut build = compiler();
        build.file("cpp/kernels.cpp").define("KERNEL_ISA", isa);
        // Contraction off: fused multiply-adds would make bits depend on the instruction set.
        build.flag("-ffp-contract=off").flag("-fno-math-errno").flag("-fno-trapping-math");
        flags.iter().for_each(|flag| {
            build.flag(flag);
        });
        build.compile(&format!("lampyris_kernels_{isa}"));
    }
    compiler()
        .files(
            ["base", "norm", "linear", "attention", "rows"].map(|name| format!("cpp/{name}.cpp")),
        )
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .flag("-fopenmp")
        .flag("-isystem")
        .flag(libtorch.join("include"))
        .flag("-Wno-unused-parameter")
        .compile("lampyris_shim");
    link(&libtorch.join("lib"));
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(false);
    build
}

fn link(lib: &Path) {
    for isa in ISAS {
        println!("cargo:rustc-link-lib=static=lampyris_kernels_{}", isa.0);
    }
    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    // libtorch's own OpenMP runtime, so that a thread has one pool.
    let gomp = lib.join("libgomp.so.1");
    if gomp.exists() {
        println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    } else {
        println!("cargo:rustc-link-lib=dylib=gomp");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:libdir={}", lib.display());
}
