import pytest

from orchestrator.cluster.connection import _is_local


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
    assert here is _is_local(address)
