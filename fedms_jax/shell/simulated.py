"""The simulation of a run, from its world."""

from __future__ import annotations

import functools

from fedms_jax.core import tree
from fedms_jax.core.types import Federation, Roles, Tree
from fedms_jax.shell import attacks, build, task_run, tasks
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.simulation import coming, driver, evaluation


def simulation(
  config: Config, world: worlds.World, keep, watch, source=worlds, place=None
):
  """The simulation of a world. What its server trains ahead is kept, so that
  a resumed run need not; a base model that was only loaded is read again."""
  before = functools.cache(lambda: source.initial(config, world))
  shapes = worlds.pretrained_shapes(config, world)
  make = functools.partial(_simulation, config, world, keep, watch, place)

  def opening():  # which is compiled while the server trains
    # Of several processes each would read its rows twice for a guess.
    if place and (place.mesh is not None or place.peers.processes > 1):
      return []
    return coming.first(make(world.data, tree.shapes(before().frozen) | shapes))

  made = keep.pretrained(
    shapes,
    lambda: source.pretrained(config, world, before(), watch, opening),
  )
  loaded = {} if 'base' in made else before().frozen
  frozen = loaded | made
  data = task_run.herded(config, world.data, world.model, frozen)
  return make(data, frozen)


def _simulation(
  config: Config,
  world: worlds.World,
  keep,
  watch,
  place,
  data: Federation,
  frozen: Tree,
) -> driver.Simulation:
  """The simulation that begins with `frozen`, arrays or shapes."""
  made = task_run.driver(config, data, world.stages, keep)(
    evaluation.limited(data, config.eval.pooled_rows, config.seed),
    Roles(frozen | tasks.frozen(config, data), {}, {}),
    world.stages,
    build.options(config, world.watched),
    run_store=keep,
    observer=watch,
    place=place,
  )
  made.aimed = attacks.aimed(world.data, world.poison)
  if not config.algorithm.label_prior:
    made.final = scope(config, world)
  return made


def scope(
  config: Config, world: worlds.World, stage: int = -1
) -> evaluation.Scope:
  """How much is evaluated after a stage."""
  e = config.eval
  clients = min(e.clients, world.data.test.num_clients)
  # A run that has not come to its last stage may learn something else so far.
  kinds = [world.stages[i].algorithm.task.kind for i in (stage, -1)]
  alike = kinds[0] == kinds[1]
  return evaluation.Scope(
    e.clients,
    # Of so many clients none has a large model or many rows.
    width=8 if clients <= evaluation.MOST_LISTED else 64,
    metrics=world.watched.metrics if alike else (),
    readers=e.readers,
    mixed=e.mixed,
  )
