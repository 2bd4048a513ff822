use super::*;
use crate::fixture;
use crate::train_plan::{Milestone, MtpLossStep};

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1e-6), "{found} != {expected}");
}

/// A plan of one batch size with `decay`, peak 1.
fn with(decay: Decay, warmup_tokens: u64, total_tokens: u64) -> SchedulePlan {
    SchedulePlan { decay, warmup_tokens, total_tokens, peak_lr: 1.0, ..fixture::plan().schedule }
}

#[test]
fn warm_up_is_linear_from_the_first_step() {
    let schedule = with(Decay::Constant, 1_000, 10_000);
    close(learning_rate(&schedule, 1), 0.001);
    close(learning_rate(&schedule, 500), 0.5);
    close(learning_rate(&schedule, 1_000), 1.0);
    close(learning_rate(&schedule, 10_000), 1.0);
}

#[test]
fn cosine_ends_at_its_final_rate() {
    let schedule = with(Decay::Cosine { final_ratio: 0.1 }, 1_000, 11_000);
    close(learning_rate(&schedule, 1_000), 1.0);
    close(learning_rate(&schedule, 6_000), 0.55);
    close(learning_rate(&schedule, 11_000), 0.1);
    close(learning_rate(&schedule, 12_000), 0.1);
}

#[test]
fn wsd_is_flat_and_then_a_line() {
    let schedule = with(Decay::Wsd { decay_fraction: 0.2, final_ratio: 0.0 }, 100, 1_000);
    close(learning_rate(&schedule, 800), 1.0);
    close(learning_rate(&schedule, 900), 0.5);
    close(learning_rate(&schedule, 1_000), 0.0);
}

/// DeepSeek LLM (2401.02954), section 2.3: 100 % until 80 % of the tokens, 31.6 % until 90 %, then 10 %.
#[test]
fn multi_step_is_deepseek_llms() {
    let milestones =
        vec![Milestone { fraction: 0.8, ratio: 0.316 }, Milestone { fraction: 0.9, ratio: 0.1 }];
    let mut schedule = with(Decay::MultiStep { milestones }, 0, 2_000_000_000_000);
    schedule.peak_lr = 4.2e-4;
    for (tokens, expected) in [
        (1_600_000_000_000, 4.2e-4),
        (1_600_000_000_001, 4.2e-4 * 0.316),
        (1_800_000_000_000, 4.2e-4 * 0.316),
        (1_800_000_000_001, 4.2e-5),
        (2_000_000_000_000, 4.2e-5),
    ] {
        close(learning_rate(&schedule, tokens), expected);
    }
}

/// DeepSeek-V3 (2412.19437), section 4.2: warm-up to 2.2e-4, constant to 10T tokens, cosine to 2.2e-5 over 4.3T,
/// constant for 333B, 7.3e-6 for the last 167B.
#[test]
fn segments_express_deepseek_v3s_curve() {
    let t = 1_000_000_000_000;
    let piece = |until_tokens, shape, lr| Segment { until_tokens, shape, lr };
    let segments = vec![
        piece(10 * t, Shape::Constant, 2.2e-4),
        piece(14_300_000_000_000, Shape::Cosine, 2.2e-5),
        piece(14_633_000_000_000, Shape::Constant, 2.2e-5),
        piece(14_800_000_000_000, Shape::Constant, 7.3e-6),
    ];
    let mut schedule = with(Decay::Segments { segments }, 27_507_294_208, 14_800_000_000_000);
    schedule.peak_lr = 2.2e-4;
    for (tokens, expected) in [
        (27_507_294_208 / 2, 1.1e-4),
        (27_507_294_208, 2.2e-4),
        (10 * t, 2.2e-4),
        (12_150_000_000_000, (2.2e-4 + 2.2e-5) / 2.0), // middle of the cosine
        (14_300_000_000_000, 2.2e-5),
        (14_633_000_000_000, 2.2e-5),
        (14_633_000_000_001, 7.3e-6),
        (14_800_000_000_000, 7.3e-6),
    ] {
        close(learning_rate(&schedule, tokens), expected);
    }
}

