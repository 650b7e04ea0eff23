"""The contest's tables, run again: `make contest`, or `make contest ONLY=heads`.

The headline at 160 px takes hours, so it runs only by name: `make contest ONLY=headline`.

`python -m tests.campaign.contest [--only TABLE] [--store DIR]` submits the specs of
experiments/contest with profile small, one after the other on one store, so that they share
catalogs, preparations, features and trainings. What is finished is not run again; what was
interrupted goes on. Then it writes experiments/contest/RESULTS.md. `--write` only writes.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.run_dir import RunPaths
from tests.campaign.process_samples import run_sampled

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments/contest"
TABLES = (
    "splits",
    "ensembles",
    "exclusions",
    "losses",
    "optimizers",
    "folds",
    "mixup",
    "cutmix",
    "heads",
    "preparation",
    "search",
    "backbones",
)
"""The cheap ones first."""
HEADLINE = "headline"
"""The study of experiments/recipes answers the test people; model A beside it, as large and as long."""
POLICIES = ("robust", "leaderboard", "diverse", "validation")
N_DRAWS = 5
_RECORDS = "contest.jsonl"


@dataclass(frozen=True)
class Job:
    """One submit of a table's spec."""

    table: str
    label: str  # tells apart the submits of one table
    changes: tuple[str, ...]  # of --set
    spec: str = ""  # the table's own where empty

    @property
    def command(self) -> list[str]:
        """The arguments after `python -m orchestrator`."""
        options = [text for change in self.changes for text in ("--set", change)]
        return ["submit", self.spec or f"experiments/contest/{self.table}.yaml", *options]

    @property
    def shown(self) -> str:
        """The command as a user types it."""
        return shlex.join(["python", "-m", "orchestrator", *self.command])


@dataclass(frozen=True)
class Published:
    """A claim about two arms, and what the team published of it."""

    table: str
    claim: str
    sign: int  # of the published difference; 1 where only a choice was published
    macro_f1: float | None = None  # difference of the two arms
    accuracy: float | None = None
    published: str = ""  # in words, where there are no figures
    why: str = ""  # what may explain an answer of another sign


@dataclass(frozen=True)
class Record:
    """What one finished submit took."""

    table: str
    label: str
    changes: tuple[str, ...]
    run_id: str
    wall_s: float
    cpu_s: float
    peak_bytes: int  # of the whole process tree; shared pages count once a process


def published_claims() -> list[Published]:
    """Read what the team published, in the order of the tables."""
    rows = tomllib.loads((FOLDER / "published.toml").read_text(encoding="utf-8"))["claims"]
    claims = []
    for row in rows:
        sign = 1 if row.get("macro_f1", row.get("sign", 1)) > 0 else -1
        claims.append(Published(**{**row, "sign": sign}))
    return sorted(claims, key=lambda claim: TABLES.index(claim.table))


def changes_of(table: str) -> tuple[str, ...]:
    """Return what profile small changes in a spec, as texts of `--set`."""
    profile = tomllib.loads((FOLDER / "small.toml").read_text(encoding="utf-8"))
    changes: dict[str, Any] = {**profile["every"], **profile.get(table, {})}
    return tuple(f"{path}={_as_yaml(value)}" for path, value in changes.items())


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def jobs_of(table: str) -> list[Job]:
    """Return the submits of a table.

    It is one for most. Heads have two more: in one, model A answers the test photos alone, in the
    other the mean over a person's photos answers gender and age. Ensembles have one per policy and
    set of seeds. These train nothing anew.
    """
    if table == HEADLINE:
        return _headline_jobs()
    changes = changes_of(table)
    if table == "heads":
        alone = (*changes, "select={policy: [A]}")
        mean = (*changes, "vote={group_mean: [gender, age]}")
        return [Job(table, "", changes), Job(table, "A", alone), Job(table, "mean", mean)]
    if table != "ensembles":
        return [Job(table, "", changes)]
    jobs = []
    for draw in range(N_DRAWS):
        seeds = [2 * draw, 2 * draw + 1]
        for policy in POLICIES:
            more = (f"seed={draw}", f"confirm.seeds={seeds}", f"select.policy={policy}")
            jobs.append(Job(table, f"{policy}-{draw}", (*changes, *more)))
    return jobs


