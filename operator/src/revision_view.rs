//! Which commit of a model on a hub is served, and whether its branch has moved meanwhile: pure.
use std::collections::BTreeSet;

use crate::api::conditions::reasons;
use crate::api::status::ModelStatus;
use crate::source::Source;
use crate::status::Facts;
use crate::verdict::Verdict;

/// What replicas serve, after what they served. Those that still serve an earlier spec's model do not count.
#[must_use]
pub fn served(facts: &Facts<'_>, old: &ModelStatus) -> ModelStatus {
    let Source::Hub(site, repository) = &facts.valid.source else {
        return ModelStatus {
            source: Some(facts.valid.spec.model.source.clone()),
            ..ModelStatus::default()
        };
    };
    let source = format!("{}://{repository}", site.scheme());
    let asked = facts.valid.spec.model.revision.as_deref();
    let asked = asked.unwrap_or(site.default_revision());
    let pods = facts.load.map_or(&[][..], |load| &load.pods);
    let origins = pods.iter().filter_map(|pod| pod.origin.as_ref());
    let mine = origins.filter(|origin| origin.source == source && origin.revision == asked);
    let commits = mine.map(|origin| origin.commit.as_str()).collect();
    let source = Some(format!("{source}@{asked}"));
    let old = if old.source == source {
        old
    } else {
        &ModelStatus::default()
    };
    let (revision, previous_revision) = after(old, &commits);
    ModelStatus {
        source,
        revision,
        previous_revision,
        loading: None,
    }
}

/// The commit and the one before it, after what is served now. A commit that is in neither place is a newer one, as
/// pods resolve a branch when they start; so two that are served side by side do not take turns.
fn after(old: &ModelStatus, commits: &BTreeSet<&str>) -> (Option<String>, Option<String>) {
    let (current, before) = (old.revision.as_deref(), old.previous_revision.as_deref());
    let newer = commits
        .iter()
        .find(|commit| Some(**commit) != current && Some(**commit) != before);
    let gone = !current.is_some_and(|current| commits.contains(current));
    let back = commits.first().filter(|_| gone);
    match newer.or(back) {
        Some(commit) if Some(*commit) != current => {
            // The first look at a new service may find two at once.
            let other = commits.iter().find(|other| *other != commit).copied();
            (Some((*commit).to_owned()), current.or(other).map(str::to_owned))
        }
        _ => (old.revision.clone(), old.previous_revision.clone()),
    }
}

/// Judges the condition ModelLoaded where a replica serves.
#[must_use]
pub fn judge(model: &ModelStatus) -> Verdict {
    match model {
        ModelStatus {
            source: Some(source),
            revision: Some(commit),
            previous_revision: Some(before),
            ..
        } => Verdict::yes(
            reasons::REVISION_DRIFT,
            format!(
                "{source} was commit {before} and is now {commit}, so replicas that start at different times serve different models: pin spec.model.revision to the commit {commit}, or to {before} to go back"
            ),
        ),
        ModelStatus {
            revision: Some(commit),
            ..
        } => Verdict::yes(reasons::LOADED, format!("the model is loaded, commit {commit}")),
        _ => Verdict::yes(reasons::LOADED, "the model is loaded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commit and the one before, as each look leaves them.
    fn looks(all: &[&[&str]]) -> Vec<(String, String)> {
        let mut model = ModelStatus::default();
        let looks = all.iter().map(|commits| {
            (model.revision, model.previous_revision) = after(&model, &commits.iter().copied().collect());
            let text = |commit: &Option<String>| commit.clone().unwrap_or_default();
            (text(&model.revision), text(&model.previous_revision))
        });
        looks.collect()
    }

    #[test]
    fn a_branch_that_moves_is_seen_beside_and_after_the_old_pods() {
        let told = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
        };
        // Side by side, then alone; a pause without pods keeps what is known.
        assert_eq!(
            looks(&[&[], &["x"], &["x", "a"], &["a", "x"], &["a"], &[], &["a"]]),
            told(&[
                ("", ""),
                ("x", ""),
                ("a", "x"),
                ("a", "x"),
                ("a", "x"),
                ("a", "x"),
                ("a", "x")
            ])
        );
        // One after the other, and back; then a third.
        assert_eq!(
            looks(&[&["x"], &["a"], &["x"], &["x", "b"]]),
            told(&[("x", ""), ("a", "x"), ("x", "a"), ("b", "x")])
        );
        // Both at the first look.
        assert_eq!(
            looks(&[&["x", "a"], &["x", "a"]]),
            told(&[("a", "x"), ("a", "x")])
        );
    }

    #[test]
    fn a_drift_says_what_to_pin() {
        let model = |previous: Option<&str>| ModelStatus {
            source: Some("hf://a/b@main".into()),
            revision: Some("new".into()),
            previous_revision: previous.map(str::to_owned),
            loading: None,
        };
        let drift = judge(&model(Some("old")));
        assert_eq!(
            (drift.status, drift.reason.as_str()),
            ("True", reasons::REVISION_DRIFT)
        );
        assert!(
            drift
                .message
                .contains("pin spec.model.revision to the commit new"),
            "{}",
            drift.message
        );
        assert_eq!(judge(&model(None)).message, "the model is loaded, commit new");
        assert_eq!(judge(&ModelStatus::default()).reason, reasons::LOADED);
    }
}
