"""What is said of a run's privacy: in its summary, and before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedms_jax.data import private_rows
from fedms_jax.shell import privacy
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import (
  CENTRAL,
  DISTRIBUTED,
  EXAMPLE,
  LOCAL,
)
from fedms_jax.shell.privacy import Plan
from fedms_jax.simulation.state import Stage
from fedms_jax.systems import privacy as accounts

COVERS = ('the shared model after every round of all stages',)
_ROUNDING = 'the rounding of float32 noise'
NOT_COVERED = (
  "clients' own models, which they keep",
  'scores and losses in metrics.jsonl, summary.json and the report',
  'the numbers of rows that clients have, and of which classes',
  'the seed, from which cohorts and noise follow: keep it secret',
  _ROUNDING,
)


def summary(
  config: Config, stages: Sequence[Stage], spent: Any, records, rows
) -> dict[str, Any] | None:
  """What summary.json says of a finished run; None: it is not private.

  spent: of `StageState`. records: of all rounds, for the clips. rows: training
  rows of all clients, [N].
  """
  plan = privacy.plan(config, stages)
  if plan is None:
    return None
  clips = {}
  for stage in stages:
    found = [r['clip'] for r in records if r.get('stage') == stage.name
             and 'clip' in r]  # fmt: skip
    if found:
      clips[stage.name] = [found[0], found[-1]]
  found = costs(config, plan, spent, rows)
  return outline(config, plan) | {'clips': clips} | found


def outline(config: Config, plan: Plan) -> dict[str, Any]:
  """What is known of a run's privacy before it begins."""
  p, how = config.privacy, plan.stated
  central = p.mode == CENTRAL
  neighbors = accounts.neighbors(how)
  if not central:
    neighbors = {
      LOCAL: 'any two messages of a client',
      DISTRIBUTED: "a client's messages zeroed out",
      EXAMPLE: 'one row of a client added or removed',
    }[p.mode]
  note = None
  if p.population:
    note = (
      f'epsilon of the stated population of {how.clients} clients, {how.size} '
      'in a round, not of this run'
    )
  values = [
    privacy.values_noise(config, plan, i) for i in range(len(plan.noise))
  ]
  return {
    'mode': p.mode,
    'unit': 'row of a client' if p.mode == EXAMPLE else 'client',
    'trusted': _trusted(p.mode),
    'neighbors': neighbors,
    'sampler': how.kind,
    'chance': how.chance,
    'cap': how.cap,
    'groups': how.groups,
    'clients': how.clients,
    'noise': list(plan.noise),
    'noise_of_values': values,
    'delta': plan.delta,
    'population': note,
    'covers': list(COVERS),
    'not_covered': _not_covered(p.mode),
  }  # fmt: skip


def _not_covered(mode: str) -> list[str]:
  """Discrete noise is not rounded; but who makes none leaves others less."""
  if mode != DISTRIBUTED:
    return list(NOT_COVERED)
  kept = [text for text in NOT_COVERED if text != _ROUNDING]
  return [*kept, 'clients that make no noise, or tell theirs to the server']


def _trusted(mode: str) -> str:
  """Whom clients must trust."""
  if mode == DISTRIBUTED:
    return 'enough clients of a round to make their noise, and the secure sum'
  return 'the server' if mode == CENTRAL else 'nobody'


def costs(
  config: Config, plan: Plan, spent: Any, rows: np.ndarray | None = None
) -> dict[str, Any]:
  """The epsilon of what was released; null where there is no bound.

  rows: see `summary`; they are asked for where rows are what is private.
  """
  ledger, delta, more = spent or [], plan.delta, {}
  if config.privacy.mode == LOCAL:
    most = max((spent or {}).values(), default=0)
    ledger = [privacy.local_entry(plan.noise[0], most)] if most else []
  if config.privacy.mode == DISTRIBUTED:
    most, z = max((spent or {}).values(), default=0), plan.noise[0]
    ledger = [privacy.distributed_entry(config, z, most)] if most else []
  if config.privacy.mode == EXAMPLE:
    assert rows is not None
    ledger, delta, more = _worst(config, plan, spent or {}, rows)
  name = config.privacy.accountant

  def found(accountant: str) -> float | None:
    return _finite(accounts.epsilon(ledger, delta, accountant))

  return more | {
    'accountant': f'{name.upper()} of {accounts.version()}',
    'delta': delta,
    'epsilon': found(name),
    'epsilon_rdp': found('rdp'),
    'rounds': sum(line['rounds'] for line in ledger),
    'events': ledger,
  }


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _worst(config: Config, plan: Plan, spent: dict[str, int], rows):
  """(ledger, delta, epsilons of other clients) of the client whose rows were
  told the most; by Renyi divergences, which are quick, of all of them."""
  p, z = config.privacy, plan.noise[0]
  size = config.client.batch_size
  most = private_rows.cap(size, p.batch_cap)
  found: dict[tuple[int, int], Any] = {}
  bounds = []
  for client, steps in spent.items():
    n = int(rows[int(client)])
    if (n, steps) not in found:
      delta = p.delta or accounts.usual_delta(n)
      accounts.check_delta(delta, n, f'rows of client {client}')
      line = accounts.entry(0, accounts.steps_event(n, size, most, z), steps)
      bound = accounts.epsilon([line], delta, 'rdp')
      found[n, steps] = (bound, [line], delta)
    bounds.append(found[n, steps][0])
  if not bounds:
    return [], plan.delta, {}
  _, ledger, delta = max(found.values(), key=lambda x: x[0])
  shares = (0.0, 0.5, 0.9, 1.0)
  quantiles = {
    f'{share:g}': _finite(float(np.quantile(bounds, share))) for share in shares
  }
  return ledger, delta, {'epsilon_rdp_quantiles': quantiles}


def planned(
  config: Config, plan: Plan, rows: np.ndarray | None = None
) -> dict[str, Any]:
  """What a run will have spent when it is done. rows: see `costs`."""
  if config.privacy.mode == CENTRAL:
    spent = privacy.ledger(config, plan.stated, plan.rounds, plan.noise)
    return outline(config, plan) | costs(config, plan, spent)
  times = privacy.participations(config.seed, plan.how, plan.rounds)
  if config.privacy.mode == EXAMPLE:
    assert rows is not None
    c = config.client
    times = times * (c.steps or c.epochs * -(-rows // c.batch_size))
  spent = {str(i): int(n) for i, n in enumerate(times) if n}
  return outline(config, plan) | costs(config, plan, spent, rows)