def _headline_jobs() -> list[Job]:
    """Return the submits of the headline; the first trains, the second votes otherwise.

    Model A trains on half of the people at a time, as its table does; the study on four of five.
    """
    study = "experiments/recipes/study_finetuned.yaml"
    both = ("confirm.seeds=[0, 1]", "select.members=2")
    steps = "prep.steps=[{name: center_crop}, {name: resize, size: 160}]"
    long = "train.duration=8 epochs"
    alone = (
        "variants={A: {}}",
        "hypotheses=[]",
        "search={folds: 2}",  # with one setting there is nothing to search, so no training for it
        "confirm.finalists=1",
        "select.members=1",
    )
    return [
        Job(HEADLINE, "mean", both, study),
        Job(HEADLINE, "", (*both, "vote={}"), study),
        Job(
            HEADLINE,
            "A",
            (*changes_of("heads"), steps, long, *alone),
            "experiments/contest/heads.yaml",
        ),
    ]


def run_job(job: Job, store: Path) -> Record:
    """Submit one job and note what it took.

    Raises:
        SystemExit: the run did not end well.
    """
    store.mkdir(parents=True, exist_ok=True)
    log = store / f"{job.table}{'-' * bool(job.label)}{job.label}.log"
    command = [sys.executable, "-m", "orchestrator", *job.command, "--store", str(store)]
    samples = run_sampled(command, cwd=ROOT, log=log)
    if samples.returncode:
        told = "\n".join(log.read_text(encoding="utf-8").splitlines()[-4:])
        where = f"see {log}, and small.toml for the data"
        sys.exit(f"{told}\n{job.table}: submit ended with {samples.returncode}; {where}")
    record = Record(
        job.table,
        job.label,
        job.changes,
        _run_of(log),
        samples.wall_s,
        samples.cpu_s(),
        samples.peak_tree_bytes(),
    )
    with (store / _RECORDS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")
    return record


def _run_of(log: Path) -> str:
    """Return the run whose report a submit has named; others may be at work in the store."""
    return re.findall(r"/runs/([^/\s]+)/report/index\.html", log.read_text(encoding="utf-8"))[-1]


def read_all_records(store: Path) -> list[Record]:
    """Return what the finished submits took, in their order."""
    path = store / _RECORDS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for line in lines:
        facts = json.loads(line)
        record = Record(**{**facts, "changes": tuple(facts["changes"])})
        if RunPaths(store / "runs" / record.run_id).summary.is_file():
            records.append(record)
    return records


def read_records(store: Path) -> list[Record]:
    """Return the finished submits; of two for one job the later."""
    records = {(record.table, record.label): record for record in read_all_records(store)}
    return list(records.values())


def is_finished(job: Job, records: list[Record]) -> bool:
    """Return True if a job ran with the same changes."""
    return any(
        (record.table, record.label, record.changes) == (job.table, job.label, job.changes)
        for record in records
    )


def main() -> None:
    """Run the tables that are not finished, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=(*TABLES, HEADLINE))
    parser.add_argument("--store", type=Path, default=ROOT / "runs-store/contest")
    parser.add_argument("--write", action="store_true", help="run nothing")
    asked = parser.parse_args()
    store = asked.store.resolve()
    chosen = TABLES if asked.only is None else (asked.only,)
    for table in () if asked.write else chosen:
        for job in jobs_of(table):
            if is_finished(job, read_records(store)):
                continue
            record = run_job(job, store)
            print(f"{table} {job.label}: {record.wall_s:.0f} s, run {record.run_id}", flush=True)
    from tests.campaign.contest_results import write_results

    print(write_results(store, FOLDER / "RESULTS.md"))


if __name__ == "__main__":
    main()
