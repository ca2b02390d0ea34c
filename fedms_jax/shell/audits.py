"""Audits of what a run of some flags would tell of its clients.

`canaries` holds the epsilon that is accounted to what can be shown; `shadows`
asks of every row whether it was trained on; `inverted` rebuilds the one row of
a client from its first message.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.channel import canaries as channels
from fedms_jax.channel import chain
from fedms_jax.core import compile, seeds, tree
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Plan
from fedms_jax.data import draws
from fedms_jax.persistence import run_store
from fedms_jax.shell import privacy, privacy_report, simulated
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import CENTRAL
from fedms_jax.simulation import driver, inversion, membership, observer
from fedms_jax.systems import audit

_RATES = (0.001, 0.01)  # false positives at which hits are told


def canaries(config: Config, count: int) -> dict[str, Any]:
  """A lower bound on the epsilon of the first stage that has rounds, beside the
  accounted one.

  Half of `count` clients, drawn one by one, send random directions of the
  clip's norm, the others nothing. How far the shared part has gone along each
  of them says which.

  Raises:
    ValueError: the run cannot be audited so.
  """
  _check_canaries(config, count)
  who, included = _drawn(config, count)
  world = worlds.world(config)
  stage, state, moved = _sung(config, world, who, included)
  along = compile.jit(light=True)(_along(config.seed))
  scores = np.array([float(along(np.uint32(k), moved)) for k in who])
  plan = privacy.plan(config, world.stages)
  assert plan is not None  # it is checked
  costs = privacy_report.costs(config, plan, state.spent)
  bound, guesses, right = audit.one_run_of(scores, included, plan.delta)
  inside, outside = scores[included], scores[~included]
  return {
    'kind': 'canaries',
    'stage': stage.name,
    'rounds': stage.rounds,
    'canaries': count,
    'guesses': guesses,
    'right': right,
    'delta': plan.delta,
    'epsilon_accounted': costs['epsilon'],
    'epsilon_lower_bound': bound,
    'epsilon_estimate': audit.gaussian(inside, outside, plan.delta),
    'auroc': audit.auroc(inside, outside),
  }


def _sung(config: Config, world, who: np.ndarray, included: np.ndarray):
  """(the first stage with rounds, with canaries, its last state, how far its
  shared part has gone)."""
  lengths = [stage.rounds for stage in world.stages]
  number = next((i for i, n in enumerate(lengths) if n), 0)
  how = channels.Canaries(
    tuple(who.tolist()),
    tuple(included.tolist()),
    privacy.clip(config, number),
    config.seed,
  )
  before, stage = world.stages[:number], world.stages[number]
  if stage.algorithm.variant is not None:
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} trains other parts in other '
      'rounds, so that a canary has no direction. Take another method.'
    )
  made = stage.algorithm._replace(
    channel=chain(channels.canaries(how), stage.algorithm.channel)
  )
  stage = stage._replace(algorithm=made)
  first = _simulation(config, world._replace(stages=[*before, stage]))
  state = first.run()
  begun = _again(first, [*before, stage._replace(rounds=0)]).run()
  mask = made.masks(Plan(state.ever, 0))[0]
  moved = tree.subtract(
    *(tree.narrow(s.roles.shared, mask) for s in (state, begun))
  )
  return stage, state, moved


def _along(seed: int):
  return lambda client, moved: channels.along(seed, client, moved)


def _drawn(config: Config, count: int) -> tuple[np.ndarray, np.ndarray]:
  """(canaries, ascending; which of them are in, at least 2 on either side)."""
  rng = draws.generator(config.seed, Stream.AUDIT)
  who = np.sort(rng.permutation(config.partition.num_clients)[:count])
  included = rng.random(count) < 0.5
  while min(included.sum(), (~included).sum()) < 2:
    included = rng.random(count) < 0.5
  return who, included


def _check_canaries(config: Config, count: int) -> None:
  clients, p, s = config.partition.num_clients, config.privacy, config.schedule
  if not 8 <= count <= clients:
    raise ValueError(
      f'--canaries={count} is not allowed; allowed: 8 to --partition.'
      f'num_clients={clients}.'
    )
  wrong = {
    f'--privacy.mode={p.mode}': (p.mode != CENTRAL, 'central'),
    f'--privacy.population={p.population}': (p.population > 0, '0'),
    f'--privacy.masks={p.masks}': (p.masks != 'public', 'public'),
    f'--privacy.clipping={p.clipping}': (p.clipping != 'fixed', 'fixed'),
    f'--schedule.name={s.name}': (s.name != 'dense', 'dense'),
    f'--schedule.order={s.order}': (s.order != 'top_down', 'top_down'),
    f'--schedule.budgets={s.budgets}': (s.budgets, 'empty'),
    f'--server.optimizer={config.server.optimizer}': (
      config.server.optimizer != 'mean',
      'mean',
    ),
    f'--attack.update={config.attack.update}': (
      config.attack.update != 'none',
      'none',
    ),
  }
  for flag, (found, allowed) in wrong.items():
    if found:
      raise ValueError(
        f'{flag} does not go with --what=canaries, which looks for what '
        'canaries of the clip have added to the shared part; allowed: '
        f'{allowed}.'
      )


def shadows(config: Config, runs: int, most: int) -> dict[str, Any]:
  """How well rows that were trained on are told from others, by LiRA over runs
  with halves of the rows; of each model.

  most: rows that are asked for.
  """
  if not 6 <= runs <= 1024 or runs % 2:
    raise ValueError(
      f'--shadows={runs} is not allowed; allowed: even numbers from 6 to 1024, '
      'for a row is in half of the runs.'
    )
  world = worlds.world(config)
  first = _simulation(config, world)
  train = first.federation.train
  owners = np.repeat(np.arange(train.num_clients), train.sizes())
  rng = draws.generator(config.seed, Stream.AUDIT)
  asked = np.sort(rng.permutation(len(owners))[:most])
  phi: dict[str, list[np.ndarray]] = {}
  member = []
  for run in range(runs):
    kept = membership.half(train, config.seed, run)
    stages = [membership.halved(stage, kept) for stage in world.stages]
    made = _again(first, stages, config.seed + run)
    found = membership.log_odds(
      made, made.run(), train.rows[asked], owners[asked]
    )
    for name, values in found.items():
      phi.setdefault(name, []).append(values)
    member.append(kept[asked])
  there = np.stack(member)
  return {
    'kind': 'membership',
    'runs': runs,
    'rows': len(asked),
    'models': {n: _told(np.stack(x), there) for n, x in phi.items()},
  }


def _told(phi: np.ndarray, member: np.ndarray) -> dict[str, float]:
  """AUC and hits at few false positives, of all runs' scores together."""
  scores = audit.lira(phi, member)
  known = np.isfinite(scores)
  inside, outside = scores[known & member], scores[known & ~member]
  return {'auroc': audit.auroc(inside, outside)} | {
    f'hits_at_{rate:g}': audit.true_positives(inside, outside, rate)
    for rate in _RATES
  }


