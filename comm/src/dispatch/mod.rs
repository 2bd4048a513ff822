//! The host half of expert dispatch: rows of tokens to the owners of the experts that they chose, and back.
//!
//! ```text
//! let dispatcher = Dispatcher::new(&group, experts, Options::default())?;   // once per group
//! let handle = dispatcher.start_route(chosen, slots)?;                      // counts; returns at once
//! let rows = dispatcher.start_dispatch(&handle, tokens, row_bytes, |routes| vec![0; routes.rows() * row_bytes])?;
//! let scales = dispatcher.start_dispatch_choices(&handle, weights, 4, |routes| vec![0; routes.rows() * 4])?;
//! ...                                                                       // compute something else
//! let (tokens, rows) = rows.wait()?;                                        // rows of handle.wait()?.expert_rows(e)
//! ...                                                                       // experts
//! let home = dispatcher.start_combine(&handle, rows, row_bytes, vec![0; tokens * slots * row_bytes])?;
//! let (rows, home) = home.wait()?;                                          // [tokens, slots, row]: the caller sums
//! ```
//!
//! **Bytes in, bytes out.** A row is `row_bytes` bytes of anything. Buffers are the caller's (`Vec<u8>`, or any type
//! that shows itself as bytes, such as a tensor on the host), are owned by the operation while it runs, and come back
//! from `wait`. Received rows are written right where they stay: by (local expert, source member, order of (token,
//! slot) at the source), each expert or each block padded with zero rows to a multiple ([`Padding`]). That order does
//! not depend on timing, nodes or [`Path`].
//!
//! **The way back.** A [`Handle`] remembers where rows came from. [`Dispatcher::start_combine`] brings rows back to
//! `[tokens, slots]`, each to the choice it was made from. So backward(dispatch) is a combine with the same handle, for
//! row gradients and, with `row_bytes = 4`, for fp32 weight gradients; backward(combine) is a dispatch with the same
//! handle. Nothing is summed here: the order of the sum over slots belongs to the trainer.
//!
//! **Who must call what.** All members make the same calls in the same order, also with zero tokens. Calls return at
//! once; threads of the dispatcher count, pack, exchange, forward and scatter, so that the caller's compute thread only
//! waits. A call may follow [`Dispatcher::start_route`] without waiting for it: that is why outputs are made by a
//! function of [`Routes`], on a thread of the dispatcher. At most 64 calls queue; further ones wait.
//!
//! **Paths.** [`Path::Direct`] is one all-to-all-v; a token that chose three experts travels three times.
//! [`Path::PerNode`] sends a token once to each node and copies it to the experts' owners there (the paper of DeepSeek-V3,
//! section 3.2.2); rows on their way home all differ, and go directly. Both give the same bytes.

mod hops;
mod moves;
mod routes;
mod worker;

use crate::completion::{Completion, Pending};
use crate::error::{Error, Result};
use crate::group::Group;
use hops::{Hops, Places};
use moves::{Counts, Hop, Input, Ways, check, job};
pub use routes::Routes;
use routes::Shape;
use std::any::Any;
use std::sync::{Arc, OnceLock};
use worker::{After, Ending, Staging, Worker};

/// How rows of received buffers are padded. A multiple of 1 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Each expert's rows to a multiple of this.
    Experts(usize),
    /// The rows of each (expert, source) to a multiple of this: blocks that look the same as on one rank.
    Blocks(usize),
}

/// How tokens reach experts on other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// One message per (member, member).
    Direct,
    /// One copy per (token, node), forwarded inside the node.
    PerNode,
}

/// A buffer that rows are read from, given to an operation and back.
pub trait Readable: AsRef<[u8]> + Any + Send {}
impl<T: AsRef<[u8]> + Any + Send> Readable for T {}

/// A buffer that rows are written to, given to an operation and back.
pub trait Writable: AsMut<[u8]> + Any + Send {}
impl<T: AsMut<[u8]> + Any + Send> Writable for T {}

/// Settings of a dispatcher. Equal on all members.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of received rows.
    pub padding: Padding,
    /// `None`: per node where the group has several nodes and several members on one of them, else direct.
    pub path: Option<Path>,
}

impl Default for Options {
    fn default() -> Self {
        Self { padding: Padding::Experts(1), path: None }
    }
}

/// Dispatches among the members of a group, each of which owns as many consecutive experts. Dropping it waits for what
/// runs.
#[derive(Debug)]
pub struct Dispatcher {
    shape: Shape,
    path: Path,
    ways: Ways,
    worker: Worker,
}

/// One routing: the way there and the way back. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Routing>);

#[derive(Debug)]
struct Routing {
    shape: Shape,
    done: Arc<Completion>,
    found: OnceLock<(Routes, Option<Hops>)>,
}

impl Handle {
    /// Waits for the counts.
    ///
    /// # Errors
    /// The reason why the count exchange failed.
    pub fn wait(&self) -> Result<&Routes> {
        Ok(&self.get()?.0)
    }

