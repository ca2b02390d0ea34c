"""Attacks from flags: who is malicious, what these train on and send."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from fedms_jax.channel import attacks as channels
from fedms_jax.core.contract import Channel
from fedms_jax.core.types import Federation, Partition
from fedms_jax.data import poison
from fedms_jax.data.poison import Poisoned
from fedms_jax.server.apart import apart
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.attack import NONE
from fedms_jax.simulation.state import Stage

_UNLABELLED = ('causal_lm', 'masked_lm', 'masked_patches', 'contrast')
# Methods in which nobody sends a change, so that there is none to falsify.
REFUSED = {
  'local': 'its clients send nothing',
  'flora': 'its clients send factors, not changes',
  'fedex_lora': 'its clients send factors, not changes',
  'flexlora': 'its clients send factors, not changes',
  'hetlora': 'its clients send factors, not changes',
  'lora_fair': 'its clients send factors, not changes',
  'pfedmoap': 'its clients send prompts, not changes',
  'fedcaf': 'its clients send adapters, not changes',
  'fedkei': 'its clients send adapters, not changes',
  'fedweit': 'its clients send adapters, not changes',
  'femam': 'its clients send models, not changes',
  'fgl': 'its clients send statistics first',
  'ncm': 'its clients send sums over their rows',
  'ridge': 'its clients send sums over their rows',
  'bbt': 'its clients send nothing',
}


def malicious(config: Config) -> np.ndarray:
  """The malicious clients, ascending; none without an attack."""
  clients = config.partition.num_clients
  fraction = config.attack.fraction if config.attack.on else 0.0
  return poison.malicious(config.seed, clients, fraction)


def poisoned(config: Config, data: Federation) -> Poisoned | None:
  """The data with the rows of malicious clients; None: they change none.

  Raises:
    ValueError: the rows cannot be poisoned so.
  """
  a = config.attack
  if a.data == NONE:
    return None
  said = f'--attack.data={a.data}'
  if config.model.head in _UNLABELLED:
    raise ValueError(
      f'{said} is about labels, which --model.head={config.model.head} does '
      'not learn. Take a head of classes.'
    )
  if data.table.outputs is not None:
    raise ValueError(
      f'{said} is about classes, and the data has other outputs. Take data '
      'with a class for each row.'
    )
  vectors = data.table.columns['inputs'].ndim == 2
  if a.data == poison.BACKDOOR and config.model.own and vectors:
    raise ValueError(
      f'{said} puts its trigger into images or texts, and --model.name='
      f'{config.model.name} reads vectors. Set --attack.data=label_flip.'
    )
  if jax.process_count() > 1:
    raise ValueError(
      f'{said} is for one process, and this run has {jax.process_count()}. '
      'Set --distributed.processes=1.'
    )
  how = poison.Poison(
    a.data, a.share, a.target, a.flip, size=a.trigger, token=a.token
  )
  return poison.poisoned(data, how, malicious(config), config.seed)


def viewed(
  config: Config, stages: Sequence[Stage], found: Poisoned | None
) -> list[Stage]:
  """The stages whose clients see poisoned rows while the attack lasts."""
  if found is None:
    return list(stages)
  a, out, before = config.attack, [], 0
  for stage in stages:
    start = a.start - before
    stop = a.stop - before if a.stop else None
    if not stage.central and start < stage.rounds:
      stage = stage._replace(view=_view(stage.view, found, start, stop))
    before += stage.rounds
    out.append(stage)
  return out


def _view(inner, found: Poisoned, start: int, stop: int | None):
  def view(data: Federation) -> Federation:
    seen = data if inner is None else inner(data)
    return poison.view(seen, found.copy, start, stop)

  return view


def aimed(data: Federation, found: Poisoned | None) -> Partition | None:
  """The test rows of honest clients, or of all where there are none, as the
  attack would change them; None: it changes none."""
  if found is None:
    return None
  rows = poison.tested(data, found.copy).test
  if len(found.clients) == rows.num_clients:
    return rows
  honest = ~np.isin(np.arange(rows.num_clients), found.clients)
  kept = np.repeat(honest, rows.sizes())
  before = np.concatenate([[0], np.cumsum(kept)])
  return Partition(before[rows.offsets], rows.rows[kept])


def check(config: Config) -> None:
  """Refuses attacks that mean nothing where they are.

  Raises:
    ValueError: it names the flag.
  """
  a, name = config.attack, config.algorithm.name
  if a.update == NONE:
    return
  said = f'--attack.update={a.update}'
  if name in REFUSED:
    raise ValueError(
      f'{said} does not go with --algorithm.name={name}: {REFUSED[name]}. Take '
      'another method, such as fedms or fedit.'
    )
  if a.update in channels.INFORMED and config.secagg.on:
    raise ValueError(
      f'{said} looks at what each client sends, which --secagg.mode='
      f'{config.secagg.mode} hides. Take another attack, such as sign_flip.'
    )
  if a.update in channels.INFORMED and config.privacy.on:
    raise ValueError(
      f'{said} looks at what each client sends, which --privacy.mode='
      f'{config.privacy.mode} adds up before. Take another attack, such as '
      'sign_flip.'
    )


def channel(config: Config, stage: Stage, before: int) -> list[Channel]:
  """What malicious clients of a stage do with their messages. before: rounds
  of the stages before."""
  a = config.attack
  who = tuple(malicious(config).tolist())
  if a.update == NONE or stage.central or not who:
    return []
  how = channels.Attack(
    a.update,
    who,
    scale=a.scale or _usual(config),
    start=a.start - before,
    stop=a.stop - before if a.stop else 2**31 - 1,
    bound=a.bound,
    weighed=stage.algorithm.server.reduction == 'sum',
    direction=a.direction,
  )
  return [channels.attack(how)]


def opened(config: Config, stage: Stage) -> Stage:
  """The stage whose messages come apart, if an attack looks at them."""
  if config.attack.update not in channels.INFORMED or stage.central:
    return stage
  algorithm = stage.algorithm
  made = algorithm._replace(server=apart(algorithm.server))
  return stage._replace(algorithm=made)


def _usual(config: Config) -> float:
  """The scale of an attack that has not been given one; 0: as alie finds."""
  if config.attack.update == 'replacement':
    return config.cohort.size / config.server.learning_rate
  return 0.0 if config.attack.update == 'alie' else 1.0
