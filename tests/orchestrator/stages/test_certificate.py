from orchestrator.stages.certificate import audit_findings, statement, whom
from orchestrator.store.run_files import AuditFacts, Certificate, SplitFacts, as_record

SCORES = {"estimate": 0.7, "low": 0.6, "high": 0.8, "n_groups": 40, "too_narrow": False}
MADE = {
    "members": [{}, {}, {}],
    "estimate": {
        "on": "out-of-fold predictions",
        "of": "people (group: id) it has never seen",
        "people": "People of role val chose the settings, so they are left out of the score.",
        "macro_f1": SCORES,
    },
    "corrected": {"estimate": 0.65, "low": 0.55, "high": 0.75, "n_candidates": 40},
    "checkpoints": {
        "scores": [0.66, 0.7], "n_deployed": 6, "estimate": 0.72, "low": 0.62, "high": 0.8,
        "advice": None,
    },
    "test": None,
    "gain": {
        "difference": 0.01, "low": -0.01, "high": 0.03, "corrected_difference": 0.02,
        "corrected_low": 0.0, "corrected_high": 0.04,
    },
    "policy": "robust",
    "looked_at": [
        {"what": "the same test labels in other runs of this store", "times": 2, "why": ""}
    ],
    "findings": ["3 pictures stand in more than one group."],
    "check": {"equal": True, "n_photos": 8},
}  # fmt: skip


def test_the_corrected_number_is_the_first_and_is_at_least():
    """The uncorrected one was the first, and nothing said that more checkpoints are deployed."""
    text = statement(as_record(Certificate, MADE))
    assert text.startswith(
        "On people (group: id) it has never seen the vote of 3 members is expected to reach at "
        "least macro F1 0.650 (90 % interval 0.550 to 0.750), 40 groups."
    )
    assert "judged by 2 of each member's checkpoints and a new photo is judged by 6" in text
    assert "the vote gains +0.020 (+0.000 to +0.040)" in text
    for words in ("other data", "2 times", "role val chose the settings", "more than one group"):
        assert words in text


def test_what_the_audit_found_weakens_the_promise():
    """People it had never seen were promised beside a measured leak."""
    facts = {
        "variants": {"base": {"leak": 0.2}},
        "near_duplicates": {"across_groups": {"n": 3}},
    }
    findings = audit_findings(as_record(AuditFacts, facts))
    assert "The split of base leaks" in findings[0]
    assert "3 pictures stand in more than one group" in findings[1]
    assert "people it may have seen" in whom("id", {"profile"}, confirmed=True, leaking=True)
    assert audit_findings(AuditFacts(variants={"base": SplitFacts(leak=0.0)})) == []
