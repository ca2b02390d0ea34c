"""What does the accelerator of this machine do with the engine?

    python -m benchmarks.accelerator [--quick] [--minutes=8]
      [--out=accelerator.jsonl] [--torch=<python>] [--only=<part of a name>]

One question after another, correctness first, each in a process of its own, so
that one that fails, or runs out of memory, says so in its row and the others
go on. A row is printed, and added to `--out`, as soon as it is measured; what
is answered there is not asked again, so that a second call goes on where the
time of the first was up. At the end the device, and a table of all rows.

correct: the losses and the summed updates of one local step of four clients at
once, against those of a CPU in float32. rounds: of FedAvg of LoRA with all
clients in each round, by when each round's numbers are there, after some that
compile and derive columns. memory: the most that
the device had in use, beside what XLA and `fedms plan` say of the step.
columns: rows a second whose frozen prefix is derived. The rest are benchmarks
of this folder, on this device: `stage2_cost`, `utilization`, `versus_torch`
and `population`. It needs jax, flax, optax, orbax and safetensors;
`versus_torch` also torch, transformers and peft, `population` also lmdb.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FAMILIES = ('vit-b16', 'bert-base')
CLIENTS = (8, 1, 32, 128)
BATCH, STEPS = 32, 2
DEPTHS = (12, 1, 2, 6)
HALF = '--dtype=bfloat16'


class Question(NamedTuple):
  """name: as in the rows. command: of a module that prints them, after
  `python -m`. seconds: it may take."""

  name: str
  command: tuple[str, ...]
  seconds: float = 150.0


def questions(quick: bool, torch: str) -> list[Question]:
  """All of them, those first whose answers the others rest on."""
  families, clients = FAMILIES, CLIENTS
  batch, depths, few = BATCH, DEPTHS, ()
  shape = ('--shape=b16', HALF)
  people = ('--clients=1000000', '--cohort=1000')
  if quick:
    families, clients, batch, depths = ('vit-quick',), (2,), 4, (4, 1)
    few, shape, people = ('--quick',), ('--quick', HALF), ('--quick',)
  here = 'benchmarks.on_device'

  def ours(what: str, family: str, *more: str) -> Question:
    name = '/'.join((what, family, *(x.lstrip('-') for x in more)))
    size = (f'--batch={batch}', f'--depths={",".join(map(str, depths))}')
    return Question(name, (here, what, family, *size, *more))

  found = [ours('device', family) for family in families[:1]]
  found += [
    ours('correct', family, f'--dtype={dtype}')
    for family in families
    for dtype in ('float32', 'bfloat16')
  ]
  found.append(ours('rounds', families[0], f'--clients={clients[0]}'))
  found.append(Question('utilization', ('benchmarks.utilization', *shape)))
  found.append(Question('stage2_cost', ('benchmarks.stage2_cost', *shape)))
  found += [ours(what, families[0]) for what in ('memory', 'columns')]
  for only in ('dense', 'SAL to 2'):
    flags = (*(shape if not quick else few), f'--only={only}')
    command = 'benchmarks.versus_torch', *flags, f'--torch={torch}'
    found.append(Question(f'versus_torch/{only}', (*command, '--clients=8')))
  found += [
    ours('rounds', family, f'--clients={n}')
    for n in clients
    for family in families
    if (n, family) != (clients[0], families[0])
  ]
  found.append(Question('population', ('benchmarks.population', *people)))
  return found


def ask(question: Question, left: float) -> Iterator[dict]:
  """The rows of a question, each when it is printed; the last one says that it
  is answered, and why if it is not."""
  command = [sys.executable, '-u', '-m', *question.command]
  limit = min(left, question.seconds)
  about = {'question': question.name}
  with tempfile.TemporaryFile('w+') as errors:
    child = subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      env={'JAX_PLATFORMS': '', **os.environ},
    )
    late = threading.Event()
    clock = threading.Timer(limit, lambda: (late.set(), child.kill()))
    clock.start()
    try:
      assert child.stdout  # it is a pipe
      for line in child.stdout:
        if line.startswith('{'):
          yield about | json.loads(line)
      child.wait()
    finally:
      clock.cancel()
      child.kill()
    errors.seek(0)
    said = errors.read().strip().splitlines()
  if not child.returncode:
    yield about | {'answered': True}
  elif not late.is_set():
    reason = (said or [f'code {child.returncode}'])[-1]
    yield about | {'answered': False, 'reason': reason}
  elif limit == question.seconds:  # else the time of this call is up
    yield about | {'answered': False, 'reason': f'took over {limit:.0f} s'}


def known(out: pathlib.Path) -> list[dict]:
  """The rows of earlier calls. A last line that was torn is left out."""
  rows = []
  for line in out.read_text().splitlines() if out.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def answered(rows: Sequence[dict]) -> set[str]:
  """Questions that were answered."""
  return {row['question'] for row in rows if row.get('answered')}


def table(rows: Sequence[dict]) -> str:
  """Markdown: a line a row, of the newest answers."""
  newest: dict[str, list[dict]] = {}
  for row in rows:
    held = newest.setdefault(row['question'], [])
    if held and 'answered' in held[-1]:
      held.clear()
    held.append(row)
  lines = ['| question | figures |', '|---|---|']
  for name, found in newest.items():
    for row in found:
      if row.get('answered'):
        continue
      named = {
        k: v for k, v in row.items() if k not in ('question', 'answered')
      }
      text = ', '.join(f'{k} {_short(v)}' for k, v in named.items())
      lines.append(f'| {name} | {text} |')
  return '\n'.join(lines)


def _short(value) -> str:
  if isinstance(value, dict):
    return ' / '.join(f'{k} {_short(v)}' for k, v in value.items())
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> None:
  """Asks what is not answered yet, until the time is up."""
  parser = argparse.ArgumentParser(prog='accelerator')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--minutes', type=float, default=8.0)
  parser.add_argument(
    '--out', type=pathlib.Path, default=pathlib.Path('accelerator.jsonl')
  )
  parser.add_argument('--torch', default=sys.executable)
  parser.add_argument('--only', default='')
  args = parser.parse_args(argv)
  end = time.monotonic() + 60.0 * args.minutes
  # Processes that come later find what those before have compiled.
  cache = args.out.resolve().with_suffix('.cache')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
  rows = known(args.out)
  args.out.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  done = answered(rows)
  asked = [x for x in questions(args.quick, args.torch) if args.only in x.name]
  with args.out.open('a') as file:
    for question in asked:
      left = end - time.monotonic()
      if question.name in done or left < 1.0:
        continue
      for row in ask(question, left):
        rows.append(row)
        print(json.dumps(row), file=file, flush=True)
        print(json.dumps(row), flush=True)
  print(table(rows))
  missing = [x.name for x in asked if x.name not in answered(rows)]
  if missing:
    print(f'Not answered: {", ".join(missing)}. Call it again to go on.')


if __name__ == '__main__':
  main()