def inverted(config: Config, rows: int, search: inversion.Search):
  """How well the one row of a client is rebuilt from its first message, which
  is one step of gradient descent on it; of some rows.

  Raises:
    ValueError: the inputs are no images.
  """
  client = dataclasses.replace(
    config.client, optimizer='sgd', momentum=0.0, max_norm=0.0, steps=1
  )
  config = dataclasses.replace(config, client=client)
  world = worlds.world(config)
  columns = world.data.table.columns
  if columns['inputs'].ndim != 4 or 'labels' not in columns:
    raise ValueError(
      f'--data.source={config.data.source} has no images with labels, which '
      '--what=inversion rebuilds. Take other data.'
    )
  stage = world.stages[0]._replace(rounds=0)
  made = _simulation(config, world._replace(stages=[stage]))
  roles = made.run().roles
  algorithm = stage.algorithm
  if not jax.tree.leaves(roles.shared):
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} sends nothing that a row '
      'could be rebuilt from. Take another method.'
    )
  guess = _guess(columns['inputs'], world.data.public)
  rng = draws.generator(config.seed, Stream.AUDIT)
  chosen = rng.permutation(world.data.train.rows)[:rows]
  key = seeds.stream(config.seed, Stream.CLIENT)
  rates = {k: jnp.float32(x) for k, x in made.local(0).rates.items()}
  told = []
  for row in chosen.tolist():
    image = jnp.asarray(columns['inputs'][row], jnp.float32)
    label = jnp.asarray(columns['labels'][row], jnp.int32)
    given = image, label, key, rates
    told.append(_rebuilt(algorithm, roles, search, guess, *given))
  means = {n: float(np.mean([x[n] for x in told])) for n in told[0]}
  return {'kind': 'inversion', 'rows': len(told), 'steps': search.steps} | means


def _guess(inputs: np.ndarray, public: np.ndarray):
  """The mean of the public images, or gray: where a search begins."""
  shown = inputs[public] if len(public) else np.full_like(inputs[:1], 127)
  return jnp.asarray(shown.mean(0), jnp.float32)


def _rebuilt(algorithm, roles, search, guess, *given):
  """What the message of one row shows of it. given: the row's image and label,
  the key and the learning rates of its step."""
  image, label, *_ = given
  plan = Plan((True,) * algorithm.backbone.blocks, 0)
  message = _sent(algorithm, plan, roles, *given)
  found, off = inversion.invert(
    algorithm, plan, search, roles, message, guess, *given[1:]
  )
  return {
    'psnr': inversion.psnr(found, image),
    'psnr_of_guess': inversion.psnr(guess, image),
    'distance': float(off),
    'label_shown': inversion.revealed(message) == int(label),
  }


@compile.jit(static=(0, 1))
def _sent(algorithm, plan, roles, image, label, key, rates):
  return inversion.sent(algorithm, plan, roles, image, label, key, rates)


def _simulation(config: Config, world) -> driver.Simulation:
  """A simulation of a world of which nothing is kept."""
  watch = observer.Observers(observer.Notes())
  return simulated.simulation(config, world, run_store.Memory(), watch)


def _again(first: driver.Simulation, stages, seed: int | None = None):
  """The same simulation of other stages, from the same model."""
  options = first.options
  return driver.Simulation(
    first.federation,
    first.initial,
    stages,
    options if seed is None else options._replace(seed=seed),
    run_store=run_store.Memory(),
    observer=observer.Observers(),
  )
