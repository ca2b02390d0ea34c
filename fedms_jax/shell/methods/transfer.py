"""Knowledge that passes otherwise than by averages alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from fedms_jax.adapters import bottleneck
from fedms_jax.algorithms import (
  attentive_start,
  feddat,
  fedms,
  fedweit,
  femam,
  fgl,
  general,
  koala,
  levels,
)
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.streams import Stream
from fedms_jax.data import draws
from fedms_jax.server import averaged
from fedms_jax.shell import build
from fedms_jax.shell.methods import head_start
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.shell.methods.general import needs_head
from fedms_jax.simulation.state import Stage

Maker = Callable[[Setting], Algorithm]


def _stage(
  builder: Builder, setting: Setting, make: Maker, probe: Maker | None = None
) -> list[Stage]:
  """The one stage of a method. probe: whose first step, by plain SGD, measures
  the importance of blocks; None: its own."""
  slope = (probe or make)(setting._replace(optimizer=optax.sgd(1.0)))
  return [builder.stage('personal', make(setting), builder.rounds, probe=slope)]


def _feddat(builder: Builder) -> list[Stage]:
  _no_pairs(builder, 'compares predictions of classes or tokens')
  own = builder.own
  names = tuple(x.strip() for x in own.targets.split(',') if x.strip())
  spec = bottleneck.Bottleneck(own.reduction, names)
  spec.check(jax.eval_shape(builder.backbone.init, jax.random.key(0))['blocks'])
  return _stage(
    builder,
    builder.setting(),
    lambda s: feddat.feddat(s, spec, own.distill),
  )


def _fedcaf(builder: Builder) -> list[Stage]:
  own = builder.own
  choice = attentive_start.Choice(own.pool, own.share, own.learning_rate)
  return _attentive(builder, choice)


def _fedkei(builder: Builder) -> list[Stage]:
  own = builder.own
  if own.clusters > own.pool:
    raise ValueError(
      f'--fedkei.clusters={own.clusters} are more than the --fedkei.pool='
      f'{own.pool} adapters that are in them; allowed: at most as many. Lower '
      'it.'
    )
  choice = attentive_start.Choice(
    own.pool, own.share, own.learning_rate, own.clusters
  )
  return _attentive(builder, choice)


def _attentive(builder: Builder, choice: attentive_start.Choice):
  name, adapter = builder.config.algorithm.name, builder.adapter

  def make(setting: Setting) -> Algorithm:
    return attentive_start.attentive(setting, name, choice, adapter=adapter)

  def probe(setting: Setting) -> Algorithm:
    return fedms.global_stage(setting, adapter=adapter)

  return _stage(builder, builder.setting(merges=True), make, probe)


def _fedweit(builder: Builder) -> list[Stage]:
  _no_pairs(builder, 'has parameters for each task')
  own, config = builder.own, builder.config
  if config.model.head == 'causal_lm':
    raise ValueError(
      '--model.head=causal_lm does not go with --algorithm.name=fedweit, which '
      'tells tasks of classes apart; allowed: classification.'
    )
  choice = fedweit.Choice(
    max(1, config.tasks.count), own.pool, own.sparsity, own.pull, own.withheld,
    own.least,
  )  # fmt: skip

  def make(setting: Setting) -> Algorithm:
    return fedweit.fedweit(setting, choice)

  return _stage(builder, builder.setting(merges=True), make, fedms.global_stage)


def _femam(builder: Builder) -> list[Stage]:
  needs_head(builder, 'begins a level with')
  own = builder.own
  if own.clusters > own.pool:
    raise ValueError(
      f'--femam.clusters={own.clusters} are more than the --femam.pool='
      f'{own.pool} updates that they are made of; allowed: at most as many. '
      'Lower it.'
    )
  choice = levels.Choice(
    own.levels, own.clusters, own.pool, own.queue, own.eps, own.pull
  )

  def make(setting: Setting) -> Algorithm:
    return femam.femam(setting, choice, adapter=builder.adapter)

  def probe(setting: Setting) -> Algorithm:
    return fedms.global_stage(setting, adapter=builder.adapter)

  setting = builder.setting(merges=True, exact=True)
  return _stage(builder, setting, make, probe)


def _koala(builder: Builder) -> list[Stage]:
  _no_pairs(builder, 'compares predictions of classes or tokens')
  own, config = builder.own, builder.config
  builder.check_public('distills')
  found = build.numbers('koala.depths', own.depths, builder.backbone.blocks)
  depths = tuple(sorted(set(found)))
  if not depths:
    raise ValueError(
      '--koala.depths is empty; allowed: 1 to '
      f'{builder.backbone.blocks}, the blocks of the model, comma-separated.'
    )

  def depth(client: int) -> int:
    rng = draws.generator(config.seed, Stream.DEPTHS, client)
    return depths[int(rng.integers(len(depths)))]

  choice = koala.Choice(
    depths,
    depth,
    own.steps,
    own.batch_size,
    own.learning_rate,
    own.temperature,
  )
  clients = builder._replace(
    model=builder.model._replace(
      backbone=koala.small(builder.backbone, max(depths))
    )
  )
  return clients.alone(
    'global',
    builder.setting(),
    lambda s: koala.koala(s, choice, adapter=builder.adapter),
  )


def _fgl(builder: Builder) -> list[Stage]:
  """A stage of statistics, and one of FedAvg if it has any rounds."""
  a, choice = builder.config.algorithm, head_start.choice(builder)
  setting = builder.setting(merges=True)
  slope = general.probe(setting._replace(optimizer=optax.sgd(1.0)))
  probe = slope._replace(server=averaged.meaning(slope.server))
  made = {
    'statistics': (fgl.synthesized(setting, choice), a.stage1_rounds),
    'global': (fgl.tuned(setting), a.stage2_rounds),
  }
  stages = [
    builder.stage(name, algorithm, rounds, start='dense', probe=probe)
    for name, (algorithm, rounds) in made.items()
  ]
  # The first stays with no rounds, too: the second goes on from its head.
  return stages if a.stage2_rounds else stages[:1]


def _no_pairs(builder: Builder, why: str) -> None:
  """Raises `ValueError` if a row's logits compare it with other rows."""
  if builder.config.model.head == 'contrast':
    raise ValueError(
      f'--algorithm.name={builder.config.algorithm.name} {why}, and '
      '--model.head=contrast has pairs; allowed: any other head. Change one of '
      'them.'
    )


STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  'feddat': _feddat,
  'fedcaf': _fedcaf,
  'fedkei': _fedkei,
  'fedweit': _fedweit,
  'femam': _femam,
  'koala': _koala,
  'fgl': _fgl,
}
