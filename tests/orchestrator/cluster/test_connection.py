import socket
import subprocess
import sys

import pytest

from orchestrator.base.errors import UserError
from orchestrator.cluster import connection
from orchestrator.cluster.connection import _require_answer, is_local
from orchestrator.cluster.local_watch import ServerDied


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("auto", True),
        ("local", True),
        ("localhost:6379", True),
        ("127.0.0.1:6379", True),
        ("ray://127.0.0.1:10001", True),
        ("[::1]:6379", True),
        ("::1", False),  # is no address without its brackets
        ("local-gpu:6379", False),
        ("automl-head:6379", False),
        ("localhost.example.org:6379", False),
        ("127.example.org:6379", False),
        ("10.0.0.7:6379", False),
        ("", False),
    ],
)
def test_only_this_machine_needs_no_token(address, here):
    assert here is is_local(address)


@pytest.mark.ray
@pytest.mark.slow
def test_a_dashboard_that_does_not_come_up_ends_nothing_and_its_last_line_is_told(monkeypatch):
    from ray._private import ray_constants

    from orchestrator.cluster.connection import connect

    original = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    assert original >= 30  # the name still means what it meant
    monkeypatch.setattr(ray_constants, "RAY_DASHBOARD_STARTUP_TIMEOUT_S", 0.1)
    with connect(None, num_cpus=1) as cluster:
        assert cluster.dashboard_url is None
        assert cluster.dashboard_problem
        assert 1 == cluster.resources["CPU"]


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_is_gone_is_told_at_once(form):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = form.format(port=taken.getsockname()[1])
        with pytest.raises(UserError, match="nothing answers there"):
            _require_answer(address)


def test_a_cluster_that_answers_or_is_found_by_ray_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        _require_answer(f"127.0.0.1:{server.getsockname()[1]}")
    _require_answer("auto")
    _require_answer(None)


@pytest.mark.parametrize("n_failures", [0, 2, 3])
def test_a_local_cluster_whose_servers_die_while_it_starts_is_started_again(
    monkeypatch, n_failures
):
    tried = []

    def start(mark, *options, **more):
        tried.append(mark)
        if len(tried) <= n_failures:
            raise ServerDied("the local Ray cluster lost its raylet")
        return "context"

    monkeypatch.setattr(connection, "_init_local", start)
    options = {"num_cpus": 1, "num_gpus": 0, "dashboard": False, "may_exit": False}
    if n_failures < 3:
        with connection._start_local(**options) as context:
            assert "context" == context
    else:
        with pytest.raises(ServerDied), connection._start_local(**options):
            pass
    assert len(set(tried)) == min(3, n_failures + 1), "a cluster each"


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_while_ray_starts_is_answered_by_this_process():
    code = """if True:
        import os, signal, threading, time
        import psutil
        from orchestrator.cluster.connection import connect

        def answer(*_):
            raise KeyboardInterrupt

        def send():
            names = []
            while "raylet" not in names:
                time.sleep(0.02)
                names = [child.name() for child in psutil.Process().children(recursive=True)]
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, answer)
        threading.Thread(target=send, daemon=True).start()
        try:
            with connect(None, num_cpus=1, dashboard=False):
                print("up")
        except KeyboardInterrupt:
            print("interrupted")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            print("interrupted after Ray's end")
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    told = "interrupted\ninterrupted after Ray's end\n"
    assert (0, told) == (done.returncode, done.stdout), done.stderr
