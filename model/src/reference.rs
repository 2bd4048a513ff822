//! Slow twins in fp64, written from the formulas.
