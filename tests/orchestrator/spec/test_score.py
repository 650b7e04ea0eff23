from pathlib import Path

import pytest

from orchestrator.base.errors import SpecError
from orchestrator.spec.claims import parse
from orchestrator.spec.load import read
from orchestrator.spec.score import Score, parse_score, score_title

SPEC = Path(__file__).resolve().parents[3] / "experiments/quickstart.yaml"


def test_every_form_of_a_score_is_read_and_has_words():
    assert parse_score("macro_f1") == Score()
    assert parse_score("balanced_accuracy  of mask") == Score("balanced_accuracy", "mask")
    assert parse_score("mean of labels").labels_among(["a", "b"]) == ("a", "b")
    titles = {"accuracy": "accuracy", "macro_f1 of mask": "macro F1 of mask"}
    titles["mean of labels"] = "mean macro F1 of the labels"
    assert titles == {text: score_title(text) for text in titles}


@pytest.mark.parametrize("text", ["", "f1", "macro_f1 mask x", "macro_f1 of", "mean", "of mask"])
def test_any_other_score_is_refused_with_the_forms(text):
    with pytest.raises(ValueError, match=r"macro_f1, accuracy, balanced_accuracy, .* 'of LABEL'"):
        parse_score(text)


def test_a_score_of_an_unknown_label_is_refused_with_the_labels():
    with pytest.raises(SpecError, match="score: one of the labels mask, gender, age"):
        read(SPEC, ["score=macro_f1 of hat"], check_roots=False)


def test_a_score_of_a_label_that_a_variant_does_not_answer_is_refused():
    changes = [
        "score=macro_f1 of age",
        "variants={base: {}, narrow: {train.model.head: {name: single, labels: [mask]}}}",
        "hypotheses=[]",
        "search=null",
    ]
    with pytest.raises(SpecError, match="variants that answer age were required, the head of 'na"):
        read(SPEC, changes, check_roots=False)


def test_claims_are_about_the_score_of_the_spec_unless_they_name_another():
    assert parse("a > b", "mean of labels").metric == "mean of labels"
    assert parse("a > b on accuracy of mask", "mean of labels").metric == "accuracy of mask"
    assert parse("a = b within 0.01 on balanced_accuracy").metric == "balanced_accuracy"
    with pytest.raises(ValueError, match="found 'f1' in 'a > b on f1'"):
        parse("a > b on f1")


def test_a_claim_on_an_unknown_label_is_refused():
    (first, second, *_) = read(SPEC, check_roots=False).spec.variants
    changes = [f"hypotheses=['{first} > {second} on macro_f1 of hat']"]
    with pytest.raises(SpecError, match="one of the labels mask, gender, age was required"):
        read(SPEC, changes, check_roots=False)


def test_a_default_stands_in_no_dump_and_report_in_no_identity():
    plain = read(SPEC, check_roots=False)
    assert not {"score", "report"} & plain.resolved().keys()
    hidden = read(SPEC, ["report.photos=false"], check_roots=False)
    assert hidden.resolved()["report"] == {"photos": False}
    assert hidden.identity() == plain.identity()
    named = read(SPEC, ["score=accuracy"], check_roots=False)
    assert named.identity() == plain.identity() | {"score": "accuracy"}