#[test]
fn a_linear_segment_starts_where_the_one_before_ends() {
    let segments = vec![
        Segment { until_tokens: 100, shape: Shape::Constant, lr: 0.8 },
        Segment { until_tokens: 200, shape: Shape::Linear, lr: 0.4 },
    ];
    let schedule = with(Decay::Segments { segments }, 0, 200);
    close(learning_rate(&schedule, 150), 0.6);
    close(learning_rate(&schedule, 200), 0.4);
}

#[test]
fn mtp_weight_and_bias_speed_change_where_v3s_do() {
    let mut plan = fixture::plan();
    plan.schedule.mtp_loss_steps = vec![MtpLossStep { from_tokens: 1_000, weight: 0.1 }];
    plan.schedule.bias_update_until_tokens = Some(1_430);
    assert_eq!(mtp_loss_weight(&plan, 999), 0.3);
    assert_eq!(mtp_loss_weight(&plan, 1_000), 0.1);
    assert_eq!(bias_update_speed(&plan, 1_429), 0.001);
    assert_eq!(bias_update_speed(&plan, 1_430), 0.0);
    plan.model.mtp_layers = 0;
    assert_eq!(mtp_loss_weight(&plan, 1_000), 0.0);
}

#[test]
fn without_a_ramp_steps_are_tokens_over_batch() {
    let mut plan = fixture::plan(); // 512 tokens a step
    assert_eq!(steps(&plan), 100);
    plan.schedule.total_tokens += 1;
    assert_eq!(steps(&plan), 101);
    assert_eq!(tokens_at_step(&plan, Step(7)), 7 * 512);
    assert_eq!(step_at_tokens(&plan, 7 * 512), Step(7));
    assert_eq!(step_at_tokens(&plan, 7 * 512 + 1), Step(8));
}

/// The closed form agrees with counting step by step, at every step of odd ramps.
#[test]
fn a_ramp_agrees_with_counting() {
    for (ramp_tokens, leaves, global) in [(10_000, 1, 64), (7_777, 4, 64), (64, 2, 32), (1, 1, 16)]
    {
        let mut plan = fixture::plan();
        plan.batch.leaves = leaves;
        plan.batch.global_batch = global;
        plan.batch.ramp_start = 8;
        plan.batch.ramp_tokens = ramp_tokens;
        let quantum = 2 * leaves;
        let mut seen = 0;
        for step in 0..200 {
            assert_eq!(tokens_at_step(&plan, Step(step)), seen);
            assert_eq!(step_at_tokens(&plan, seen), Step(step));
            assert_eq!(step_at_tokens(&plan, seen + 1), Step(step + 1));
            let sequences = sequences_at(&plan, seen);
            assert_eq!(sequences % quantum, 0);
            let exact = 8.0 + (global - 8) as f64 * (seen as f64 / ramp_tokens as f64).min(1.0);
            assert!(sequences as f64 <= exact && exact < (sequences + quantum) as f64);
            seen += (sequences * plan.batch.sequence_length) as u64;
        }
        assert_eq!(sequences_at(&plan, seen), global);
    }
}

/// DeepSeek-V3, section 4.2: 3072 to 15360 sequences of 4096 over 469B tokens.
#[test]
fn deepseek_v3s_batch_grows_as_published() {
    let mut plan = fixture::plan();
    plan.batch = BatchPlan {
        sequence_length: 4_096,
        micro_batch: 1,
        global_batch: 15_360,
        ramp_start: 3_072,
        ramp_tokens: 469_000_000_000,
        leaves: 128,
        reduction: Reduction::Canonical,
    };
    assert_eq!(sequences_at(&plan, 0), 3_072);
    assert_eq!(sequences_at(&plan, 234_500_000_000), 9_216);
    assert_eq!(sequences_at(&plan, 469_000_000_000 - 1), 15_360 - 128);
    assert_eq!(sequences_at(&plan, 469_000_000_000), 15_360);
    assert_eq!(tokens_at_step(&plan, Step(1)), 12_582_912);
    plan.schedule.total_tokens = 14_800_000_000_000;
    // 14.8T / 62.9M would be 235,239; the small batches at the start add steps.
    assert!((240_000..250_000).contains(&steps(&plan)), "{}", steps(&plan));
}
