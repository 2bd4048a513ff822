//! Passes libtorch's folder on as an rpath (set by the build script of `lampyris-torch`).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(libdir) = std::env::var("DEP_LAMPYRIS_TORCH_SHIM_LIBDIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libdir}");
    }
}