    fn get(&self) -> Result<&(Routes, Option<Hops>)> {
        self.0.done.wait()?;
        Ok(self.0.found.get().expect("set before the good end"))
    }
}

impl Dispatcher {
    /// A dispatcher over `experts` experts: member `m` of `group` owns the `m`-th of as many equal runs as there are
    /// members. All members make it together.
    ///
    /// # Errors
    /// When the experts cannot be shared out evenly, a padding is 0, or no thread can be started.
    pub fn new(group: &Group, experts: usize, options: Options) -> Result<Self> {
        let members = group.len();
        let (Padding::Experts(rows) | Padding::Blocks(rows)) = options.padding;
        if experts == 0 || !experts.is_multiple_of(members) || rows == 0 {
            return Err(Error::Invalid(format!(
                "{experts} experts over {members} members, padded to {rows} rows"
            )));
        }
        let (me, owned) = (group.member(), experts / members);
        let shape = Shape { members, me, owned, padding: options.padding };
        let nodes: Vec<u32> = group.nodes().iter().map(|node| node.0).collect();
        let places = Places::new(&nodes);
        let several = places.by_node.len() > 1 && places.by_node.len() < members;
        let path = options.path.unwrap_or(if several { Path::PerNode } else { Path::Direct });
        let node = match path {
            Path::Direct => None,
            Path::PerNode => {
                let locals = &places.by_node[places.node_of[me]];
                Some((group.subgroup(locals)?, places))
            }
        };
        // A group of its own: jobs begin on another thread, and the order of operations inside a group is all.
        let everybody: Vec<usize> = (0..members).collect();
        let ways = Ways { all: group.subgroup(&everybody)?, node };
        let worker = Worker::start(&format!("dispatch-{}", group.members()[me]))?;
        Ok(Self { shape, path, ways, worker })
    }

    /// The path that tokens take.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Starts the exchange of counts for `chosen`, the expert of each choice, `[tokens, slots]`, flat.
    ///
    /// # Errors
    /// When the choices are no whole number of tokens. A choice beyond the experts is an error of `wait`.
    pub fn start_route(&self, chosen: Vec<u32>, slots: usize) -> Result<Handle> {
        let known = u32::try_from(chosen.len()).is_ok();
        if slots == 0 || !chosen.len().is_multiple_of(slots) || !known {
            let choices = chosen.len();
            return Err(Error::Invalid(format!("{choices} choices of {slots} experts each")));
        }
        let done = Completion::keeping(Box::new(()));
        let routing =
            Routing { shape: self.shape, done: Arc::clone(&done), found: OnceLock::new() };
        let routing = Arc::new(routing);
        let (shape, ways, target) = (self.shape, self.ways.clone(), Arc::clone(&routing));
        let again = self.ways.clone();
        let begin = move |_: &Staging| {
            let counts = ways.start_counts(shape, &chosen)?;
            Ok((chosen, counts))
        };
        let finish = move |(chosen, counts): (Vec<u32>, Counts), _: &Staging| {
            let routes = Routes::new(shape, &chosen, slots, counts.wait()?);
            let hops = again.exchange_lists(&routes)?;
            target.found.set((routes, hops)).expect("set only here");
            Ok(())
        };
        // Lists of forwarders are exchanged in several rounds, for which peers must be at the same place.
        let after = if self.path == Path::Direct { After::Nothing } else { After::All };
        self.worker.push(job(after, Ending(done), begin, finish));
        Ok(Handle(routing))
    }

    /// Starts `tokens`, `[tokens, row_bytes]`, on their way to the experts that they chose. `make` gives the buffer for
    /// the rows that arrive here, `[routes.rows(), row_bytes]`, with any contents. Both come back from `wait`.
    ///
    /// # Errors
    /// When the handle is another dispatcher's. All else is an error of `wait`.
    pub fn start_dispatch<B: Readable, O: Writable>(
        &self,
        handle: &Handle,
        tokens: B,
        row_bytes: usize,
        make: impl FnOnce(&Routes) -> O + Send + 'static,
    ) -> Result<Pending<(B, O)>> {
        if self.path == Path::Direct {
            return self.start_direct(handle, (tokens, Input::Tokens), row_bytes, make);
        }
        let begin = move |way: &Way, staging: &Staging| {
            let (routes, hops) = way.routes_and_hops()?;
            let output = prepare(routes, (tokens.as_ref(), Input::Tokens), row_bytes, make)?;
            let hop = way.ways.start_hop(routes, hops, (tokens.as_ref(), row_bytes), staging)?;
            Ok((tokens, output, hop))
        };
        let finish = move |way: &Way, (tokens, output, hop): (B, O, Hop), staging: &Staging| {
            let (packed, came) = hop.wait()?;
            staging.give_back(packed);
            let inputs = (tokens.as_ref(), &came[..]);
            let output =
                way.ways.fan_out(way.routes_and_hops()?, inputs, (output, row_bytes), staging)?;
            staging.give_back(came);
            Ok((tokens, output))
        };
        self.start(handle, begin, finish)
    }

