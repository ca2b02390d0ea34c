"""A round of all clients before a method, which makes the head that it starts
from (--algorithm.head_start). It is offered to every method alike, and part of
none; see `algorithms/fgl.py`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import jax

from fedms_jax.algorithms import fgl
from fedms_jax.shell import foundation, tasks
from fedms_jax.shell.config import Config, beside
from fedms_jax.shell.config.time import UNIFORM
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

NAME = 'head'
# Methods that make their head themselves, or train none.
_REFUSED = {
  'fgl': 'makes its head so itself',
  'ncm': 'computes its head itself',
  'ridge': 'computes its head itself',
}


def identity(config: Config) -> tuple[Hashable, ...]:
  """What of a config the algorithms of the round are made of."""
  start = config.algorithm.head_start
  return (start, config.methods.fgl) if start else ()


def choice(builder: Builder) -> fgl.Choice:
  """What FGL's server does, by --fgl.*.

  Raises:
    ValueError: the model has no head of classes.
  """
  config = builder.config
  task = foundation.task(config.model, builder.model)
  head = jax.eval_shape(builder.backbone.init_head, jax.random.key(0))
  judged = task.kind == 'classes' and not task.perplexity
  if not jax.tree.leaves(head) or not judged or task.within_batch:
    start = config.algorithm.head_start
    said = f'head_start={start}' if start else f'name={config.algorithm.name}'
    raise ValueError(
      f'--algorithm.{said} makes a head of statistics of classes, and '
      f'--model.head={config.model.head} has none; allowed: classification. '
      'Change one of them.'
    )
  own = config.methods.fgl
  return fgl.Choice(
    own.per_class, own.epochs, own.learning_rate, builder.classes
  )


def added(builder: Builder, made: Sequence[Stage]) -> list[Stage]:
  """The stages of a method, after that of its head.

  Raises:
    ValueError: the method, the model or another flag does not go with it.
  """
  _check(builder)
  # Nothing trains: ranks and kept optimizers are for what comes after.
  setting = builder.setting(ranks=True, state=True)
  counted = fgl.synthesized(setting, choice(builder))
  before = builder.stage(NAME, counted, 1, start='dense')
  first, *rest = made
  probe = None if first.probe is None else fgl.before(first.probe)
  first = first._replace(algorithm=fgl.before(first.algorithm), probe=probe)
  return [tasks.computed(before, builder.config), first, *rest]


def _check(builder: Builder) -> None:
  """Raises `ValueError` for what does not go with the round."""
  c = builder.config
  name, start = c.algorithm.name, c.algorithm.head_start
  own = builder.model.network is not None
  wrong = {
    f'--algorithm.name={name}': _REFUSED.get(name, ''),
    f'--model.name={c.model.name}': own and 'it has no head of its own',
    f'--lora.init={c.lora.init}': c.lora.init
    and 'statistics are of features without the adapter',
    f'--stages={c.stages}': c.stages and 'its phases train the head',
    f'--tasks.count={c.tasks.count}': c.tasks.on
    and 'it would know the classes of all tasks',
    f'--privacy.mode={c.privacy.mode}': c.privacy.on
    and 'what a round of all clients sends is not accounted',
    f'--secagg.mode={c.secagg.mode}': c.secagg.on
    and 'its sums have a range that is not known',
    f'--compression.up={c.compression.up}': c.compression.up != 'none'
    and 'its clients send statistics first',
    f'--compression.down={c.compression.down}': c.compression.down != 'none'
    and 'its server makes the head first',
    f'--server.aggregator={c.server.aggregator}': c.server.aggregator != 'mean'
    and 'statistics are added up, whoever sends them',
    f'--attack.update={c.attack.update}': c.attack.update != 'none'
    and 'its clients send statistics first',
    f'--time.policy={c.time.policy}': c.time.on
    and 'who is there for a round of all clients is not simulated',
    f'--select.name={c.select.name}': c.select.name != UNIFORM
    and 'all clients take part in its round',
    f'--client.schedule={c.client.schedule}': c.client.schedule == 'cosine'
    and 'its steps are not among those that learning rates fall over',
  }
  beside.refuse(f'--algorithm.head_start={start}', wrong)
