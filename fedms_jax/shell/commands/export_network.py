"""What `fedms export` writes of a run of a network of one's own."""

from __future__ import annotations

import jax
import numpy as np

from fedms_jax.core.types import Tree
from fedms_jax.persistence.snapshot import Snapshot
from fedms_jax.shell import simulated
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.simulation import observer

_ASKED = {'global': 'global', 'local': 'client:k'}  # by name, how for it


def parts(config: Config, client: int | None) -> Tree:
  """All arrays of the network, of all clients or of one.

  Raises:
    ValueError: the method has no such model.
  """
  snapshot = Snapshot(config.workdir)
  try:
    world = worlds.world(config)
    watch = observer.Observers()
    simulation = simulated.simulation(config, world, snapshot, watch)
    state = snapshot.restore(simulation)
    stage, roles = simulation.stages[state.stage], state.roles
    if client is not None and jax.tree.leaves(roles.personal):
      states = simulation.store(state).gather(np.array([client]))
      roles = roles._replace(personal=jax.tree.map(lambda x: x[0], states))
    found = stage.algorithm.models(roles)
  finally:
    snapshot.close()
  name = 'global' if client is None else 'local'
  if name not in found:
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} has no {name} model; allowed: '
      f'--what={", ".join(_ASKED[known] for known in found)}.'
    )
  return found[name]