    /// Starts bytes of each choice, `[tokens, slots, row_bytes]` (routing weights, fp32), on the way that the choice's
    /// row takes. As [`Self::start_dispatch`] otherwise.
    ///
    /// # Errors
    /// When the handle is another dispatcher's. All else is an error of `wait`.
    pub fn start_dispatch_choices<B: Readable, O: Writable>(
        &self,
        handle: &Handle,
        choices: B,
        row_bytes: usize,
        make: impl FnOnce(&Routes) -> O + Send + 'static,
    ) -> Result<Pending<(B, O)>> {
        self.start_direct(handle, (choices, Input::Choices), row_bytes, make)
    }

    fn start_direct<B: Readable, O: Writable>(
        &self,
        handle: &Handle,
        (input, rows): (B, Input),
        row_bytes: usize,
        make: impl FnOnce(&Routes) -> O + Send + 'static,
    ) -> Result<Pending<(B, O)>> {
        let begin = move |way: &Way, staging: &Staging| {
            let routes = way.routes()?;
            let from = (input.as_ref(), rows);
            let output = prepare(routes, from, row_bytes, make)?;
            let moving = way.ways.start_direct(routes, from, (output, row_bytes), staging)?;
            Ok((input, moving))
        };
        let finish = |_: &Way, (input, moving): (B, Pending<(Vec<u8>, O)>), staging: &Staging| {
            let (packed, output) = moving.wait()?;
            staging.give_back(packed);
            Ok((input, output))
        };
        self.start(handle, begin, finish)
    }

    /// Starts rows, laid out as they were received (`[routes.rows(), row_bytes]`; padding is ignored), on their way
    /// back: each to its choice in `output`, `[tokens, slots, row_bytes]`. Both buffers come back from `wait`.
    ///
    /// # Errors
    /// When the handle is another dispatcher's. All else is an error of `wait`.
    pub fn start_combine<B: Readable, O: Writable>(
        &self,
        handle: &Handle,
        rows: B,
        row_bytes: usize,
        mut output: O,
    ) -> Result<Pending<(B, O)>> {
        let begin = move |way: &Way, staging: &Staging| {
            let routes = way.routes()?;
            check("rows to combine", rows.as_ref().len(), routes.rows(), row_bytes)?;
            let choices = Input::Choices.rows(routes);
            check("the output of combine", output.as_mut().len(), choices, row_bytes)?;
            let home = way.ways.start_home(routes, (rows, row_bytes), output.as_mut(), staging)?;
            Ok((output, home))
        };
        let finish =
            move |way: &Way, (mut output, home): (O, Pending<(B, Vec<u8>)>), staging: &Staging| {
                let (rows, came) = home.wait()?;
                way.ways.scatter(way.routes()?, &came, output.as_mut(), row_bytes);
                staging.give_back(came);
                Ok((rows, output))
            };
        self.start(handle, begin, finish)
    }

    /// Hands a movement to the threads: what begins it, and what waits for its end.
    fn start<S: Send + 'static, T: Any + Send>(
        &self,
        handle: &Handle,
        begin: impl FnOnce(&Way, &Staging) -> Result<S> + Send + 'static,
        finish: impl FnOnce(&Way, S, &Staging) -> Result<T> + Send + 'static,
    ) -> Result<Pending<T>> {
        if handle.0.shape != self.shape {
            return Err(Error::Invalid("a handle of another dispatcher".into()));
        }
        let done = Completion::keeping(Box::new(()));
        let way = Arc::new(Way { handle: handle.clone(), ways: self.ways.clone() });
        let again = Arc::clone(&way);
        let begin = move |staging: &Staging| begin(&way, staging);
        let finish = move |begun, staging: &Staging| finish(&again, begun, staging);
        let after = After::End(Arc::clone(&handle.0.done));
        self.worker.push(job(after, Ending(Arc::clone(&done)), begin, finish));
        Ok(Pending::new(done))
    }
}

/// What both halves of a movement know.
struct Way {
    handle: Handle,
    ways: Ways,
}

impl Way {
    fn routes(&self) -> Result<&Routes> {
        self.handle.wait()
    }

    fn routes_and_hops(&self) -> Result<(&Routes, &Hops)> {
        let (routes, hops) = self.handle.get()?;
        Ok((routes, hops.as_ref().expect("made on this path")))
    }
}

/// The buffer for arriving rows, checked, its padding zeroed.
fn prepare<O: AsMut<[u8]>>(
    routes: &Routes,
    (input, rows): (&[u8], Input),
    row_bytes: usize,
    make: impl FnOnce(&Routes) -> O,
) -> Result<O> {
    check("the input of dispatch", input.len(), rows.rows(routes), row_bytes)?;
    let mut output = make(routes);
    check("the output of dispatch", output.as_mut().len(), routes.rows(), row_bytes)?;
    routes.zero_padding(output.as_mut(), row_bytes);
    Ok(output)
}
