//! The network of DeepSeek-V3 (2412.19437, section 2) and of LLaMA in fp64: one sequence at a time, one head at a time,
//! every expert over all tokens. Weights go by their Hugging Face names.

use super::{gate, rotary};
use lampyris_plan::model_spec::{Attention, ModelSpec, Moe};
use lampyris_torch::dim;
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// The low-rank norms of MLA use this epsilon whatever the block norms use (as the released code does).
const LOW_RANK_EPS: f64 = 1e-6;

/// Expert choices by (sequence, decoder layer), flat `[S * K]`.
pub(super) type Choices = BTreeMap<(usize, usize), Vec<usize>>;

/// A network in fp64.
pub(super) struct Twin<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) weights: &'a BTreeMap<String, Tensor>,
    pub(super) biases: &'a [Vec<f32>],
    /// Choices to keep to, instead of the gate's own.
    pub(super) fixed: Option<&'a Choices>,
}

/// What a batch gives.
pub(super) struct Outcome {
    /// Summed loss of counted targets per prediction depth; differentiable.
    pub(super) loss_sums: Vec<Tensor>,
    /// Summed balance losses; differentiable.
    pub(super) balance_sum: Tensor,
    /// What the gates chose.
    pub(super) choices: Choices,
    /// Normed states that the head reads, by depth, one `[S, d]` per sequence.
    pub(super) states: Vec<Vec<Tensor>>,
}

/// What one sequence collects on its way.
struct Notes {
    sequence: usize,
    choices: RefCell<Choices>,
    balance: RefCell<Tensor>,
}

fn scalar() -> Tensor {
    Tensor::zeros([] as [i64; 0], (Kind::Double, Device::Cpu))
}

fn rms(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let mean = x.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
    x / (mean + eps).sqrt() * weight
}

/// SwiGLU feed-forward.
fn feed_forward(x: &Tensor, gate: &Tensor, up: &Tensor, down: &Tensor) -> Tensor {
    let gate = x.matmul(&gate.tr());
    (&gate * gate.sigmoid() * x.matmul(&up.tr())).matmul(&down.tr())
}

