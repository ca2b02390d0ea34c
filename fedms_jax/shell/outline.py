"""What readers of a run's folder want to know of its data and stages."""

from __future__ import annotations

import json

from fedms_jax.persistence import files
from fedms_jax.shell import foundation
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import evaluation, shares

# Clients whose rows partition.json counts.
MOST_SHOWN = 200


def write(workdir, world: worlds.World, shared: bool) -> None:
  """Writes it. shared: models with class shares are served."""
  data = world.data
  files.write_atomic(
    workdir.facts, json.dumps(foundation.facts(data)._asdict()) + '\n'
  )
  shown = range(min(data.train.num_clients, MOST_SHOWN))
  labels = data.table.label_names
  partitions = {'train': data.train, 'test': data.test}
  outline = {
    name: evaluation.counts(data.table, partition, shown).tolist()
    for name, partition in partitions.items()
  }
  outline |= {
    'classes': labels,
    'clients': data.train.num_clients,
    'dealt': data.dealt,
  }
  files.write_atomic(workdir.partition, json.dumps(outline) + '\n')
  stages = [
    {
      'name': s.name,
      'rounds': None if s.open else s.rounds,
      'served': s.algorithm.served + shares.SUFFIX * shared,
    }
    for s in world.stages
  ]
  files.write_atomic(workdir.stages, json.dumps(stages) + '\n')
