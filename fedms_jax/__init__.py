"""Simulation of federated learning of foundation models in JAX.

    import fedms_jax
    result = fedms_jax.simulate(model, data, 'fedavg', rounds=20)

Names are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = '0.1.0'

# Where each public name lives.
_WHERE = {
  'run': 'shell.session',
  'simulate': 'shell.session',
  'Result': 'shell.result',
  'Config': 'shell.config',
  'Method': 'shell.catalog.entry',
  'opt': 'shell.fields',
  'Builder': 'shell.methods.builder',
  'from_arrays': 'data.arrays',
  'from_clients': 'data.arrays',
  'Source': 'data.sources',
  'Network': 'models.network',
  'of': 'models.network',
  'of_flax': 'models.flax_network',
  'Task': 'core.types',
  'Backbone': 'core.types',
  'Batch': 'core.types',
  'Federation': 'core.types',
  'Partition': 'core.types',
  'Plan': 'core.types',
  'Roles': 'core.types',
  'Table': 'core.types',
  'Algorithm': 'core.contract',
  'Channel': 'core.contract',
  'ClientUpdate': 'core.contract',
  'Message': 'core.contract',
  'Prediction': 'core.contract',
  'Received': 'core.contract',
  'Server': 'core.contract',
  'Start': 'core.contract',
  'sgd': 'core.client',
  'Metric': 'core.metrics',
  'of_means': 'models.class_measures',
  'Aggregator': 'server.averaged',
  'averaged': 'server.averaged',
  'mean': 'server.averaged',
  'Schedule': 'schedules',
  'Trigger': 'schedules.triggers',
  'Begin': 'schedules.triggers',
  'Stage': 'simulation.state',
  'Options': 'simulation.state',
  'Simulation': 'simulation.driver',
  'Observer': 'simulation.observer',
}
_CALLED = {'Observer': 'Silent'}  # where it has another name there

if TYPE_CHECKING:
  from fedms_jax.core.client import sgd
  from fedms_jax.core.contract import (
    Algorithm,
    Channel,
    ClientUpdate,
    Message,
    Prediction,
    Received,
    Server,
    Start,
  )
  from fedms_jax.core.metrics import Metric
  from fedms_jax.core.types import (
    Backbone,
    Batch,
    Federation,
    Partition,
    Plan,
    Roles,
    Table,
    Task,
  )
  from fedms_jax.data.arrays import from_arrays, from_clients
  from fedms_jax.data.sources import Source
  from fedms_jax.models.class_measures import of_means
  from fedms_jax.models.flax_network import of_flax
  from fedms_jax.models.network import Network, of
  from fedms_jax.schedules import Schedule
  from fedms_jax.schedules.triggers import Begin, Trigger
  from fedms_jax.server.averaged import Aggregator, averaged, mean
  from fedms_jax.shell.catalog.entry import Method
  from fedms_jax.shell.config import Config
  from fedms_jax.shell.fields import opt
  from fedms_jax.shell.methods.builder import Builder
  from fedms_jax.shell.result import Result
  from fedms_jax.shell.session import run, simulate
  from fedms_jax.simulation.driver import Simulation
  from fedms_jax.simulation.observer import Silent as Observer
  from fedms_jax.simulation.state import Options, Stage


def __getattr__(name: str):
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_WHERE[name]}')
  found = getattr(module, _CALLED.get(name, name))
  globals()[name] = found
  return found


def __dir__():
  return sorted(['__version__', *_WHERE])
