//! Which algorithm for which operation: a table of (kind, size, members), printed for people and overridden by them.
//!
//! The default rows come from the cost model of docs/collectives.md: whole-buffer exchange while latency counts,
//! halving where the number of members allows it (it adds in canonical order at the ring's byte count), the ring
//! elsewhere, and the double tree from 64 members on, where the ring's latency outweighs its smaller volume.

use crate::error::{Error, Result};
use crate::wire::header::Kind;
use std::fmt;
use std::str::FromStr;

/// How an operation is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "schedule/ has one module per algorithm")]
pub enum Algorithm {
    Direct = 0,
    Ring = 1,
    Halving = 2,
    Doubling = 3,
    DoubleTree = 4,
    Tree = 5,
    Chain = 6,
}

impl Algorithm {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Direct, "direct"),
        (Self::Ring, "ring"),
        (Self::Halving, "halving"),
        (Self::Doubling, "doubling"),
        (Self::DoubleTree, "double-tree"),
        (Self::Tree, "tree"),
        (Self::Chain, "chain"),
    ];

    /// Its name in tables and flags.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(algorithm, _)| *algorithm == self).expect("all are listed").1
    }

    /// Whether its order of addition is the balanced tree over members.
    pub fn is_canonical(self) -> bool {
        matches!(self, Self::Halving | Self::Doubling)
    }

    /// Whether it can carry out `kind` over this many members.
    pub fn suits(self, kind: Kind, members: usize) -> bool {
        match (kind, self) {
            (Kind::Barrier | Kind::AllReduce, Self::Doubling) => true,
            (Kind::AllReduce, Self::Ring | Self::DoubleTree) => true,
            (Kind::ReduceScatter | Kind::AllGather, Self::Ring) => true,
            (Kind::AllReduce | Kind::ReduceScatter | Kind::AllGather, Self::Halving) => {
                members.is_power_of_two()
            }
            (Kind::Reduce, Self::Tree) | (Kind::Broadcast, Self::Tree | Self::Chain) => true,
            (Kind::AllToAll | Kind::PointToPoint, Self::Direct) => true,
            _ => false,
        }
    }

    /// Most members that send to one member at the same time: landing slots are shared out among them.
    pub(crate) fn fan_in(self, kind: Kind, members: usize) -> usize {
        let log = members.next_power_of_two().ilog2() as usize + 1;
        match self {
            Self::Direct if kind == Kind::PointToPoint => 1,
            Self::Direct => members,
            Self::Ring | Self::Chain => 2,
            Self::Halving | Self::Doubling => log,
            Self::DoubleTree => 6,
            Self::Tree => 3,
        }
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = || Self::ALL.map(|(_, name)| name).join(", ");
        let found =
            Self::ALL.iter().find(|(_, name)| *name == text).map(|(algorithm, _)| *algorithm);
        found.ok_or_else(|| Error::Invalid(format!("no algorithm {text:?}: choose {}", known())))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One row: the first that matches is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The operation.
    pub kind: Kind,
    /// Up to this many bytes.
    pub max_bytes: u64,
    /// From this many members on.
    pub min_members: usize,
    /// Only for powers of two.
    pub power_of_two: bool,
    /// The choice.
    pub algorithm: Algorithm,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.max_bytes < u64::MAX {
            write!(f, ",<={}", self.max_bytes)?;
        }
        if self.min_members > 1 {
            write!(f, ",>={}", self.min_members)?;
        }
        write!(f, "={}", self.algorithm)
    }
}

/// `OPERATION[,<=BYTES][,>=MEMBERS]=ALGORITHM`, e.g. `all-reduce,<=65536,>=4=ring`.
impl FromStr for Row {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| {
            let form = "OPERATION[,<=BYTES][,>=RANKS]=ALGORITHM";
            Error::Invalid(format!("the row {text:?} {what}: write {form}"))
        };
        let (when, algorithm) = text.rsplit_once('=').ok_or_else(|| bad("has no algorithm"))?;
        let mut words = when.split(',');
        let name = words.next().expect("split gives one at least");
        let kind = (1..=8)
            .filter_map(Kind::from_wire)
            .find(|kind| kind.name() == name)
            .ok_or_else(|| bad("has an unknown operation"))?;
        let (mut max_bytes, mut min_members) = (u64::MAX, 1);
        for word in words {
            let number = |digits: &str| digits.parse::<u64>().map_err(|_| bad("has a bad number"));
            if let Some(digits) = word.strip_prefix("<=") {
                max_bytes = number(digits)?;
            } else if let Some(digits) = word.strip_prefix(">=") {
                min_members = usize::try_from(number(digits)?).unwrap_or(usize::MAX);
            } else {
                return Err(bad("has an unknown condition"));
            }
        }
        let algorithm: Algorithm = algorithm.parse()?;
        let power_of_two = algorithm == Algorithm::Halving;
        if !(1..=64).any(|members| algorithm.suits(kind, members)) {
            return Err(bad("names an algorithm that cannot do this operation"));
        }
        Ok(Self { kind, max_bytes, min_members, power_of_two, algorithm })
    }
}

/// The rows, first match first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

/// Whole-buffer exchange up to here: more messages cost more than more bytes.
const SMALL: u64 = 64 << 10;

