"""The contest's specs: each reads, can be planned in both profiles, and says what it asks."""

import pytest

from orchestrator.planning.plan import make_plan, n_trials
from orchestrator.spec.load import read
from orchestrator.stages import STAGES
from orchestrator.store.artifacts import Store
from tests.campaign import contest

HEAD = ("Question:", "Published:", "Command:", "Time:", "Changes:")


@pytest.fixture(scope="module")
def no_photos(tmp_path_factory):
    """A data set of one person, in the contest's layout: a plan only lists files."""
    root = tmp_path_factory.mktemp("contest")
    for place in ("train/images/1_female_x_30/normal.jpg", "eval/images/a.jpg"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    (root / "train/train.csv").write_text("id,gender,race,age,path\n1,female,x,30,1_female_x_30\n")
    (root / "eval/info.csv").write_text("ImageID,ans\na.jpg,0\n")
    return root


@pytest.mark.parametrize("table", contest.TABLES)
def test_every_table_can_be_planned_in_both_profiles(table, no_photos, tmp_path):
    spec = contest.FOLDER / f"{table}.yaml"
    root = f"data.source.root={no_photos / 'train'}"
    full = read(spec, [root])
    planned = make_plan(full, Store(tmp_path), STAGES)
    assert planned.trials == n_trials(full)
    assert full.spec.resources.per_trial.gpu
    assert full.spec.data.test is not None
    small = contest.changes_of(table)
    changes = [*small, root]
    if any(text.startswith("data.test={") for text in small):
        changes.append(f"data.test.root={no_photos / 'eval'}")
    cheap = read(spec, changes)
    assert make_plan(cheap, Store(tmp_path), STAGES).trials == n_trials(cheap)
    assert not cheap.spec.resources.per_trial.gpu
    assert {arm.prep.size for arm in cheap.arms.values()} == {96}


@pytest.mark.parametrize("table", contest.TABLES)
def test_every_table_says_what_it_asks_and_what_was_published(table):
    text = (contest.FOLDER / f"{table}.yaml").read_text()
    places = [text.find(f"# {name}") for name in HEAD]
    assert places == sorted(places)
    assert min(places) == 0
    assert f"make contest ONLY={table}" in text
    assert f"submit experiments/contest/{table}.yaml" in text


def test_every_claim_of_the_small_profile_is_beside_what_was_published():
    published = [(claim.table, claim.claim) for claim in contest.published_claims()]
    asked = []
    for table in contest.TABLES:
        changes = list(contest.changes_of(table))
        small = read(contest.FOLDER / f"{table}.yaml", changes, check_roots=False)
        asked += [(table, claim) for claim in small.spec.hypotheses]
    assert sorted(published) == sorted(asked)
    assert {claim.sign for claim in contest.published_claims()} == {-1, 1}


def test_ensembles_run_by_every_policy_on_five_sets_of_seeds():
    jobs = contest.jobs_of("ensembles")
    assert len({job.label for job in jobs}) == 4 * contest.N_DRAWS == len(jobs)
    seeds = [text for text in jobs[-1].changes if text.startswith("confirm.seeds")]
    assert seeds[-1] == "confirm.seeds=[8, 9]"
    assert "'confirm.seeds=[8, 9]'" in jobs[-1].shown
