"""Signals become a question, and nothing of that stays behind."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

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


def leave(name):
  raise AssertionError(f'not deaf, but left by {name}')


@pytest.mark.parametrize('number', signals.StopRequest.SIGNALS)
def test_where_nothing_is_to_be_saved_a_signal_ends_it_at_once(number):
  before, fd = handlers(), signal.set_wakeup_fd(-1)
  signal.set_wakeup_fd(fd)
  with pytest.raises(signals.Stopped, match=signal.Signals(number).name):
    with signals.StopRequest() as stop, stop.at_once(leave):
      os.kill(os.getpid(), number)
      raise AssertionError('it went on')
  assert handlers() == before
  assert signal.set_wakeup_fd(-1) == fd


def test_no_library_takes_it_for_an_error_of_its_own():
  with pytest.raises(signals.Stopped):
    with signals.StopRequest() as stop, stop.at_once(leave):
      try:
        os.kill(os.getpid(), signal.SIGTERM)
      except Exception:  # as those that try again have it
        raise AssertionError from None


def test_between_rounds_it_is_a_question_and_answered_after_the_last():
  rounds = []
  with pytest.raises(signals.Stopped):
    with signals.StopRequest() as stop, stop.at_once(leave):
      with stop.between_rounds():
        os.kill(os.getpid(), signal.SIGTERM)
        rounds.append(stop.requested())
      rounds.append('evaluated')
  assert rounds == ['SIGTERM']


def test_a_run_that_has_saved_is_not_hurried(monkeypatch):
  """A second signal while it writes does not end it."""
  monkeypatch.setattr(signals, 'PATIENCE', 0.0)
  monkeypatch.setattr(signals, 'CLOSING', 0.0)
  left = []
  with pytest.raises(RuntimeError):
    with signals.StopRequest() as stop, stop.at_once(left.append):
      try:
        with stop.between_rounds():
          os.kill(os.getpid(), signal.SIGTERM)
          raise RuntimeError  # as the driver does
      finally:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
  assert left == []


DEAF = """
import ctypes, os, threading, time
from fedms_jax.cluster import signals
def leave(name):
  print(name, flush=True)
  os._exit(75)
with signals.StopRequest() as stop, stop.at_once(leave):
  lock = ctypes.CDLL(None).pthread_mutex_lock
  mutex = ctypes.create_string_buffer(64)
  lock(mutex)
  print('ready', flush=True)
  lock(mutex)  # waits in C, whatever interrupts it, and never comes back
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_main_thread_that_hears_nothing_is_not_waited_for(number):
  process = subprocess.Popen(
    [sys.executable, '-c', DEAF], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  time.sleep(0.5)  # it is about to go deaf
  process.send_signal(number)
  assert process.stdout.read() == signal.Signals(number).name + '\n'
  assert process.wait(timeout=30) == 75


ROOT = pathlib.Path(__file__).parents[2]
SMOKE = [
  *(sys.executable, '-m', 'fedms_jax', '--noprogress'),
  '--flagfile=launch/presets/smoke.flags',
]


def test_who_waits_for_a_coordinator_hears_a_signal(tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  process = subprocess.Popen(
    [
      *SMOKE,
      f'--distributed.coordinator=127.0.0.1:{port}',
      '--distributed.processes=2',
      '--distributed.process_id=0',
      f'--workdir={tmp_path}/run',
    ],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_until(lambda: listens(port), process)
  assert loopback_only(port)
  process.send_signal(signal.SIGTERM)
  said = process.communicate(timeout=30)[1]
  assert process.returncode == 75, said
  assert 'stopped by SIGTERM' in said and 'Traceback' not in said
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_who_pre_trains_hears_a_signal(tmp_path, number):
  process = subprocess.Popen(
    [*SMOKE, '--pretrain.epochs=1000000', f'--workdir={tmp_path}'],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_until((tmp_path / 'stages.json').exists, process)
  time.sleep(1.0)
  process.send_signal(number)
  said = process.communicate(timeout=30)[1]
  assert process.returncode == 75, said
  # After the line that says what the server does, if it has begun to.
  assert said.splitlines()[-1].startswith('fedms: stopped by SIG')
  assert 'Traceback' not in said
  assert not (tmp_path / 'lock.json').exists()


def wait_until(true, process):
  while not true():
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)


def sockets(port):
  """Local addresses, in the kernel's words, that listen on a port."""
  rows = []
  for name in ('tcp', 'tcp6'):
    lines = pathlib.Path('/proc/net', name).read_text().splitlines()[1:]
    rows += [line.split() for line in lines]
  listening = [row[1].split(':') for row in rows if row[3] == '0A']
  return [address for address, at in listening if int(at, 16) == port]


def listens(port):
  return bool(sockets(port))


def loopback_only(port):
  mapped, own = '0' * 16 + 'FFFF0000' + '0100007F', '0' * 24 + '01000000'
  return all(a in ('0100007F', mapped, own) for a in sockets(port))
