//! The `[model]` section of a run that was imported from a Hugging Face folder.
//!
//! Its sizes are the folder's, and the recipe of the import says something about them at most by chance. `imported.json` in the
//! run directory keeps what the recipe said. When the run continues under a recipe, what that recipe says as the one before it
//! did still stands for the folder's; only what it says differently is a change.

use crate::error::CliError;
use crate::run_dir::RunDir;
use lampyris_plan::{ModelSpec, TrainPlan};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Contents of `imported.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// `[model]` of the last recipe that the run was given, as the recipe has it.
    pub(crate) recipe_model: ModelSpec,
}

/// Puts the run's sizes where `plan`, which comes from a recipe, says of the model what the run's recipe before it said.
/// What is to be remembered once `plan` is the run's plan; none for a run that was not imported.
pub(crate) fn take_sizes(
    run: &RunDir,
    before: &TrainPlan,
    plan: &mut TrainPlan,
) -> Result<Option<Imported>, CliError> {
    let Some(Imported { recipe_model }) = run.imported()? else { return Ok(None) };
    let given = plan.model.clone();
    plan.model = merge(&recipe_model, &given, &before.model).map_err(|error| {
        run.not_a_run(&format!("its model and the recipe's [model] do not fit together ({error})"))
    })?;
    // Where a recipe does not give it, this follows from its sequences, which may be shorter than the folder's.
    if given.max_positions == plan.batch.sequence_length {
        plan.model.max_positions = before.model.max_positions.max(given.max_positions);
    }
    Ok(Some(Imported { recipe_model: given }))
}

/// `ours` with every key in which `theirs` differs from `base`.
fn merge(
    base: &ModelSpec,
    theirs: &ModelSpec,
    ours: &ModelSpec,
) -> Result<ModelSpec, serde_json::Error> {
    let value = |spec: &ModelSpec| serde_json::to_value(spec);
    serde_json::from_value(merged(&value(base)?, &value(theirs)?, &value(ours)?))
}

fn merged(base: &Value, theirs: &Value, ours: &Value) -> Value {
    if base == theirs {
        return ours.clone();
    }
    let (Value::Object(base), Value::Object(theirs), Value::Object(ours)) = (base, theirs, ours)
    else {
        return theirs.clone();
    };
    let null = Value::Null;
    let keys = ours.keys().chain(theirs.keys());
    keys.map(|key| {
        let of = |map: &serde_json::Map<String, Value>| map.get(key).unwrap_or(&null).clone();
        (key.clone(), merged(&of(base), &of(theirs), &of(ours)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_a_recipe_says_differently_is_a_change() {
        let base = json!({ "layers": 2, "rope": { "theta": 1.0, "yarn": null }, "moe": null });
        let ours =
            json!({ "layers": 8, "rope": { "theta": 5.0, "yarn": null }, "moe": { "k": 1 } });
        assert_eq!(merged(&base, &base, &ours), ours);
        let theirs =
            json!({ "layers": 2, "rope": { "theta": 1.0, "yarn": { "factor": 4 } }, "moe": null });
        let expected = json!({ "layers": 8, "rope": { "theta": 5.0, "yarn": { "factor": 4 } }, "moe": { "k": 1 } });
        assert_eq!(merged(&base, &theirs, &ours), expected);
        let theirs = json!({ "layers": 3, "rope": { "theta": 1.0, "yarn": null }, "moe": null });
        assert_eq!(merged(&base, &theirs, &ours)["layers"], 3);
    }
}