impl Default for Table {
    fn default() -> Self {
        let row = |kind, max_bytes, min_members, power_of_two, algorithm| Row {
            kind,
            max_bytes,
            min_members,
            power_of_two,
            algorithm,
        };
        let any = u64::MAX;
        Self {
            rows: vec![
                row(Kind::Barrier, any, 1, false, Algorithm::Doubling),
                row(Kind::AllReduce, SMALL, 1, false, Algorithm::Doubling),
                row(Kind::AllReduce, any, 1, true, Algorithm::Halving),
                row(Kind::AllReduce, any, 64, false, Algorithm::DoubleTree),
                row(Kind::AllReduce, any, 1, false, Algorithm::Ring),
                row(Kind::ReduceScatter, any, 1, true, Algorithm::Halving),
                row(Kind::ReduceScatter, any, 1, false, Algorithm::Ring),
                row(Kind::AllGather, any, 1, true, Algorithm::Halving),
                row(Kind::AllGather, any, 1, false, Algorithm::Ring),
                row(Kind::Reduce, any, 1, false, Algorithm::Tree),
                row(Kind::Broadcast, SMALL, 1, false, Algorithm::Tree),
                row(Kind::Broadcast, any, 1, false, Algorithm::Chain),
                row(Kind::AllToAll, any, 1, false, Algorithm::Direct),
                row(Kind::PointToPoint, any, 1, false, Algorithm::Direct),
            ],
        }
    }
}

impl Table {
    /// Puts a row in front of all others.
    pub fn prefer(&mut self, row: Row) {
        self.rows.insert(0, row);
    }

    /// Takes one algorithm for an operation whatever its size.
    pub fn always(&mut self, kind: Kind, algorithm: Algorithm) {
        let max_bytes = u64::MAX;
        self.prefer(Row { kind, max_bytes, min_members: 1, power_of_two: false, algorithm });
    }

    /// The choice for an operation.
    ///
    /// # Errors
    /// When the matching row names an algorithm that cannot do it.
    pub fn choose(
        &self,
        kind: Kind,
        bytes: u64,
        members: usize,
        canonical: bool,
    ) -> Result<Algorithm> {
        let matches = |row: &&Row| {
            row.kind == kind
                && bytes <= row.max_bytes
                && members >= row.min_members
                && (!row.power_of_two || members.is_power_of_two())
                && (!canonical || row.algorithm.is_canonical())
        };
        let algorithm = self.rows.iter().find(matches).map(|row| row.algorithm);
        match algorithm {
            Some(algorithm) if algorithm.suits(kind, members) => Ok(algorithm),
            Some(algorithm) => Err(Error::Invalid(format!(
                "the table says {algorithm} for {} over {members} ranks, which it cannot do",
                kind.name()
            ))),
            None => Err(Error::Invalid(format!(
                "no canonical algorithm for {} over {members} ranks: canonical reduction needs a power of two",
                kind.name()
            ))),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<16}{:>16}{:>14}  algorithm", "operation", "up to bytes", "members")?;
        for row in &self.rows {
            let bytes = match row.max_bytes {
                u64::MAX => "any".to_string(),
                bytes => bytes.to_string(),
            };
            let power = if row.power_of_two { "2^k, " } else { "" };
            let members = format!("{power}>= {}", row.min_members);
            writeln!(f, "{:<16}{bytes:>16}{members:>14}  {}", row.kind.name(), row.algorithm)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_the_default_table_can_be_carried_out() {
        let table = Table::default();
        let kinds = (1..=8).filter_map(Kind::from_wire);
        for kind in kinds {
            for members in 1..=130 {
                for bytes in [0, 1, SMALL, SMALL + 1, u64::MAX] {
                    table.choose(kind, bytes, members, false).expect("has a row that suits");
                }
            }
        }
    }

    #[test]
    fn canonical_means_powers_of_two_for_large_buffers() {
        let table = Table::default();
        let choose = |members| table.choose(Kind::AllReduce, 1 << 20, members, true);
        assert_eq!(choose(8).expect("power of two"), Algorithm::Halving);
        assert!(choose(6).is_err());
    }

    #[test]
    fn overrides_win_and_names_round_trip() {
        let mut table = Table::default();
        table.always(Kind::AllReduce, "ring".parse().expect("known"));
        let chosen = table.choose(Kind::AllReduce, 1, 8, false).expect("suits");
        assert_eq!(chosen, Algorithm::Ring);
        assert!("rign".parse::<Algorithm>().is_err());
        assert!(table.to_string().contains("double-tree"));
    }

    #[test]
    fn rows_are_read_as_they_are_written() {
        for text in ["all-reduce=ring", "all-reduce,<=65536,>=4=double-tree", "broadcast=chain"] {
            assert_eq!(text.parse::<Row>().expect("a row").to_string(), text);
        }
        let mut table = Table::default();
        table.prefer("all-reduce,>=8=halving".parse().expect("a row"));
        let choose = |members| table.choose(Kind::AllReduce, 1 << 20, members, false).expect("one");
        assert_eq!((choose(8), choose(12)), (Algorithm::Halving, Algorithm::Ring));
        for bad in ["", "all-reduce", "sum=ring", "all-reduce,<=x=ring", "all-reduce,64=ring"] {
            assert!(bad.parse::<Row>().is_err(), "{bad}");
        }
        assert!("all-to-all=ring".parse::<Row>().is_err());
    }
}
