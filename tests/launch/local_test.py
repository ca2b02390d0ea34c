"""Processes on one machine: who sees what, and what becomes of the others."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from fedms_jax.launch import command, local
from tests.launch import runs


def launcher(*own, flags=(), told=None):
  return subprocess.Popen(
    [sys.executable, '-m', 'launch.local']
    + [f'--program={shlex.join(runs.STAND_IN)}', *own, '--', *flags],
    cwd=runs.ROOT,
    env=os.environ | ({} if told is None else {'STAND_IN': json.dumps(told)}),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def test_each_process_has_its_place_and_its_log(tmp_path):
  done = launcher(
    '--processes=3',
    flags=[f'--workdir={tmp_path}', '--seed=4', '--distributed.timeout=7'],
  )
  out, err = done.communicate()
  assert done.returncode == 0, err
  found = runs.places(tmp_path)
  coordinator = found[0][0][0]
  assert re.fullmatch(r'127\.0\.0\.1:\d+', coordinator)
  assert found == [([coordinator, 3, i, None], '7') for i in range(3)]
  assert out == (tmp_path / 'logs/process-0.log').read_text()
  assert json.loads((tmp_path / 'summary.json').read_text())
  assert '--seed=4\n' in (tmp_path / 'flags.txt').read_text()


def test_the_flags_of_a_run_do_not_depend_on_how_it_was_started(tmp_path):
  for name, processes in (('one', 1), ('two', 2)):
    flags = [f'--workdir={tmp_path / name}']
    assert launcher(f'--processes={processes}', flags=flags).wait() == 0
  one, two = (
    (tmp_path / name / 'flags.txt').read_text() for name in ('one', 'two')
  )
  assert one == two


# Process i does the i-th word of $DO: ends with that code, or is killed.
PROGRAM = """\
#!/bin/bash
words=($DO)
for flag; do
  [[ $flag == --distributed.process_id=* ]] && word=${words[${flag#*=}]}
done
[[ $word == kill ]] && kill -KILL $$
exit "$word"
"""


@pytest.mark.parametrize(
  ('words', 'code', 'said'),
  [
    ('0 0', 0, ''),
    ('75 75', 75, 'process 1 to be resumed'),
    ('75 2', 2, 'process 1 user error'),
    ('2 75', 2, 'process 0 user error'),
    ('75 1', 1, 'process 1 crashed'),
    ('75 kill', 75, 'process 1 killed by SIGKILL'),
    ('0 kill', 75, 'process 1 killed by SIGKILL'),
  ],
)
def test_exit_codes_of_processes_become_one(
  tmp_path, monkeypatch, capsys, words, code, said
):
  program = tmp_path / 'program'
  program.write_text(PROGRAM)
  program.chmod(0o700)
  monkeypatch.setenv('DO', words)
  own = [f'--program={program}', '--', f'--workdir={tmp_path / "run"}']
  assert local.main(own) == code
  assert said in capsys.readouterr().err


def test_a_signal_reaches_every_process_once_and_the_code_is_passed_on(
  tmp_path,
):
  run = launcher(
    flags=[f'--workdir={tmp_path}'], told={'0': 'wait', '1': 'wait'}
  )
  logs = [tmp_path / 'logs' / local.log_name(i) for i in range(2)]
  while not all(p.exists() and 'ready' in p.read_text() for p in logs):
    assert run.poll() is None, run.communicate()
    time.sleep(0.02)
  # A terminal interrupts whoever is in its session: the launcher alone.
  first = json.loads((tmp_path / 'lock.json').read_text())['pid']
  assert os.getsid(first) != os.getsid(run.pid)
  os.killpg(run.pid, signal.SIGINT)
  assert run.wait(timeout=20) == 75, run.communicate()


def stand_in(environment):
  """Two processes, the second of which hangs for ever."""
  return dict(
    words=lambda i: [
      sys.executable,
      '-c',
      'import signal, sys, time\n'
      f'if {i} == 0: time.sleep(0.5); sys.exit(1)\n'
      'signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)',
    ],
    processes=2,
    environment=lambda i: environment,
  )


def test_peers_of_a_lost_process_are_stopped_after_the_timeout(tmp_path):
  codes = local.together(
    **stand_in(os.environ), logs=tmp_path, timeout=0.1, margin=0.1
  )
  assert codes == [1, -signal.SIGKILL]


@pytest.mark.parametrize(
  ('own', 'flags', 'words'),
  [
    (['--processes=0'], [], 'at least 1'),
    ([], ['--lora.rnk=3'], 'Did you mean --lora.rank'),
  ],
)
def test_user_errors_start_nothing(tmp_path, own, flags, words):
  with pytest.raises(ValueError, match=words):
    local.main([*own, '--', *flags, f'--workdir={tmp_path}'])
  assert not list(tmp_path.iterdir())


def test_a_user_error_is_one_line_and_code_2():
  run = launcher(flags=['--lora.rnk=3'])
  out, err = run.communicate()
  assert (run.returncode, out, err.count('\n')) == (2, '', 1)


def test_processes_share_out_the_gpus():
  found = [local._environment(i, 2)['JAX_LOCAL_DEVICE_IDS'] for i in range(3)]
  assert found == ['0,1', '2,3', '4,5']
  assert local._environment(1, 0)['JAX_PLATFORMS'] == 'cpu'


@pytest.mark.parametrize(
  ('codes', 'code'),
  [
    ([0, 0], 0),
    ([75, 2], 2),
    ([1, 2], 2),
    ([75, 1], 1),
    ([-9, 75], 75),
    ([0, -11], 75),
    ([0, 134], 75),
  ],
)
def test_what_a_restart_cannot_mend_wins(codes, code):
  assert command.verdict(codes) == code
  assert command.verdict(codes[::-1]) == code
