//! Named places at which tests kill this program from inside. In a release build they are nothing.

/// Kills this process here, as `kill -9` would, if the variable `LAMPYRIS_FAIL_POINT` names this place.
pub fn reached(name: &str) {
    if cfg!(debug_assertions) && std::env::var("LAMPYRIS_FAIL_POINT").is_ok_and(|at| at == name) {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .ok();
    }
}
