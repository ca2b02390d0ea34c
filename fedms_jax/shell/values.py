"""From the arguments of `run` to a config: names of flags, and values."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from fedms_jax.core.contract import Algorithm
from fedms_jax.core.metrics import Metric
from fedms_jax.data.arrays import Arrays
from fedms_jax.shell import catalog, flags, plugins
from fedms_jax.shell import config as config_lib
from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.config import Config

# What a value may be given for, and the flag that holds its name.
_NAMED = {
  'model': ('models', 'model.name'),
  'data': ('sources', 'data.source'),
  'algorithm': ('algorithms', 'algorithm.name'),
  'schedule': ('schedules', 'schedule.name'),
  'partition': ('partitions', 'partition.name'),
  'sampler': ('samplers', 'cohort.sampling'),
  'aggregator': ('aggregators', 'server.aggregator'),
  'task': ('tasks', 'model.task'),
}
_LISTED = {
  'metrics': ('metrics', 'eval.metrics'),
  'observers': ('observers', 'observers'),
}
# Methods that are another one with other options.
_WORDS = {
  'fedopt': {
    'algorithm.name': 'fedavg',
    'server.optimizer': 'adam',
    'server.learning_rate': 0.01,
  }
}
_FEWEST = 3  # rows of a client: to train, validate and test


def config(start: Config | None, given: Mapping[str, Any]) -> Config:
  """The config of a run.

  Args:
    start: to start from; None: the defaults.
    given: as of `session.run`.

  Raises:
    ValueError: an option that is none, or a value that is not allowed.
  """
  given = dict(given)
  base = {} if start is None else config_lib.values(start)
  plugins.load(given.get('plugin', base.get('plugin', '')))
  said = {}
  for name in [k for k in _NAMED if k in given]:
    if isinstance(given[name], Mapping) and name in _sections():
      continue  # options of the section
    said |= _one(name, given.pop(name))
  for name in [k for k in _LISTED if k in given]:
    said |= _several(name, given.pop(name))
  rounds = given.pop('rounds', None)
  for found in (base, given, said):  # whose options then are known
    name = found.get('algorithm.name', found.get('algorithm_name', ''))
    catalog.known(name)
  said |= _options(given)
  if rounds is not None:
    method = said.get('algorithm.name', base.get('algorithm.name', 'fedms'))
    said |= _rounds(rounds, method)
  usual = config_lib.values(Config())
  for name, value in _fitting(base | said).items():
    if name not in said and base.get(name, usual.get(name)) == usual.get(name):
      said[name] = value
  made = config_lib.from_values(base | said)
  config_lib.validate(made)
  return made


def _sections() -> set[str]:
  return {name.partition('.')[0] for name in _known() if '.' in name}


def _known() -> dict[str, Any]:
  return dict(config_lib.flatten(Config))


def _one(name: str, value: Any) -> dict[str, Any]:
  """What a named value says, by flag."""
  group, flag = _NAMED[name]
  if isinstance(value, str):
    return (
      dict(_WORDS.get(value, {flag: value}))
      if name == 'algorithm'
      else {flag: value}
    )
  if name == 'algorithm':
    value = _method(value)
    called = value.summary
  else:
    called = getattr(value, 'name', None) or getattr(value, '__name__', name)
  return {flag: plugins.give(group, _plain(called), value)}


def _plain(name: Any) -> str:
  """A name that a flag can hold."""
  kept = [c if c.isalnum() or c in '_-' else '-' for c in str(name)]
  return ''.join(kept).strip('-') or 'value'


_methods: dict[Any, Method] = {}


def _method(value: Any) -> Method:
  """A method, or a function that makes its stages, as a method; the same
  function gives the same one."""
  if isinstance(value, Method):
    return value
  if not callable(value) or isinstance(value, type):
    raise ValueError(
      f'`algorithm` is {type(value).__name__}; allowed: a name, a `Method`, or '
      'a function Builder -> list[Stage] or Algorithm.'
    )
  if value not in _methods:
    name = getattr(value, '__name__', 'method')
    _methods[value] = Method(name, '-', stages=_stages(value))
  return _methods[value]


def _stages(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """The function, whose algorithm is the one stage of a method."""

  def stages(builder):
    made = function(builder)
    if isinstance(made, Algorithm):
      return [builder.stage('method', made, builder.rounds)]
    return made

  return stages


def _several(name: str, given: Any) -> dict[str, Any]:
  """What a list of names and values says."""
  group, flag = _LISTED[name]
  if isinstance(given, str) or isinstance(given, Metric) or callable(given):
    given = [given]
  words: list[str] = []
  for i, value in enumerate(given):
    if not isinstance(value, str):
      called = getattr(value, 'name', None) or getattr(value, '__name__', name)
      called = _plain(called)
      if called in ('lambda', name):
        called = f'{called}-{i}'
      value = plugins.give(group, called, value)
    words.append(value)
  return {flag: ','.join(words)}


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
  """Options by the names of their flags.

  Raises:
    ValueError: there is no such option, or it is given twice.
  """
  known = _known()
  spelled = {name.replace('.', '_'): name for name in known}
  spelled |= {name: name for name in known}
  out: dict[str, Any] = {}
  for name, value in given.items():
    if isinstance(value, Mapping):
      pairs = {f'{name}.{key}': v for key, v in value.items()}
    else:
      pairs = {name: value}
    for key, one in pairs.items():
      key = flags.SHORT.get(key, key)
      if key not in spelled:
        close = difflib.get_close_matches(key, spelled, n=1)
        hint = f' Did you mean {close[0]}?' if close else ''
        raise ValueError(
          f'`{key}` is no option.{hint} `fedms --help` lists all; a dot is an '
          'underscore here.'
        )
      out[spelled[key]] = _typed(spelled[key], known[spelled[key]], one)
  return out


def _typed(name: str, field: Any, value: Any) -> Any:
  """A value of the type of its option."""
  kind = type(field.default)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if (
    kind is int and hasattr(value, '__index__') and not isinstance(value, bool)
  ):
    return int(value)
  if not isinstance(value, kind) or (
    kind is not bool and isinstance(value, bool)
  ):
    raise ValueError(
      f'--{name}={value!r} is {type(value).__name__}; allowed: {kind.__name__}.'
    )
  return value


def _rounds(rounds: Any, method: str) -> dict[str, Any]:
  """Rounds of the stages; of FedMS as its defaults share them, 3 to 2."""
  pair = rounds
  if isinstance(rounds, int):
    first = -(-3 * rounds // 5) if method == 'fedms' else rounds
    pair = (first, rounds - first)
  try:
    first, second = (int(n) for n in pair)
  except (TypeError, ValueError):
    raise ValueError(
      f'`rounds`={rounds!r} is not allowed; allowed: a number, or a pair.'
    ) from None
  return {'algorithm.stage1_rounds': first, 'algorithm.stage2_rounds': second}


def _fitting(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Defaults that fit the values that are given, by flag."""
  out: dict[str, Any] = {}
  model, source = flat.get('model.name', ''), flat.get('data.source', '')
  own = plugins.has('models', model)
  if own:
    out |= {'data.public_fraction': 0.0, 'schedule.name': 'dense'}
  data = (
    plugins.find('sources', source) if plugins.has('sources', source) else None
  )
  if isinstance(data, Arrays):
    out['model.head'] = data.head
    if data.groups is not None and flat.get('partition.name') is None:
      unseen = flat.get('partition.unseen_clients', 0)
      count = max(len(data.names) - unseen, 1)
      out |= {
        'partition.name': 'natural',
        'partition.num_clients': count,
        'partition.unseen_clients': 0,
        'partition.min_rows': _FEWEST,
      }
  clients = flat.get('partition.num_clients', out.get('partition.num_clients'))
  if clients is not None:
    out['cohort.size'] = min(Config().cohort.size, clients)
  return out
