"""Methods that make the model, or its adapter, smaller."""

from __future__ import annotations

from fedms_jax.algorithms import lonas, offsite
from fedms_jax.core.types import Federation
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _lonas(builder: Builder) -> list[Stage]:
  own, config = builder.own, builder.config
  setting = builder.setting(ranks=True, merges=True)
  if builder.adapter is not None or config.lora.init:
    raise ValueError(
      f'--lora.init={config.lora.init} does not go with --algorithm.name='
      'lonas: blocks that do not train yet would keep its rank. Leave it out.'
    )
  if config.model.head == 'contrast':
    raise ValueError(
      '--algorithm.name=lonas counts rows that are right, and those of '
      '--model.head=contrast are compared with their batch; allowed: any '
      'other head. Change one of them.'
    )
  elastic = _ranks(own.ranks, config.lora.rank)
  search = lonas.Search(own.candidates, own.tolerance)
  first = lonas.super_stage(setting, elastic, rank_of=builder.rank_of())
  second = lonas.search_stage(setting, elastic, search)
  return [
    builder.stage('global', first, builder.rounds),
    builder.stage('search', second, own.search_rounds, 'dense')._replace(
      view=_unlearned
    ),
  ]


def _fedot(builder: Builder) -> list[Stage]:
  choice = offsite.Choice(builder.own.ends, builder.own.kept)

  def make(setting):
    return offsite.fedot(setting, choice, adapter=builder.adapter)

  if builder.config.model.head == 'contrast':
    raise ValueError(
      '--algorithm.name=fedot has one end before the blocks and one behind '
      'them, and --model.head=contrast has two towers; allowed: any other '
      'head. Change one of them.'
    )
  return builder.alone('global', builder.setting(), make, start='dense')


def _unlearned(data: Federation) -> Federation:
  """Clients look at rows that they do not train on."""
  return data._replace(train=data.validation)


def _ranks(text: str, most: int) -> tuple[int, ...]:
  """The ranks of --lonas.ranks, ascending, with the largest."""
  try:
    found = {int(part) for part in text.split(',') if part.strip()}
  except ValueError:
    found = {0}
  if any(not 1 <= rank <= most for rank in found):
    raise ValueError(
      f'--lonas.ranks={text!r} is no list of ranks up to --lora.rank={most}; '
      f'write --lonas.ranks={max(1, most // 2)},{most}.'
    )
  if not found:
    found = {max(1, most // 4), max(1, most // 2)}
  return tuple(sorted(found | {most}))


STAGES = {'lonas': _lonas, 'fedot': _fedot}
