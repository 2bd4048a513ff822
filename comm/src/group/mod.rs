//! Collectives over any subset of ranks.
//!
//! All members call the same operations of a group in the same order; several may be in flight, and different groups
//! are independent. Each operation comes as a call that waits and as `start_...`, which takes the buffer and gives it
//! back from [`Pending::wait`]. How an operation is carried out is the table's choice.

mod exchange;
pub(crate) mod launch;
pub(crate) mod streamed;

use crate::communicator::Inner;
use crate::completion::Pending;
use crate::dtype::Element;
use crate::engine::seats::Seat;
use crate::error::{Error, Result};
use crate::ids::{Node, Rank};
use crate::memory::Memory;
use crate::schedule::even_slices;
use crate::table::{Algorithm, Table};
use crate::wire::header::Kind;
use bytemuck::Pod;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Some ranks, in a fixed order, that run collectives together. Cheap to clone; clones count operations together.
#[derive(Debug, Clone)]
pub struct Group {
    inner: Arc<Inner>,
    members: Arc<[Rank]>,
    me: usize,
    id: u64,
    sequence: Arc<Mutex<u64>>,
    /// One sequence per ordered pair, for send and receive.
    pairs: Arc<Mutex<std::collections::HashMap<(usize, usize), u64>>>,
    shares: Arc<AtomicU64>,
    /// Its sure place in the engine; one member alone needs none.
    seat: Option<Arc<Seat>>,
    timeout: Duration,
    canonical: bool,
    chunk_bytes: usize,
    table: Arc<Table>,
}

