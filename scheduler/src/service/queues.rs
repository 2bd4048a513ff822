//! What waits for the engine, and how much of it is taken at once: workers first, so that a lease never waits for more than
//! one bounded batch of commands and looks.

use super::link::{Look, Message};
use crate::limits;
use tokio::sync::mpsc;

/// The engine's ends of the queues.
pub(super) struct Queues {
    pub(super) workers: mpsc::Receiver<Message>,
    pub(super) commands: mpsc::Receiver<Message>,
    pub(super) looks: mpsc::Receiver<Look>,
}

/// What is done together: all messages in one transaction, then the looks.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) messages: Vec<Message>,
    pub(super) looks: Vec<Look>,
}

impl Queues {
    /// Waits for one of anything. False once nobody can send any more.
    pub(super) async fn receive(&mut self, batch: &mut Batch) -> bool {
        tokio::select! {
            biased;
            message = self.workers.recv() => message.map(|message| batch.messages.push(message)),
            message = self.commands.recv() => message.map(|message| batch.messages.push(message)),
            look = self.looks.recv() => look.map(|look| batch.looks.push(look)),
        }
        .is_some()
    }

    /// Adds what waits besides, up to the limits.
    pub(super) fn fill(&mut self, batch: &mut Batch) {
        let mut weight: usize = batch.messages.iter().map(Message::weight).sum();
        while weight < limits::WORKER_BATCH
            && let Ok(message) = self.workers.try_recv()
        {
            weight = weight.saturating_add(message.weight());
            batch.messages.push(message);
        }
        for _ in 0..limits::COMMAND_BATCH {
            let Ok(message) = self.commands.try_recv() else { break };
            batch.messages.push(message);
        }
        while batch.looks.len() < limits::LOOK_BATCH
            && let Ok(look) = self.looks.try_recv()
        {
            batch.looks.push(look);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Command, NodeName};
    use lampyris_proto::{JobId, v1};
    use tokio::sync::oneshot;

    #[test]
    fn a_heartbeat_waits_for_one_bounded_batch_whatever_people_ask() {
        let (workers, worker_queue) = mpsc::channel(limits::WORKER_QUEUE);
        let (commands, command_queue) = mpsc::channel(limits::COMMAND_QUEUE);
        let (looks, look_queue) = mpsc::channel(limits::LOOK_QUEUE);
        let mut queues =
            Queues { workers: worker_queue, commands: command_queue, looks: look_queue };
        for _ in 0..limits::COMMAND_QUEUE {
            let cancel =
                Message::OnJob(Command::Cancel { job: JobId(1) }, JobId(1), oneshot::channel().0);
            commands.try_send(cancel).expect("room");
        }
        for _ in 0..limits::LOOK_QUEUE {
            looks.try_send(Box::new(|_| ())).expect("room");
        }
        let attempts = vec![v1::ReportedAttempt::default(); limits::REPORTED_ATTEMPTS];
        for _ in 0..3 {
            let register = v1::Register { attempts: attempts.clone(), ..v1::Register::default() };
            let (outbox, _) = mpsc::channel(1);
            let join = Message::Join(Box::new(register), outbox, oneshot::channel().0);
            workers.try_send(join).expect("room");
        }
        let left = Message::Left { node: NodeName("n".into()), session: 1 };
        workers.try_send(left).expect("room");
        let mut rounds = 0;
        while !queues.workers.is_empty() {
            let mut batch = Batch::default();
            queues.fill(&mut batch);
            let joins = batch.messages.iter().filter(|m| matches!(m, Message::Join(..))).count();
            assert!(joins <= 1 && batch.messages.len() <= 1 + limits::COMMAND_BATCH + 1);
            assert!(batch.looks.len() <= limits::LOOK_BATCH);
            rounds += 1;
        }
        assert_eq!(rounds, 4);
    }
}
