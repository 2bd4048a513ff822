//! The start of one node of an attempt: is the node fit, then a folder, then a shim's process. Everything here may block on
//! disks, so it has a thread of its own.

use super::fitness::{Condition, failure};
use crate::launch::{Folder, Launch};
use crate::private;
use crate::shim::control;
use lampyris_proto::v1;
use lampyris_proto::v1::failure::Class;
use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};

/// What is to be started, and where.
pub(super) struct Start {
    pub(super) folder: Folder,
    pub(super) launch: Launch,
    pub(super) run: v1::RunSpec,
    /// Program and arguments that host a shim.
    pub(super) shim_command: Vec<OsString>,
}

impl Start {
    /// Starts it; nothing is left behind if that fails.
    pub(super) fn begin(&self) -> Result<(), v1::Failure> {
        let program = &self.launch.rank_program;
        if let Some(unfit) = Condition::now(&self.run, program).refuse(&self.run, program) {
            return Err(unfit);
        }
        self.spawn().map_err(|error| {
            self.folder.remove();
            failure(Class::NodeUnfit, format!("cannot start a shim: {error}"))
        })
    }

    fn spawn(&self) -> io::Result<()> {
        let Launch { job, attempt, .. } = &self.launch;
        if self.launch.node == 0 {
            // What made the attempt before stop is done with. Here and not in the shim, whose start a new request may
            // overtake.
            control::clear_suspend(&self.launch.run_dir)?;
        }
        self.folder.create(&self.launch)?;
        let lock = self.folder.try_lock()?.ok_or(io::ErrorKind::WouldBlock)?;
        let log = private::create_file(&self.folder.path().join("shim.log"))?;
        let mut command = Command::new(&self.shim_command[0]);
        let child = command
            .args(&self.shim_command[1..])
            .arg(self.folder.path())
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()?;
        tracing::info!(%job, %attempt, pid = child.id(), "started a shim");
        reap(child);
        Ok(())
    }
}

/// Waits for a shim in a thread of its own, so that no zombie stays.
fn reap(mut child: std::process::Child) {
    std::thread::spawn(move || child.wait().ok());
}
