"""FedMS from flags."""

from __future__ import annotations

import optax

from fedms_jax.algorithms import fedms
from fedms_jax.shell import build
from fedms_jax.shell.methods import gates
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _fedms(builder: Builder) -> list[Stage]:
  _check_handover(builder)
  builder = gates.resolved(builder)
  a, g, own = builder.config.algorithm, builder.config.gate, builder.own
  common, adapter = builder.setting(), builder.adapter
  slope = common._replace(optimizer=optax.sgd(1.0))
  choice = fedms.Personal(
    gate=gates.spec(builder),
    local_start=own.local_start,
    local_loss=build.local_loss(builder.config),
    tower=g.tower,
    scope=g.scope,
    upload=own.upload_blocks,
    rows=g.rows,
    fit=gates.fit(builder),
  )
  first = builder.stage(
    'global',
    fedms.global_stage(common, adapter=adapter),
    a.stage1_rounds,
    probe=fedms.global_stage(slope, adapter=adapter),
    ends=own.handover,
  )
  second = builder.stage(
    'personal',
    fedms.personal_stage(common, choice),
    a.stage2_rounds,
    start=own.stage2_depth,
    probe=fedms.personal_stage(slope, choice),
  )
  shared = own.handover != 'rounds'
  first = first._replace(open=shared)
  second = second._replace(fresh=gates.fresh_rows(builder), open=shared)
  # Stage 1 stays with no rounds, too: it makes the global expert.
  return [first, second] if a.stage2_rounds else [first]


def _check_handover(builder: Builder) -> None:
  """Raises `ValueError` for a handover that stage 1 cannot make."""
  how, name = builder.own.handover, builder.config.schedule.name
  if how == 'queue' and name not in ('queue', 'queue_std'):
    raise ValueError(
      f'--fedms.handover=queue waits for a queue, which --schedule.name={name} '
      'has not; allowed: queue, queue_std. Or give --fedms.handover=validation.'
    )
  if how != 'rounds' and not builder.config.algorithm.stage2_rounds:
    raise ValueError(
      f'--fedms.handover={how} hands rounds over to stage 2, and '
      '--algorithm.stage2_rounds=0 leaves it out; allowed: rounds.'
    )


STAGES = {'fedms': _fedms}