impl Twin<'_> {
    /// Windows of `length + depths` tokens; `valid(k, sequence, i)` says whether the target at depth k counts.
    pub(super) fn run(
        &self,
        windows: &[Vec<i64>],
        length: usize,
        valid: &dyn Fn(usize, usize, usize) -> bool,
    ) -> Outcome {
        let depths = 1 + self.spec.mtp_layers;
        let mut out = Outcome {
            loss_sums: (0..depths).map(|_| scalar()).collect(),
            balance_sum: scalar(),
            choices: Choices::new(),
            states: (0..depths).map(|_| Vec::new()).collect(),
        };
        let head = if self.spec.tie_embeddings { "model.embed_tokens" } else { "lm_head" };
        for (sequence, tokens) in windows.iter().enumerate() {
            let notes = Notes {
                sequence,
                choices: RefCell::new(Choices::new()),
                balance: RefCell::new(scalar()),
            };
            for (k, state) in self.states(tokens, length, &notes).into_iter().enumerate() {
                let log_p = state.matmul(&self.weight(head).tr()).log_softmax(-1, None);
                for i in (0..length).filter(|&i| valid(k, sequence, i)) {
                    let target = tokens[i + k + 1];
                    out.loss_sums[k] = &out.loss_sums[k] - log_p.get(dim(i)).get(target);
                }
                out.states[k].push(state);
            }
            out.choices.append(&mut notes.choices.borrow_mut());
            out.balance_sum = &out.balance_sum + &*notes.balance.borrow();
        }
        out
    }

    fn weight(&self, name: &str) -> &Tensor {
        &self.weights[&format!("{name}.weight")]
    }

    /// Normed states before the head: of the main model, then of each MTP module (formulas 21-25; the released weights
    /// take the embedding first, and h^0 is the state after the final norm).
    fn states(&self, tokens: &[i64], length: usize, notes: &Notes) -> Vec<Tensor> {
        let (eps, layers) = (self.spec.norm_eps, self.spec.layers);
        let embed = |shift: usize| {
            let ids = Tensor::from_slice(&tokens[shift..shift + length]);
            self.weight("model.embed_tokens").index_select(0, &ids)
        };
        let trunk = (0..layers).fold(embed(0), |h, layer| self.layer(layer, &h, notes));
        let mut states = vec![rms(&trunk, self.weight("model.norm"), eps)];
        for k in 1..=self.spec.mtp_layers {
            let name = format!("model.layers.{}", layers + k - 1);
            let norm =
                |x: &Tensor, which: &str| rms(x, self.weight(&format!("{name}.{which}")), eps);
            let both = Tensor::cat(&[norm(&embed(k), "enorm"), norm(&states[k - 1], "hnorm")], 1);
            let input = both.matmul(&self.weight(&format!("{name}.eh_proj")).tr());
            let output = self.layer(layers + k - 1, &input, notes);
            states.push(norm(&output, "shared_head.norm"));
        }
        states
    }

    fn layer(&self, layer: usize, hidden: &Tensor, notes: &Notes) -> Tensor {
        let name = format!("model.layers.{layer}");
        let eps = self.spec.norm_eps;
        let normed = rms(hidden, self.weight(&format!("{name}.input_layernorm")), eps);
        let residual = hidden + self.attention(&format!("{name}.self_attn"), &normed);
        let normed = rms(&residual, self.weight(&format!("{name}.post_attention_layernorm")), eps);
        let mlp = format!("{name}.mlp");
        residual
            + match &self.spec.moe {
                Some(moe) if self.spec.is_moe_layer(layer) => self.moe(layer, moe, &normed, notes),
                _ => self.named_feed_forward(&mlp, &normed),
            }
    }

    fn named_feed_forward(&self, name: &str, x: &Tensor) -> Tensor {
        let weight = |which: &str| self.weight(&format!("{name}.{which}_proj"));
        feed_forward(x, weight("gate"), weight("up"), weight("down"))
    }

    fn attention(&self, name: &str, x: &Tensor) -> Tensor {
        let project =
            |x: &Tensor, which: &str| x.matmul(&self.weight(&format!("{name}.{which}")).tr());
        let norm =
            |x: &Tensor, which: &str| rms(x, self.weight(&format!("{name}.{which}")), LOW_RANK_EPS);
        let columns = |x: &Tensor, first: usize, count: usize| x.narrow(1, dim(first), dim(count));
        let out: Vec<Tensor> = match self.spec.attention {
            Attention::Gqa { heads, kv_heads, head_dim: d } => {
                let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|which| project(x, which));
                let scale = (d as f64).sqrt().recip();
                let head = |h: usize| {
                    let kv = h / (heads / kv_heads);
                    let q = self.rotate(&columns(&q, h * d, d));
                    let k = self.rotate(&columns(&k, kv * d, d));
                    attend(&q, &k, &columns(&v, kv * d, d), scale)
                };
                (0..heads).map(head).collect()
            }
            Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
                let q = match q_rank {
                    Some(_) => project(&norm(&project(x, "q_a_proj"), "q_a_layernorm"), "q_b_proj"),
                    None => project(x, "q_proj"),
                };
                let compressed = project(x, "kv_a_proj_with_mqa");
                let c = norm(&columns(&compressed, 0, kv_rank), "kv_a_layernorm");
                let kv = project(&c, "kv_b_proj");
                let k_rope = self.rotate(&columns(&compressed, kv_rank, rope_dim));
                let (d, kv_width) = (nope_dim + rope_dim, nope_dim + v_dim);
                let scale = (d as f64).sqrt().recip() * rotary::softmax_factor(&self.spec.rope);
                let head = |h: usize| {
                    let rotated = self.rotate(&columns(&q, h * d + nope_dim, rope_dim));
                    let q = Tensor::cat(&[columns(&q, h * d, nope_dim), rotated], 1);
                    let k = Tensor::cat(&[&columns(&kv, h * kv_width, nope_dim), &k_rope], 1);
                    attend(&q, &k, &columns(&kv, h * kv_width + nope_dim, v_dim), scale)
                };
                (0..heads).map(head).collect()
            }
        };
        project(&Tensor::cat(&out, 1), "o_proj")
    }

    /// x `[S, n]`: pair by pair a complex number times e^(i * position * frequency).
    fn rotate(&self, x: &Tensor) -> Tensor {
        let (length, n) = x.size2().expect("a matrix");
        let (n, rope) = (n as usize, &self.spec.rope);
        let mut columns: Vec<Tensor> = (0..n).map(|_| scalar()).collect();
        for pair in 0..n / 2 {
            let (a, b) =
                if rope.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + n / 2) };
            let turn = Tensor::arange(length, (Kind::Double, Device::Cpu))
                * rotary::frequency(rope, n, pair);
            let factor = rotary::length_factor(rope);
            let (cos, sin) = (turn.cos() * factor, turn.sin() * factor);
            let (re, im) = (x.select(1, dim(a)), x.select(1, dim(b)));
            columns[a] = &re * &cos - &im * &sin;
            columns[b] = re * sin + im * cos;
        }
        Tensor::stack(&columns, 1)
    }

    /// Formulas 12-20: every expert over all tokens, times its gate value, zero where it was not chosen.
    fn moe(&self, layer: usize, moe: &Moe, x: &Tensor, notes: &Notes) -> Tensor {
        let name = format!("model.layers.{layer}.mlp");
        let scores = x.matmul(&self.weight(&format!("{name}.gate")).tr()).sigmoid();
        let chosen = self.choose(layer, moe, &scores, notes);
        let mask = Tensor::from_slice(&chosen).view([-1, dim(moe.experts)]);
        let picked = &scores * &mask;
        let total = picked.sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
        let gates = picked / total * moe.routed_scale;
        self.note_balance(moe, &scores, &mask, notes);
        let expert = |e: usize| {
            let out = self.named_feed_forward(&format!("{name}.experts.{e}"), x);
            out * gates.select(1, dim(e)).unsqueeze(1)
        };
        let routed: Tensor = (0..moe.experts).map(expert).sum();
        // Several shared experts stand stacked in one feed-forward: each owns its own columns of the inner width.
        let width = dim(moe.expert_hidden);
        (0..dim(moe.shared_experts)).fold(routed, |sum, j| {
            let weight = |which: &str| self.weight(&format!("{name}.shared_experts.{which}_proj"));
            let rows = |w: &Tensor| w.narrow(0, j * width, width);
            let down = weight("down").narrow(1, j * width, width);
            sum + feed_forward(x, &rows(weight("gate")), &rows(weight("up")), &down)
        })
    }

    /// 1 where token t uses expert e, flat `[S * E]`.
    fn choose(&self, layer: usize, moe: &Moe, scores: &Tensor, notes: &Notes) -> Vec<f64> {
        let bias: Vec<f64> = self.biases[layer].iter().map(|&b| f64::from(b)).collect();
        let at = (notes.sequence, layer);
        let chosen: Vec<usize> = match self.fixed {
            Some(fixed) => fixed[&at].clone(),
            None => {
                let rows = Vec::<Vec<f64>>::try_from(scores.detach()).expect("a matrix");
                rows.iter().flat_map(|row| gate::choose(row, &bias, moe)).collect()
            }
        };
        let mut mask = vec![0.0; chosen.len() / moe.experts_per_token * moe.experts];
        for (slot, expert) in chosen.iter().enumerate() {
            mask[slot / moe.experts_per_token * moe.experts + expert] = 1.0;
        }
        notes.choices.borrow_mut().insert(at, chosen);
        mask
    }

    /// Formulas 17-20 of this sequence, with the experts actually chosen.
    fn note_balance(&self, moe: &Moe, scores: &Tensor, mask: &Tensor, notes: &Notes) {
        let tokens = mask.size()[0] as f64;
        let mut loss = scalar();
        let all = scores.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        for expert in 0..dim(moe.experts) {
            let chosen = mask.select(1, expert).sum(Kind::Double);
            let f = chosen * (moe.experts as f64 / (moe.experts_per_token as f64 * tokens));
            let p = (scores.select(1, expert) / &all).mean(Kind::Double);
            loss += f * p;
        }
        let sum = &*notes.balance.borrow() + loss * moe.balance_loss;
        *notes.balance.borrow_mut() = sum;
    }
}

/// softmax(q kᵀ scale) v with position t looking at 0..=t; q, k `[S, d]`, v `[S, d_v]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Tensor {
    let scores = q.matmul(&k.tr()) * scale;
    let future = scores.ones_like().triu(1).to_kind(Kind::Bool);
    scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, None).matmul(v)
}
