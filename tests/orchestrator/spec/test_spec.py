import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.base.errors import SpecError
from orchestrator.spec.load import read
from orchestrator.spec.models import schema
from orchestrator.spec.yaml_source import DocumentError

ROOT = Path(__file__).resolve().parents[3]
SOURCE = (ROOT / "experiments/quickstart.yaml").read_text()


@pytest.fixture
def write(tmp_path):
    for side, table in (("train", "train.csv"), ("eval", "info.csv")):
        (tmp_path / "data/sample" / side / "images").mkdir(parents=True)
        (tmp_path / "data/sample" / side / table).write_text("id\n")
    (tmp_path / "experiments").mkdir()

    def make(*changes, text=SOURCE):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "experiments/spec.yaml"
        path.write_text(text)
        return path

    return make


BROKEN = {
    "a component without its name": (
        (("optimizer: {name: adam, lr", "optimizer: {lr"),),
        r"train.optimizer: name: is required, one of adam, adamw, sgd; found \{\"lr",
    ),
    "a source without its layout": (
        (("layout: profile_folders, root", "root"),),
        r"data.source: layout: is required, one of profile_folders, class_folders, table; found",
    ),
    "a label without from": (
        (("{from: column, column: gender", "{column: gender"),),
        r"spec.yaml:\d+:\d+: data.labels.gender: from: is required, one of stem, column, folder",
    ),
    "a merge key": (
        (("optimizer: {name: adam,", "optimizer: {<<: {name: adam},"),),
        r"merge keys \(<<\) are not part of a spec; write the values out",
    ),
    "one class of a column": (
        (("classes: [male, female]", "classes: [male]"),),
        r"data.labels.gender.classes: ",
    ),
    "classes of no kind": (
        (("classes: [male, female]", "classes: [male, [female]]"),),
        r"data.labels.gender.classes.1: ",
    ),
    "a typo in a column label": (
        (("column: gender, classes", "column: gender, clases"),),
        r"data.labels.gender.clases: .*did you mean 'classes'",
    ),
    "a ruined photo": (
        (("policy: basic", "policy: [{name: HorizontalFlip}, {name: Normalize}]"),),
        r"train.augment.policy: Normalize returns float32 values",
    ),
    "a backbone that is built for another size": (
        (
            (
                "backbone: tf_efficientnet_lite0, pretrained: true",
                "backbone: efficientformer_l1, pretrained: false",
            ),
        ),
        r"efficientformer_l1 cannot be used on photos of \d+ x \d+ pixels: its own size is 224",
    ),
    "a folder outside the root": (
        (("root: ../data/sample/train, table", "root: ../data/sample/train, images: ../x, table"),),
        r"data.source.images: a folder below the root was required",
    ),
    "unknown key": ((("seed: 42", "sead: 42"),), r"sead: unknown key 'sead'.*did you mean 'seed'"),
    "misspelt key": (
        (("lr: 1.0e-3, weight", "learn_rate: 1, weight"),),
        r"train.optimizer.learn_rate: optimizer 'adam' does not use",
    ),
    "duplicate key": (
        (("batch_size: 16", "batch_size: 16\n  batch_size: 64"),),
        r"key 'batch_size' stands twice, first in line",
    ),
    "wrong type": (
        (("batch_size: 16", "batch_size: '32'"),),
        r"train.batch_size: required a valid integer, found '32'",
    ),
    "bad range": (
        (("batch_size: 16", "batch_size: 0"),),
        r"train.batch_size: required greater than or equal to 2, found 0",
    ),
    "unknown variant in a hypothesis": (
        (('"half_cutmix > plain"', '"half > plain"'),),
        r"hypotheses: no variant 'half'",
    ),
    "claim over a split that leaks and one that does not": (
        (("{train.augment.cutmix: half}", "{data.split.strategy: random}"),),
        r"hypotheses: arms that both keep the photos of a group together.*random of 'half_cutmix'",
    ),
    "claim over an arm that answers one label": (
        (("{train.augment.cutmix: half}", "{train.model.head: {name: single, labels: [age]}}"),),
        r"hypotheses: arms that answer mask, gender, age were required.*the head of 'half_cutmix' answers age",
    ),
    "space path that does not exist": (
        (("train.optimizer.lr: {", "train.optimizer.lrx: {"),),
        r"train.optimizer.lrx: optimizer 'adam' does not use 'lrx'",
    ),
    "setting its component does not use": (
        (("loss: focal", "loss: {name: focal, smoothing: 0.1}"),),
        r"train.loss.smoothing: loss 'focal' does not use",
    ),
    "conditional setting without its condition": (
        ((", when: {train.model.head.name: deep}", ""),),
        r"train.model.head.hidden: head 's\w+' does not use 'hidden'",
    ),
    "alias bomb": ((("seed: 42", "seed: &a [1,1]\nb: [*a, *a]"),), r"anchors and aliases"),
    "missing data folder": (
        (("../data/sample/train", "../data/nope"),),
        r"data.source.root: a folder was required, found nothing at",
    ),
    "tab": ((("  test: {root", "\ttest: {root"),), r"not valid YAML: found a tab"),
    "misspelt backbone": (
        (("tf_efficientnet_lite0", "tf_efficientnet_lite9"),),
        r"train.model.backbone: timm has no model 'tf_efficientnet_lite9'; nearest",
    ),
    "not a number": ((("lr: 1.0e-3", "lr: .nan"),), r"a finite number was required, found .nan"),
    "a number of five thousand digits": (
        (("seed: 42", f"seed: {'9' * 5000}"),),
        r"a number of at most 40 digits was required, found 5000",
    ),
    "a number beyond all": (
        (("lr: 1.0e-3", "lr: 1.0e+999"),),
        r"a finite number was required, found 1.0e\+999",
    ),
    "scores without a leaderboard": (
        (("policy: robust", "policy: robust, scores: {plain: 0.7}"),),
        r"select: scores are used only by policy leaderboard",
    ),
    "leaderboard without a public half": (
        (("policy: robust", "policy: leaderboard"),),
        r"select.policy leaderboard looks at the public half of a labelled test set; add data.test.public",
    ),
    "score of an unknown variant": (
        (("policy: robust", "policy: leaderboard, scores: {plane: 0.7}"),),
        r"select.scores: no variant 'plane'.*did you mean 'plain'",
    ),
    "member listed twice": (
        (("policy: robust", "policy: [plain, half_cutmix, plain]"),),
        r"select.policy: a list of distinct variants was required, found \['plain', 'half_cutmix', 'plain'\]",
    ),
    "no member listed": (
        (("policy: robust", "policy: []"),),
        r"select.policy: a list of distinct variants was required, found \[\]",
    ),
    "public half without labels": (
        ((", label: ans}", ", public: 0.5}"),),
        r"data.test.public divides labelled test sets",
    ),
    "diverse without confirm": (
        (
            ("policy: robust", "policy: diverse"),
            ("confirm: {finalists: 2, seeds: [0], folds: 3}", "confirm: null"),
        ),
        r"select.policy diverse depends on out-of-fold predictions",
    ),
    "tag": ((("seed: 42", "seed: !!python/object:os.system x"),), r"tags are not part of a spec"),
    "frozen head outside a variant": (
        (("head: single", "head: {name: frozen_deep, from: plain}"),),
        r"train.model.head: frozen_deep depends on another variant; move it into a variant",
    ),
    "frozen head of nobody": (
        (("{train.augment.cutmix: half}", "{train.model.head: {name: frozen_deep, from: plan}}"),),
        r"another variant was required \(plain\), found 'plan'; did you mean 'plain'",
    ),
    "frozen head of another preparation": (
        (
            (
                "{train.augment.cutmix: half}",
                "{prep: {steps: [{name: resize, size: 32}]}, train.model.head: {name: frozen_deep, from: plain}}",
            ),
        ),
        r"from: 'plain' must have the same prep, but they differ",
    ),
    "frozen head in the space": (
        (
            ("choice: [single, shallow, deep]", "choice: [single, frozen_deep]"),
            ("deep}}", "single}}"),
        ),
        r"frozen_deep is set in a variant, never in the space",
    ),
    "misspelt operation": (
        (("policy: basic", "policy: [{name: HorizontalFlop}]"),),
        r"albumentations has no operation 'HorizontalFlop'; nearest: HorizontalFlip",
    ),
    "alpha of another length": (
        (("loss: focal", "loss: {name: focal, alpha: {age: [1, 2]}}"),),
        r"train.loss.alpha.age: 3 numbers were required, one per class, found 2",
    ),
    "rule of a mix": (
        (("policy: basic", "policy: none, mixup: {name: offline, only: {age: [200, 60]}}"),),
        r"only.age: must be \[low, high\]",
    ),
    "class weights for a loss without samples": (
        (("  plain: {}", "  plain: {train.loss: f1, train.balance: class_weights}"),),
        r"variants.plain: .*loss 'f1' has none.*set balance: none or weighted_sampler",
    ),
    "order of a label without one": (
        (("head: single", "head: {name: deep, ordered: {mask: corn}}"),),
        r"train.model.head.ordered.mask: a label with `bins` of a number was required, 'mask' lists",
    ),
    "order of an unknown label": (
        (("head: single", "head: {name: deep, ordered: {aeg: corn}}"),),
        r"train.model.head.ordered: no label 'aeg'; labels are .*did you mean 'age'",
    ),
    "order for a head without branches": (
        (("head: single", "head: {name: single, ordered: {age: corn}}"),),
        r"head 'single' does not use 'ordered'",
    ),
    "alpha of a branch with another loss": (
        (
            ("head: single", "head: {name: deep, ordered: {age: corn}}"),
            ("loss: focal", "loss: {name: focal, alpha: {age: [1, 2, 3]}}"),
        ),
        r"train.loss.alpha.age: .*'age' learns by 'corn'",
    ),
    "part of a mix that is no loss": (
        (("  plain: {}", "  plain: {train.loss: {f1: 0.4, focall: 0.6}}"),),
        r"train.loss.focall.*focal",
    ),
    "borders of training that move another number of borders": (
        (("bins: [30, 60]", "bins: [30, 60], train_bins: [57]"),),
        r"train_bins moves the borders of bins in training: as many were required",
    ),
    "variant that changes what is scored": (
        (("  plain: {}", "  plain: {data.labels.age.bins: [30, 57]}"),),
        r"variants.plain: may override .*data.labels.<label>.train_bins.*found 'data.labels.age.bins'",
    ),
    "two variants that are one": (
        (("  plain: {}", "  plain: {}\n  again: {train.augment.cutmix: none}"),),
        r"variants.again: settings of its own were required, found those of 'plain'; remove one of the two",
    ),
    "two variants that the space makes one": (
        (("  plain: {}", "  plain: {}\n  deep: {train.model.head: deep}"),),
        r"variants.deep: settings of its own were required, found those of 'plain'",
    ),
    "unknown label": (
        (
            ("loss: focal", "loss: {name: focal, weights: {agee: 2}}"),
            ("head: single", "head: deep"),
        ),
        r"no label 'agee'.*did you mean 'age'",
    ),
    "bare number as duration": (
        [("duration: 4 epochs", "duration: 4")],
        r"train.duration: required a duration such as '10",
    ),
    "bare number as grace": (
        [("grace: 2 epochs", "grace: 2")],
        r"grace: required whole epochs such as '2 epochs', found 2",
    ),
    "slash in the name": (
        [("name: quickstart", "name: my/masks")],
        r"name: required 1 to 63 small letters, digits, - and _",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_spec_is_refused_with_line_column_and_what_to_do(write, name):
    changes, message = BROKEN[name]
    path = write(*changes)
    with pytest.raises(DocumentError, match=message) as caught:
        read(path, try_components=True)
    changed = [
        at
        for at, pair in enumerate(
            zip(SOURCE.splitlines(), path.read_text().splitlines(), strict=False), 1
        )
        if pair[0] != pair[1]
    ]
    hypothesis = 1 + SOURCE[: SOURCE.index("hypotheses:")].count("\n")
    assert {changed[0], changed[0] + 1, hypothesis} & {
        problem.line for problem in caught.value.problems
    }
    assert f"{path}:{caught.value.problems[0].line}:{caught.value.problems[0].column}: " in str(
        caught.value
    )


def test_a_grid_of_a_billion_points_is_refused_before_it_is_listed(write):
    space = "train.optimizer.lr: {float: [0.0, 1.0], step: 1.0e-9}"
    path = write(
        ("sampler: tpe", "sampler: grid"),
        ("train.optimizer.lr: {float: [5.0e-4, 3.0e-3], log: true}", space),
    )
    with pytest.raises(DocumentError, match="at most 1,000,000 points were required, found"):
        read(path)


def test_a_grid_over_all_numbers_of_a_range_is_refused_at_the_range(write):
    path = write(("sampler: tpe", "sampler: grid"))
    line = 1 + path.read_text()[: path.read_text().index("train.optimizer.lr")].count("\n")
    with pytest.raises(DocumentError, match="sampler grid needs a step or a list") as caught:
        read(path)
    assert [line] == [problem.line for problem in caught.value.problems]
    stepped = "train.optimizer.lr: {float: [5.0e-4, 3.0e-3], step: 5.0e-4}"
    read(
        write(
            ("sampler: tpe", "sampler: grid"),
            (path.read_text().splitlines()[line - 1].strip(), stepped),
        )
    )


def test_an_empty_file_is_refused(write):
    with pytest.raises(DocumentError, match="found an empty file"):
        read(write(text=""))


def test_ten_thousand_levels_are_refused_without_recursion(write):
    with pytest.raises(DocumentError, match="at most 24 levels"):
        read(write(text="[" * 10_000))


def test_all_problems_are_told_at_once(write):
    with pytest.raises(DocumentError) as caught:
        read(write(("batch_size: 16", "batch_size: 0"), ("seed: 42", "sead: 42")))
    assert len(caught.value.problems) == 2


def test_settings_of_a_point_replace_the_component_they_name(write):
    experiment = read(write())
    _, arm = experiment.setting(
        "plain", {"train.model.head.name": "deep", "train.model.head.hidden": 200}
    )
    assert (arm.train.model.head.name, arm.train.model.head.hidden) == ("deep", 200)


def test_a_variant_may_move_a_border_in_training_and_is_another_setting(write):
    experiment = read(
        write(("  plain: {}", "  plain: {}\n  moved: {data.labels.age.train_bins: [30, 57]}"))
    )
    assert experiment.arms["moved"].data.labels["age"].train_bins == [30, 57]
    assert experiment.arms["moved"].data.labels["age"].bins == [30, 60]
    assert experiment.setting("moved", {})[0] != experiment.setting("plain", {})[0]


@pytest.mark.parametrize("other", ["{strategy: profile}", "{seed: 7}", "{val: 0.3}"])
def test_a_claim_may_compare_arms_of_different_splits(write, other):
    read(write(("{train.augment.cutmix: half}", f"{{data.split: {other}}}")))


def test_equal_variants_with_spaces_of_their_own_differ(write):
    own = "  variant_spaces: {again: {train.optimizer.lr: {float: [1.0e-2, 1.0e-1]}}}\n  space:\n"
    assert read(write(("  plain: {}", "  plain: {}\n  again: {}"), ("  space:\n", own))).arms


def test_an_override_is_recorded_and_used(write):
    experiment = read(write(), ["train.optimizer.lr=3e-4"])
    assert (experiment.spec.train.optimizer.lr, experiment.overrides) == (
        3e-4,
        {"train.optimizer.lr": 3e-4},
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=[1", r"^--set seed: not valid YAML: .*expected ',' or '\]'"),
        (
            f"seed={'9' * 5000}",
            r"^--set seed: a number of at most 40 digits was required, found 5000$",
        ),
        ("seed=!!python/name:os.system x", r"^--set seed: tags are not part of a spec"),
        ("seed={a: 1, a: 2}", r"^--set seed: key 'a' stands twice"),
        ("seed=1\n---\n2", r"^--set seed: one file is one experiment"),
        ("seed=2020-01-01", r"seed: required a valid integer, found '2020-01-01'"),
        ("seed", "required path=value"),
        (
            "vote={group_mean: null}",
            r"vote.group_mean: required a list, found null; write \[\] for none",
        ),
        ("vote=[]", r"vote: required a mapping, found \[\]"),
    ],
)
def test_an_override_that_is_no_value_is_refused_in_a_sentence(write, override, message):
    with pytest.raises(SpecError, match=message):
        read(write(), [override])


def test_a_date_is_text_like_in_a_spec(write):
    assert read(write(), ["name=2020-01-01"]).spec.name == "2020-01-01"


def test_how_to_run_is_no_part_of_the_identity(write):
    plain = read(write()).identity()
    assert (
        plain
        == read(
            write(
                ("per_trial: {cpu: 1}", "per_trial: {cpu: 2}"), ("mode: offline", "mode: disabled")
            )
        ).identity()
    )
    assert plain != read(write(("seed: 42", "seed: 43"))).identity()


def test_more_than_one_gpu_for_a_trial_is_refused_with_the_reason(write):
    with pytest.raises(SpecError, match="gpu: at most 1 was required, found 2: a trial trains on"):
        read(write(("per_trial: {cpu: 1}", "per_trial: {cpu: 1, gpu: 2}")))


def test_every_experiment_reads():
    for path in sorted((ROOT / "experiments").rglob("*.yaml")):
        assert read(path, check_roots=False).arms


def test_the_schema_names_both_forms_of_a_component():
    assert {"type": "string", "enum": ["deep", "frozen_deep", "shallow", "single"]} in schema()[
        "$defs"
    ]["Model"]["properties"]["head"]["anyOf"]


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


def test_check_exits_two_and_imports_nothing_heavy(write, tmp_path):
    bad = run("-m", "orchestrator", "check", str(write(("seed: 42", "sead: 42"))), cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    check = ("-X", "importtime", "-m", "orchestrator", "check", "--offline")
    good = run(*check, str(write()), cwd=tmp_path)
    assert good.returncode == 0
    heavy = {"torch", "ray", "timm", "optuna", "rembg", "deepface", "pandas", "wandb"}
    assert not heavy & {
        line.rsplit("|", 1)[-1].strip().split(".")[0]
        for line in good.stderr.splitlines()
        if "import time:" in line
    }


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(write, tmp_path):
    spec = write(("per_trial: {cpu: 1}", "per_trial: {cpu: 1, gpu: 1}"))
    refused = run("-m", "orchestrator", "submit", str(spec), cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert refused.returncode == 2
    assert "gpu: 1 was asked for, this machine has 0 GPU(s)" in refused.stderr
    assert not (tmp_path / "runs-store").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["confirm=null"], "search.folds: the folds of confirm were required, found confirm: null"),
        (
            ["confirm.seeds=[0, 1]", "confirm.folds=2"],
            r"search.folds: at most 4 were required, .* \(2 seeds x 2 folds\), found 5",
        ),
    ],
)
def test_folds_of_a_search_are_folds_of_confirm(write, changes, message):
    folds = ["search.scheduler=none", "search.folds=5", "hypotheses=[]", "select.policy=validation"]
    with pytest.raises(SpecError, match=message):
        read(write(), [*folds, *changes])
    spec = read(write(), [*folds, "confirm.seeds=[2, 3]", "confirm.folds=3"]).spec
    assert [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1)] == spec.search.fold_steps(spec.confirm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["vote.group_mean=[gender]"], "vote.group_mean: the groups of the test photos were required"),
        (["vote.group_mean=[sex]", "data.test=null"], "vote.group_mean: no label 'sex'; labels are"),
        (
            ["vote.group_mean=[age]", "data.test=null", "data.split.strategy=random"],
            "vote.group_mean: groups that are kept together were required",
        ),
        (["train.group_photos=1", "data.group=sample_id"], "train.group_photos: groups of several photos"),
    ],
)  # fmt: skip
def test_a_setting_about_groups_needs_groups(write, changes, message):
    with pytest.raises(SpecError, match=message):
        read(write(), changes)
    read(write(), ["vote.group_mean=[gender]", "data.test={hold_out: 0.3}"])
