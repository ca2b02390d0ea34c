"""A pipeline of stages as it is written: S200,F20x50,S50,fedms."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from fedms_jax.shell import catalog

MOST = 1_000_000_000  # rounds, or steps


class Phase(NamedTuple):
  """A phase in which all weights train.

  kind: 'S' of the server on public rows, 'F' of the clients on their own, 'W'
  the same with frozen windows. rounds: of F and W. steps: of the server in
  all, of a client in each round (0: as --client says).
  """

  kind: str
  rounds: int
  steps: int


class Pipeline(NamedTuple):
  """phases: in their order; of no length are left out. method: the algorithm
  after them, or ''."""

  phases: tuple[Phase, ...] = ()
  method: str = ''


@functools.cache
def parse(text: str) -> Pipeline:
  """What --stages says.

  Raises:
    ValueError: it is no pipeline.
  """
  phases, method = [], ''
  words = [word.strip() for word in text.split(',')] if text else []
  for word in words:
    if method:
      raise ValueError(
        f'--stages={text!r} has {word!r} after the algorithm {method!r}, which '
        'is to be the last. Leave one of them out.'
      )
    if catalog.known(word):
      method = word
    else:
      phases.append(_phase(word, text))
  phases = [p for p in phases if p.rounds]
  if text and not phases and not method:
    raise ValueError(
      f'--stages={text!r} has nothing to do. Give a phase some steps: S200.'
    )
  return Pipeline(tuple(phases), method)


def _phase(word: str, text: str) -> Phase:
  found = re.fullmatch(r'S(\d{1,10})|([FW])(\d{1,10})(?:x(\d{1,10}))?', word)
  if found is None:
    raise ValueError(
      f'--stages={text!r}: {word!r} is no stage; allowed: S200 (steps of the '
      'server), F20x50 or F20 (rounds, and local steps), W20x50 (with frozen '
      'windows), and last an algorithm (`fedms list`).'
    )
  server, kind, rounds, steps = found.groups()
  numbers = [int(n) for n in (server, rounds, steps) if n is not None]
  if max(numbers) > MOST:
    raise ValueError(
      f'--stages={text!r}: {word!r} has {max(numbers)} rounds or steps; '
      f'allowed: at most {MOST}.'
    )
  if server is not None:
    return Phase('S', int(int(server) > 0), int(server))
  if steps is not None and not int(steps):
    return Phase(kind, 0, 0)
  return Phase(kind, int(rounds), int(steps or 0))