impl Group {
    pub(crate) fn new(inner: Arc<Inner>, members: &[Rank]) -> Result<Self> {
        let own = inner.shared.rank;
        let me = members.iter().position(|rank| *rank == own).ok_or_else(|| {
            Error::Invalid(format!("rank {own} is not a member of the group {members:?}"))
        })?;
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let last = sorted.last().expect("this rank at least");
        if sorted.len() != members.len() || last.index() >= inner.shared.ranks {
            return Err(Error::Invalid(format!("a rank twice or none such in {members:?}")));
        }
        let nth = {
            let mut groups = inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
            let count = groups.entry(members.to_vec()).or_insert(0);
            *count += 1;
            *count
        };
        let mut hasher = blake3::Hasher::new();
        members.iter().for_each(|rank| {
            hasher.update(&rank.0.to_le_bytes());
        });
        let digest = hasher.update(&nth.to_le_bytes()).finalize();
        let id = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("8 of 32 bytes"));
        let seat = (members.len() > 1).then(|| inner.seats.take(id)).transpose()?;
        Ok(Self {
            seat: seat.map(Arc::new),
            members: members.into(),
            me,
            id,
            sequence: Arc::default(),
            pairs: Arc::default(),
            shares: Arc::default(),
            timeout: inner.options.operation_timeout,
            canonical: false,
            chunk_bytes: inner.options.chunk_bytes,
            table: Arc::new(inner.options.table.clone()),
            inner,
        })
    }

    /// This rank's index among the members.
    pub fn member(&self) -> usize {
        self.me
    }

    /// The members, in order.
    pub fn members(&self) -> &[Rank] {
        &self.members
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never: this rank is a member.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Its number: equal on all members, different from all other groups of the communicator.
    pub fn number(&self) -> u64 {
        self.id
    }

    /// The node of each member.
    pub fn nodes(&self) -> Vec<Node> {
        self.members.iter().map(|rank| self.inner.nodes[rank.index()]).collect()
    }

    /// Some of its members, in this order, as a group of their own with the same settings. Every one of them makes it.
    ///
    /// # Errors
    /// When this rank is not among them, or a member is named twice or does not exist.
    pub fn subgroup(&self, members: &[usize]) -> Result<Self> {
        let rank = |&member: &usize| self.members.get(member).copied();
        let ranks: Option<Vec<Rank>> = members.iter().map(rank).collect();
        let ranks = ranks.ok_or_else(|| {
            Error::Invalid(format!("members {members:?} of a group of {}", self.len()))
        })?;
        let group = Self::new(Arc::clone(&self.inner), &ranks)?;
        let (timeout, canonical, chunk_bytes) = (self.timeout, self.canonical, self.chunk_bytes);
        Ok(Self { timeout, canonical, chunk_bytes, table: Arc::clone(&self.table), ..group })
    }

    /// The same group whose further operations have this deadline.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same group whose sums add as the balanced binary tree over its members (the canonical order).
    #[must_use]
    pub fn with_canonical(&self, canonical: bool) -> Self {
        Self { canonical, ..self.clone() }
    }

    /// The same group with pieces of at most this many bytes. No result depends on it.
    #[must_use]
    pub fn with_chunk_bytes(&self, chunk_bytes: usize) -> Self {
        Self { chunk_bytes, ..self.clone() }
    }

    /// The same group that always uses this algorithm for these operations.
    #[must_use]
    pub fn with_algorithm(&self, kind: Kind, algorithm: Algorithm) -> Self {
        let mut table = (*self.table).clone();
        table.always(kind, algorithm);
        Self { table: Arc::new(table), ..self.clone() }
    }

    /// The cause when the communicator has failed.
    ///
    /// # Errors
    /// That cause.
    pub fn check(&self) -> Result<()> {
        self.inner.shared.check()
    }

    /// The counters of this rank's communicator.
    pub fn counters(&self) -> &crate::shared::Counters {
        &self.inner.shared.counters
    }

    /// The deadline of this group's operations.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Fails the communicator of all ranks with this cause, seen by a layer above.
    pub fn fail(&self, cause: Error) {
        self.inner.shared.fail(cause);
    }

    /// Returns when every member has called it.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn barrier(&self) -> Result<()> {
        let mut count = [1i64];
        self.reduction(Kind::Barrier, &mut count, 0)?.wait()?;
        let members = i64::try_from(self.len()).expect("few");
        assert_eq!(count, [members], "a barrier counts its members");
        Ok(())
    }

    /// The root's buffer to all members.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn broadcast<T: Pod>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        let memory = Memory::of(buffer);
        self.launch_bytes(Kind::Broadcast, memory, memory.len(), root, ())?.wait()
    }

    /// Every member's `mine`, in member order, in `all` (`mine.len() * members` elements).
    ///
    /// # Errors
    /// When the lengths do not fit or the communicator fails.
    pub fn all_gather<T: Pod>(&self, mine: &[T], all: &mut [T]) -> Result<()> {
        if all.len() != mine.len() * self.len() {
            let (have, want) = (all.len(), mine.len() * self.len());
            return Err(Error::Invalid(format!(
                "all-gather into {have} instead of {want} elements"
            )));
        }
        all[self.me * mine.len()..][..mine.len()].copy_from_slice(mine);
        let bytes = size_of_val(mine);
        let slices: Vec<Range<usize>> =
            (0..self.len()).map(|m| m * bytes..(m + 1) * bytes).collect();
        let memory = Memory::of(all);
        self.gather(memory, &slices, ())?.wait()
    }

    /// The sum of all members' buffers, on all members.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn all_reduce<T: Element>(&self, buffer: &mut [T]) -> Result<()> {
        self.reduction(Kind::AllReduce, buffer, 0)?.wait()
    }

    /// As [`Self::all_reduce`], without waiting.
    ///
    /// # Errors
    /// When the request is refused; failures while it runs come from `wait`.
    pub fn start_all_reduce<T, B>(&self, buffer: B) -> Result<Pending<B>>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let mut buffer = Box::new(buffer);
        let slice = (*buffer).as_mut();
        let (memory, elements) = (Memory::of(slice), slice.len());
        let request = self.request(Kind::AllReduce, T::ARITHMETIC, elements, 0);
        let launched = self.launch_sum(&request, memory, buffer)?;
        Ok(Pending::new(launched.0))
    }

    /// The sum of all members' buffers, on the root; the other buffers are left with partial sums.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn reduce<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.reduction(Kind::Reduce, buffer, root)?.wait()
    }

    /// The sum of all members' buffers, each member's even slice of it in place; the rest is left with partial sums.
    /// Returns the slice: see [`even_slices`].
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn reduce_scatter<T: Element>(&self, buffer: &mut [T]) -> Result<Range<usize>> {
        let slice = even_slices(buffer.len(), self.len())[self.me].clone();
        self.reduction(Kind::ReduceScatter, buffer, 0)?.wait()?;
        Ok(slice)
    }

    /// One message to a member, which must receive it. Messages between two members keep their order.
    ///
    /// # Errors
    /// When the communicator fails or the lengths differ.
    pub fn send<T: Pod>(&self, buffer: &[T], to: usize) -> Result<()> {
        let memory = Memory::of_const(buffer);
        self.point_to_point((self.me, to), memory, ())?.wait()
    }

    /// One message from a member.
    ///
    /// # Errors
    /// When the communicator fails or the lengths differ.
    pub fn receive<T: Pod>(&self, buffer: &mut [T], from: usize) -> Result<()> {
        self.point_to_point((from, self.me), Memory::of(buffer), ())?.wait()
    }

    /// As [`Self::send`], without waiting.
    ///
    /// # Errors
    /// When the request is refused.
    pub fn start_send<T: Pod, B>(&self, buffer: B, to: usize) -> Result<Pending<B>>
    where
        B: AsRef<[T]> + Send + 'static,
    {
        let buffer = Box::new(buffer);
        let memory = Memory::of_const((*buffer).as_ref());
        Ok(Pending::new(self.point_to_point((self.me, to), memory, buffer)?.0))
    }

    /// As [`Self::receive`], without waiting.
    ///
    /// # Errors
    /// When the request is refused.
    pub fn start_receive<T: Pod, B>(&self, buffer: B, from: usize) -> Result<Pending<B>>
    where
        B: AsMut<[T]> + Send + 'static,
    {
        let mut buffer = Box::new(buffer);
        let memory = Memory::of((*buffer).as_mut());
        Ok(Pending::new(self.point_to_point((from, self.me), memory, buffer)?.0))
    }
}
