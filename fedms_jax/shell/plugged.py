"""What a run makes of the values of plugins: checked, and in its own types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedms_jax.shell import plugins

if TYPE_CHECKING:  # help is made without JAX
  from fedms_jax.core.metrics import Metric
  from fedms_jax.core.types import Task
  from fedms_jax.models.network import Network
  from fedms_jax.schedules.triggers import Begin, Trigger
  from fedms_jax.server.averaged import Aggregator


def aggregator(name: str) -> Aggregator:
  """The aggregator of --server.aggregator: a value, or a function of nothing
  that makes one."""
  from fedms_jax.server.averaged import Aggregator

  found = plugins.find('aggregators', name)
  made = found if isinstance(found, Aggregator) else _called(found)
  return _is(made, Aggregator, 'aggregators', name)


def trigger(name: str, begin: Begin) -> Trigger:
  """The trigger of --schedule: a value, or a function of `Begin`."""
  from fedms_jax.schedules.triggers import Trigger

  found = plugins.find('schedules', name)
  made = found if isinstance(found, Trigger) else _called(found, begin)
  return _is(made, Trigger, 'schedules', name)


def sampler(name: str) -> str | Callable:
  """What --cohort.sampling names, as `sampling.sampling` takes it."""
  return _function('samplers', name)


def partition(name: str) -> str | Callable:
  """What --partition.name names, as `partition.deal` takes it."""
  return _function('partitions', name)


def _function(group: str, name: str) -> str | Callable:
  if not plugins.has(group, name):
    return name
  found = plugins.find(group, name)
  if not callable(found):
    raise ValueError(_wrong(found, group, name, 'a function'))
  return found


def network(name: str) -> Network:
  """The network of --model.name."""
  from fedms_jax.models.network import Network

  return _is(plugins.find('models', name), Network, 'models', name)


def task(name: str) -> Task | None:
  """The task of --model.task; None where there is none."""
  if not name:
    return None
  from fedms_jax.core.types import Task

  found = plugins.find('tasks', name)
  if found is None:
    raise ValueError(
      f'--model.task={name!r} is no task of a plugin; there are: '
      f'{", ".join(plugins.names("tasks")) or "none"}. Is --plugin missing?'
    )
  return _is(found, Task, 'tasks', name)


def metric(name: str) -> Metric | None:
  """The metric of a plugin; None if there is none of this name."""
  found = plugins.find('metrics', name)
  if found is None:
    return None
  from fedms_jax.core.metrics import Metric

  return _is(found, Metric, 'metrics', name)._replace(name=bare(name))


def observers(names: str) -> list[Any]:
  """The observers of --observers, as `observer.Observers` has them: values,
  classes of them, or functions that get the record of each round."""
  from fedms_jax.simulation.observer import Each, Silent

  made = []
  for name in filter(None, map(str.strip, names.split(','))):
    found = plugins.find('observers', name)
    if isinstance(found, type) and issubclass(found, Silent):
      found = found()
    if not isinstance(found, Silent):
      if not callable(found):
        raise ValueError(
          f'--observers={name} is no observer; there are: '
          f'{", ".join(plugins.names("observers")) or "none"}.'
        )
      found = Each(found)
    made.append(found)
  return made


def bare(name: str) -> str:
  """A name as tables show it."""
  return name.removeprefix(plugins.GIVEN)


def _called(found: Any, *args) -> Any:
  return found(*args) if callable(found) else found


def _is(found: Any, kind: type, group: str, name: str) -> Any:
  if not isinstance(found, kind):
    raise ValueError(_wrong(found, group, name, f'a `{kind.__name__}`'))
  return found


def _wrong(found: Any, group: str, name: str, allowed: str) -> str:
  return (
    f'{bare(name)!r} of {group} is {type(found).__name__}; allowed: {allowed}.'
  )
