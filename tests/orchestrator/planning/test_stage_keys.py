"""What keys tell apart: a setting that decides a result and is in no key would bring the wrong one out of the store."""

from pathlib import Path
from types import SimpleNamespace

from data_prep.weights.cache import CACHE_VARIABLE
from data_prep.weights.registry import describe
from orchestrator.base.versions import QUICK_BACKBONE
from orchestrator.evaluation.selection import finalists
from orchestrator.planning.plan import Keys
from orchestrator.spec.load import read
from orchestrator.stages import trial_phase as phases

SPEC = Path(__file__).resolve().parents[3] / "experiments/quickstart.yaml"
CATALOG = SimpleNamespace(result={"content": "c", "photos": "p"})


def keys(*changes):
    return Keys(read(SPEC, list(changes), check_roots=False), "files")


def test_borders_of_training_alone_are_another_study():
    plain, moved = keys(), keys("data.labels.age.train_bins=[25, 50]")
    assert plain.catalog == moved.catalog, "they change no row of the catalog"
    same = plain.families(CATALOG).items() & moved.families(CATALOG).items()
    assert not same
    assert plain.search(CATALOG) != moved.search(CATALOG)


def test_a_frozen_head_is_confirmed_again_where_another_setting_of_its_source_is_best():
    frozen = (
        "variants={plain: {}, on_it: {train.model.head: {name: frozen_deep, from: plain}}}",
        "search.space={train.optimizer.lr: {float: [5.0e-4, 3.0e-3], log: true}}",
        "hypotheses=[]",
    )
    ranked, other = (
        finalists(
            [("a", "plain", a), ("b", "plain", b), ("f", "on_it", 0.1)], 3, ["plain", "on_it"]
        )
        for a, b in ((0.5, 0.4), (0.4, 0.5))
    )
    assert sorted(ranked) == sorted(other)
    assert keys(*frozen).confirm(CATALOG, ranked) != keys(*frozen).confirm(CATALOG, other)
    assert keys().confirm(CATALOG, ranked) == keys().confirm(CATALOG, other), (
        "without one the order decides nothing"
    )


def test_an_audit_that_lacked_the_quick_model_is_made_again_once_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    without = keys().audit("c", probe=True)
    assert without == keys().audit("c", probe=True)
    for name in describe(QUICK_BACKBONE).files:
        (tmp_path / name).touch()
    assert without != keys().audit("c", probe=True)


def test_where_test_labels_stand_and_who_sees_them_names_no_other_setting():
    """A name that told would choose other finalists among equal ones, and lose the scores of a search that is reused."""
    plain = keys()
    for change in ("data.test.label=null", "data.test.public=0.5"):
        other = keys(change)
        assert plain.run != other.run
        assert plain.search(CATALOG) == other.search(CATALOG)
        assert plain.experiment.setting("plain", {})[0] == other.experiment.setting("plain", {})[0]


def test_a_precision_that_was_probed_is_part_of_what_a_trial_is(tmp_path, monkeypatch):
    own, parts = keys("train.precision=auto"), tmp_path / "parts"
    parts.write_bytes(b"")
    context = SimpleNamespace(
        experiment=own.experiment,
        schema=own.schema,
        store=SimpleNamespace(root=tmp_path),
        prepared={"plain": SimpleNamespace(key="p")},
        rows={"plain": SimpleNamespace(path=tmp_path)},
    )
    monkeypatch.setattr(phases, "parts_file", lambda *given: parts)
    found = {}
    for chosen in ("fp32", "bf16"):
        monkeypatch.setattr(phases, "precision_of", lambda *given, chosen=chosen: chosen)
        spec = phases.describe_trial(context, "s-plain-0000", "search", "plain", {}, 0, None)
        assert chosen == spec.train["precision"]
        found[chosen] = spec.key
    assert found["fp32"] != found["bf16"]
