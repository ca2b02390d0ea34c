"""LoRA aggregation: methods that differ in how A and B are merged."""

from __future__ import annotations

import functools
from collections.abc import Callable

from fedms_jax.algorithms import fedms, lora_fair, lora_halves, lora_merging
from fedms_jax.algorithms.ranks import Pruning
from fedms_jax.core.contract import Algorithm
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

Maker = Callable[..., Algorithm]  # (setting, adapter=...)


def _plain(make: Maker, stage: str = 'global'):
  """A method that leaves the merging to the flags."""

  def stages(builder: Builder) -> list[Stage]:
    return builder.alone(
      stage, builder.setting(), lambda s: make(s, adapter=builder.adapter)
    )

  return stages


def _merged(make: Maker, *, ranks: bool = False, exact: bool = True):
  """A method with an aggregator of its own. ranks, exact: see
  `Builder.setting`."""

  def stages(builder: Builder) -> list[Stage]:
    setting = builder.setting(ranks=ranks, merges=True, exact=exact)
    more = {'rank_of': builder.rank_of()} if ranks else {}
    return builder.alone(
      'global', setting, lambda s: make(s, adapter=builder.adapter, **more)
    )

  return stages


def _hetlora(builder: Builder) -> list[Stage]:
  own, adapter = builder.own, builder.config.lora.init
  pruning = None
  if 0 < own.prune < 1:
    pruning = Pruning(own.prune, own.pull)
  if pruning and adapter:
    raise ValueError(
      f'--hetlora.prune={own.prune:g} does not go with '
      '--lora.init: blocks that do not train yet keep the rank of the adapter. '
      'Set it to 1, or leave --lora.init out.'
    )
  make = functools.partial(lora_merging.hetlora, pruning=pruning)
  return _merged(make, ranks=True, exact=False)(builder)


def _lora_fair(builder: Builder) -> list[Stage]:
  make = functools.partial(lora_fair.lora_fair, pull=builder.own.pull)
  return _merged(make, exact=False)(builder)


def _fedit(setting, **kwargs) -> Algorithm:
  """FedIT (arXiv 2305.05644) is the first stage of FedMS alone."""
  return fedms.global_stage(setting, **kwargs)._replace(name='fedit')


STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  'fedit': _plain(_fedit),
  'ffa_lora': _plain(lora_halves.ffa_lora),
  'rolora': _plain(lora_halves.rolora),
  'fedsa_lora': _plain(lora_halves.fedsa_lora, stage='personal'),
  'flora': _merged(lora_merging.flora, ranks=True),
  'fedex_lora': _merged(lora_merging.fedex_lora),
  'flexlora': _merged(lora_merging.flexlora, ranks=True),
  'hetlora': _hetlora,
  'lora_fair': _lora_fair,
}
