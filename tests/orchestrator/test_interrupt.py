import signal

import pytest

from orchestrator import interrupt


def test_an_interrupt_that_a_library_swallowed_comes_again(monkeypatch):
    monkeypatch.setattr(interrupt, "_asked", [])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupt.listen()
        interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
