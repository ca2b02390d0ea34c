"""The one command for accelerators: it goes on, and it needs little."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import accelerator
from benchmarks.accelerator import Question

# What machines with an accelerator often lack.
ABSENT = (
  'datasets dp_accounting filelock lmdb pandas PIL pyarrow sklearn tokenizers '
  'tensorboardX tqdm'
).split()
WITHOUT = f"""
import runpy, sys
for name in {ABSENT}:
  sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


def printed(*command: str) -> list[dict]:
  done = subprocess.run(
    [sys.executable, '-c', WITHOUT, *command],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
  'name',
  [
    'device',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ('correct', 'rounds', 'memory', 'columns')
    ),
  ],
)
def test_its_questions_need_no_more_than_such_machines_have(name):
  flags = ('--clients=2', '--batch=4', '--depths=4,1', '--dtype=float32')
  rows = printed('benchmarks.on_device', name, 'vit-quick', *flags)
  numbers = [x for row in rows for x in row.values() if not isinstance(x, str)]
  assert rows and np.isfinite(numbers).all()
  if name == 'rounds':
    assert [row['depth'] for row in rows] == [4, 1]
    assert min(numbers) > 0
  if name == 'correct':  # the same back-end
    assert rows[0]['correct'] and rows[0]['update_cosine'] > 0.9999


def test_every_question_is_of_a_module_that_is_there():
  for quick in (True, False):
    found = accelerator.questions(quick, 'python')
    names = [question.name for question in found]
    assert len({*names}) == len(names)
    assert names[1].startswith('correct')
    for question in found:
      __import__(question.command[0])


def says(*lines: str, then: str = '') -> tuple[str, ...]:
  """A module that prints these rows, and ends so."""
  code = f'for x in {list(lines)!r}: print(x)\n{then}'
  return ('timeit', '-n1', '-r1', code)


def test_one_that_fails_says_so_and_the_others_go_on(tmp_path, monkeypatch):
  asked = [
    Question('good', says('{"a": 1}', 'noise')),
    Question('bad', says('{"a": 2}', then='raise SystemExit("no memory")')),
    Question('hangs', says('{"a": 3}', then='import time; time.sleep(99)'), 3),
    Question('last', says('{"a": 4}')),
  ]
  monkeypatch.setattr(accelerator, 'questions', lambda *_: asked)
  # What is set there for children is taken back.
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', os.devnull)
  out = tmp_path / 'rows.jsonl'
  accelerator.main([f'--out={out}'])
  rows = accelerator.known(out)
  assert [row['a'] for row in rows if 'a' in row] == [1, 2, 3, 4]
  reasons = {row['question']: row['reason'] for row in rows if 'reason' in row}
  assert reasons == {'bad': 'SystemExit: no memory', 'hangs': 'took over 3 s'}
  assert accelerator.answered(rows) == {'good', 'last'}

  # A second call asks what has no answer, and keeps what is there.
  asked[1:3] = [Question('bad', says('{"a": 5}')), asked[2]._replace(
    command=says('{"a": 6}'))]  # fmt: skip
  out.write_text(out.read_text() + '{"torn')
  accelerator.main([f'--out={out}'])
  more = accelerator.known(out)
  assert more[: len(rows)] == rows
  assert [row['a'] for row in more[len(rows) :] if 'a' in row] == [5, 6]
  shown = accelerator.table(more)
  assert 'a 5' in shown and 'a 1' in shown and 'a 2' not in shown


def test_no_question_is_begun_when_the_time_is_up(
  tmp_path, monkeypatch, capsys
):
  asked = [Question('late', says('{"a": 1}'))]
  monkeypatch.setattr(accelerator, 'questions', lambda *_: asked)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', os.devnull)
  accelerator.main([f'--out={tmp_path / "rows.jsonl"}', '--minutes=0'])
  assert 'Not answered: late' in capsys.readouterr().out
