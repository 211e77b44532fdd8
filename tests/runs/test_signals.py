"""A signal asks for an end, a second Ctrl-C insists, and afterwards all is as it was."""

import itertools
import os
import queue
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_protosphere.errors import TrainingInterrupted
from hf_protosphere.runs.signals import Stop, end_with_launcher, interruptions, stop_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_an_end(number, capsys):
    alone = Accelerator(cpu=True)
    with stop_signals() as stop:
        assert not stop.now(alone)
        assert not stop.agreed(alone)
        signal.raise_signal(number)
        assert stop.now(alone)
        assert stop.agreed(alone)
    assert stop.signal == number
    assert "Stopping soon, with a checkpoint" in capsys.readouterr().out


def test_one_process_of_several_speaks(capsys):
    with stop_signals(is_main_process=False):
        signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().out == ""


@pytest.fixture
def heard():
    """SIGINT as Python has it: a shell's `&` has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_insists_but_a_second_sigterm_does_not(heard):
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the launcher passes it on
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_several_processes_stop_at_the_same_step():
    def of_two(other):
        def gather(asked):
            return torch.cat([asked, torch.tensor([other])])

        return SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)

    asked, not_asked = Stop(signal.SIGTERM), Stop()
    assert not asked.now(of_two(0))  # not before the other one knows
    assert asked.agreed(of_two(0))
    assert not_asked.agreed(of_two(signal.SIGTERM))
    assert not_asked.signal == signal.SIGTERM
    assert not Stop().agreed(of_two(0))


@pytest.mark.parametrize("number", SIGNALS)
def test_interruptions_come_at_once_with_their_number(number):
    seen = []

    def work():
        with interruptions():
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt as interruption:
                seen.append(interruption.args)
                raise

    with pytest.raises(TrainingInterrupted, match="the same command goes on") as interruption:
        work()
    assert (interruption.value.signal, seen) == (number, [(number,)])


def test_in_a_thread_the_signals_are_left_alone():
    def handlers():
        with stop_signals() as stop, interruptions():
            return stop.signal, [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(handlers).result() == (0, [*map(signal.getsignal, SIGNALS)])


@pytest.mark.parametrize("lives", [3, 0])  # 0: it ended while this process imported torch
def test_a_process_ends_with_its_launcher(lives, monkeypatch):
    ended, parents = queue.Queue(), itertools.chain([7] * lives, itertools.repeat(1))
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda process, number: ended.put((process, number)))
    monkeypatch.setattr(os, "_exit", ended.put)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "0")
    end_with_launcher(7, pause=0.001)
    assert ended.get(timeout=10) == (os.getpid(), signal.SIGTERM)
    assert ended.get(timeout=10) == 143  # one that does not obey
