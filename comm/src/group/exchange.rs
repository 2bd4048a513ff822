//! All-to-all-v: every member has something for every other, of any size.

use super::Group;
use crate::completion::Pending;
use crate::error::{Error, Result};
use crate::memory::Memory;
use bytemuck::Pod;
use std::any::Any;
use std::ops::Range;

impl Group {
    /// Part `m` of `input` (of `input_counts[m]` elements) to member `m`; what member `m` sends here becomes part `m`
    /// of `output`. Counts may be zero; both sides must agree on them, which is checked.
    ///
    /// # Errors
    /// When counts and lengths do not fit or the communicator fails.
    pub fn all_to_all<T: Pod>(
        &self,
        input: (&[T], &[usize]),
        output: (&mut [T], &[usize]),
    ) -> Result<()> {
        let element = size_of::<T>();
        let cut = |counts: &[usize], len: usize| -> Result<Vec<Vec<Range<usize>>>> {
            if counts.len() != self.len() || counts.iter().sum::<usize>() != len {
                return Err(Error::Invalid(format!("all-to-all of {len} elements as {counts:?}")));
            }
            let mut at = 0;
            let one = |count: &usize| {
                let start = at;
                at += count * element;
                std::iter::once(start..at).collect()
            };
            Ok(counts.iter().map(one).collect())
        };
        let (sends, receives) = (cut(input.1, input.0.len())?, cut(output.1, output.0.len())?);
        let (from, to) = (bytemuck::cast_slice(input.0), bytemuck::cast_slice_mut(output.0));
        self.keep_own((from, &sends[self.me]), (to, &receives[self.me]))?;
        let memories = (Memory::of_const(from), Memory::of(to));
        self.exchange(memories, (&sends, &receives), ())?.wait()
    }

    /// All-to-all-v of byte ranges, without waiting: the ranges `sends[m]` of `input`, one after the other, to member
    /// `m`, which writes them into its ranges `receives[this member]` of `output`. Ranges may be empty and in any
    /// order; both sides must list equal lengths in the same order (their sums are checked). Bytes of `output` outside
    /// all ranges stay as they are. Nothing is copied besides the ranges themselves: data can be received right where
    /// it is wanted. Both buffers come back from [`Pending::wait`].
    ///
    /// # Errors
    /// When ranges and lengths do not fit; failures while it runs come from `wait`.
    pub fn start_all_to_all<I, O>(
        &self,
        (input, sends): (I, &[Vec<Range<usize>>]),
        (output, receives): (O, &[Vec<Range<usize>>]),
    ) -> Result<Pending<(I, O)>>
    where
        I: AsRef<[u8]> + Any + Send,
        O: AsMut<[u8]> + Any + Send,
    {
        let mut buffers = Box::new((input, output));
        let (from, to) = (buffers.0.as_ref(), buffers.1.as_mut());
        for (ranges, len) in [(sends, from.len()), (receives, to.len())] {
            let last = ranges.iter().flatten().map(|range| range.end).max().unwrap_or(0);
            let reversed = ranges.iter().flatten().any(|range| range.start > range.end);
            if ranges.len() != self.len() || last > len || reversed {
                let (lists, members) = (ranges.len(), self.len());
                return Err(Error::Invalid(format!(
                    "all-to-all among {members} members: {lists} lists of ranges, up to byte {last} of {len}"
                )));
            }
        }
        self.keep_own((from, &sends[self.me]), (to, &receives[self.me]))?;
        let memories = (Memory::of_const(from), Memory::of(to));
        Ok(Pending::new(self.exchange(memories, (sends, receives), buffers)?.0))
    }

    /// Copies what this member has for itself.
    fn keep_own(
        &self,
        (input, sends): (&[u8], &[Range<usize>]),
        (output, receives): (&mut [u8], &[Range<usize>]),
    ) -> Result<()> {
        let lengths = |ranges: &[Range<usize>]| ranges.iter().map(Range::len).collect::<Vec<_>>();
        if lengths(sends) != lengths(receives) {
            return Err(Error::Invalid("a member's counts for itself differ".into()));
        }
        for (from, to) in sends.iter().zip(receives) {
            output[to.clone()].copy_from_slice(&input[from.clone()]);
        }
        self.touched(2 * sends.iter().map(Range::len).sum::<usize>());
        Ok(())
    }
}
