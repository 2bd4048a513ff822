//! The gate's selection by counting: what stands above a group or an expert decides, nothing is sorted or masked.

use lampyris_plan::model_spec::Moe;

/// How many of `values` stand before `values[at]`: larger ones, and equal ones with a lower index.
fn before<V: PartialOrd>(values: &[V], at: usize) -> usize {
    let ahead = |i: usize| values[i] > values[at] || (values[i] == values[at] && i < at);
    (0..values.len()).filter(|&i| ahead(i)).count()
}

/// Experts of one token, best first; scores and bias `[E]`.
pub(crate) fn choose(scores: &[f64], bias: &[f64], moe: &Moe) -> Vec<usize> {
    let biased: Vec<f64> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    let size = moe.experts / moe.groups;
    // The score of a group: the best pair of its experts.
    let best_pair = |group: &[f64]| {
        let pairs = (0..size).flat_map(|i| (0..i).map(move |j| (i, j)));
        pairs.map(|(i, j)| group[i] + group[j]).fold(f64::NEG_INFINITY, f64::max)
    };
    let groups: Vec<f64> = biased.chunks_exact(size).map(best_pair).collect();
    let allowed = |expert: usize| before(&groups, expert / size) < moe.groups_per_token;
    let candidates: Vec<usize> = (0..moe.experts).filter(|&e| allowed(e)).collect();
    let values: Vec<f64> = candidates.iter().map(|&e| biased[e]).collect();
    let place = |i: usize| before(&values, i);
    let mut chosen = vec![0; moe.experts_per_token];
    for (i, &expert) in candidates.iter().enumerate() {
        if let Some(slot) = chosen.get_mut(place(i)) {
            *slot = expert;
        }
    }
    chosen
}
