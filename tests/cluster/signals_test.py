"""Signals become a question, and nothing of that stays behind."""

import os
import signal
import threading

import pytest

from fedms_jax.cluster import signals


def handlers():
  return [signal.getsignal(number) for number in signals.StopRequest.SIGNALS]


@pytest.mark.parametrize('number', signals.StopRequest.SIGNALS)
def test_a_signal_asks_to_stop_and_interrupts_nothing(number):
  with signals.StopRequest() as stop:
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested() == signal.Signals(number).name


def test_the_first_signal_is_the_one_reported():
  with signals.StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested() == 'SIGUSR1'


def test_the_second_interrupt_interrupts():
  # A shell starts what runs in the background with the signal ignored.
  outer = signal.signal(signal.SIGINT, signal.default_int_handler)
  before = handlers()
  with pytest.raises(KeyboardInterrupt), signals.StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
  assert handlers() == before
  signal.signal(signal.SIGINT, outer)


def test_handlers_come_back_after_an_error():
  before = handlers()
  with pytest.raises(RuntimeError), signals.StopRequest():
    assert handlers() != before
    raise RuntimeError
  assert handlers() == before


def test_outside_the_main_thread_nothing_is_caught():
  before, seen = handlers(), []

  def run():
    with signals.StopRequest() as stop:
      seen.append((handlers() == before, stop.requested()))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert seen == [(True, '')]
