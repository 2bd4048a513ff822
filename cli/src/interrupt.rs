//! Signals that end the program while it prepares text: the folder that is being made goes first, then the program ends as
//! the signal says. Before and after, the signals do what they always do, until a shim or a daemon takes them
//! ([`hand_over`]).

use lampyris_worker::hangup;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How often a folder is removed again in which a file has appeared meanwhile.
const TRIES: usize = 100;

/// Whether the signals do what they do in a program without handlers. Handlers cannot be taken back, so this is of the
/// process, like the handlers themselves.
static BY_DEFAULT: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Signals that end a program. SIGHUP is left alone where it was ignored when the first handler was installed.
static ENDING: LazyLock<Vec<i32>> = LazyLock::new(|| match hangup::is_ignored() {
    true => vec![SIGINT, SIGTERM],
    false => vec![SIGINT, SIGTERM, SIGHUP],
});

/// Whether the handlers are there that do what a program without handlers does.
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// While it lives, signals that end the program remove a folder first.
pub(crate) struct Guard {
    shared: Arc<Shared>,
    taken: Option<(Handle, JoinHandle<()>)>,
}

#[derive(Default)]
struct Shared {
    folder: Mutex<Option<PathBuf>>,
    ending: AtomicBool,
}

impl Guard {
    /// Takes the signals; where that is impossible they stay as they are.
    pub(crate) fn new() -> Guard {
        let shared = Arc::new(Shared::default());
        let taken = take(Arc::clone(&shared)).ok();
        Guard { shared, taken }
    }

    /// From now on the folder that `make` makes is removed; a signal waits until it is known.
    pub(crate) fn remove_if_ended(&self, make: &mut dyn FnMut() -> Option<PathBuf>) {
        let mut folder = lock(&self.shared.folder);
        *folder = make();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some((handle, thread)) = self.taken.take() else { return };
        BY_DEFAULT.store(true, Ordering::Release);
        handle.close();
        if self.shared.ending.load(Ordering::Acquire) {
            // The signal ends the program; what failed because the folder went away is not to be told.
            thread.join().ok();
        }
    }
}

/// From now on a shim or a daemon takes the signals.
pub(crate) fn hand_over() {
    BY_DEFAULT.store(false, Ordering::Release);
}

fn take(shared: Arc<Shared>) -> io::Result<(Handle, JoinHandle<()>)> {
    BY_DEFAULT.store(false, Ordering::Release);
    let mut signals = Signals::new(ENDING.iter())?;
    if !REGISTERED.swap(true, Ordering::AcqRel) {
        for signal in ENDING.iter() {
            register_conditional_default(*signal, Arc::clone(&BY_DEFAULT))?;
        }
    }
    let handle = signals.handle();
    let thread = thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            shared.ending.store(true, Ordering::Release);
            shared.remove();
            emulate_default_handler(signal).ok();
        }
    });
    Ok((handle, thread))
}

impl Shared {
    fn remove(&self) {
        let Some(folder) = lock(&self.folder).take() else { return };
        for _ in 0..TRIES {
            match fs::remove_dir_all(&folder) {
                // The thread that fills it has just made a file.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }
}

fn lock(folder: &Mutex<Option<PathBuf>>) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
    folder.lock().unwrap_or_else(PoisonError::into_inner)
}
