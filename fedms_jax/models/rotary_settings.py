"""The words of a config.json about its rotary angles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedms_jax.models import rotary
from fedms_jax.models.settings import Settings

_LLAMA3 = (
  'factor',
  'low_freq_factor',
  'high_freq_factor',
  'original_max_position_embeddings',
)
_CONTEXT = 'original_max_position_embeddings'
# What each type needs, and what it may have.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  'default': ((), _LLAMA3),  # which it leaves aside
  'linear': (('factor',), _LLAMA3),
  'dynamic': (('factor',), ()),
  'llama3': (_LLAMA3, ()),
  'yarn': (
    ('factor', _CONTEXT),
    (
      'attention_factor',
      'beta_fast',
      'beta_slow',
      'mscale',
      'mscale_all_dim',
      'truncate',
    ),
  ),
  'longrope': (
    ('short_factor', 'long_factor', _CONTEXT),
    ('factor', 'attention_factor'),
  ),
}


class Rope(NamedTuple):
  """base: of the angles. scaling: how they are stretched. share: of the width
  of a head that is turned."""

  base: float
  scaling: rotary.Scaling = rotary.Scaling()
  share: float = 1.0


def read(
  config: Settings,
  *,
  base: float = 10000.0,
  positions: int = 2048,
  partial: bool = False,
  names: Mapping[str, str] | None = None,
  context: int = 0,
) -> Rope:
  """The rotary angles of a whole config.json.

  Of `rope_scaling` and `rope_parameters` the former holds if both are there,
  as in transformers; the base must then be the same by both.

  Args:
    config: config.json.
    base: where no base is given.
    positions: where `max_position_embeddings` is not given.
    partial: whether the family may turn a part of each head alone.
    names: further words for types.
    context: original_max_position_embeddings where nothing says it.
  """
  newer, older = config.table('rope_parameters'), config.table('rope_scaling')
  where = 'rope_scaling' if older else 'rope_parameters'
  values = dict(older or newer)
  usual = config.number('rope_theta', base)
  share = config.number('partial_rotary_factor', 1.0)
  _take_context(config, values, where, names, context)
  found = of(
    values,
    where,
    base=usual,
    positions=config.integer('max_position_embeddings', positions),
    share=share,
    names=names,
  )
  if older and newer.get('rope_theta', found.base) != found.base:
    raise ValueError(
      f'config.json has rope_theta={newer["rope_theta"]!r} in rope_parameters, '
      f'but rope_scaling, which holds, has {found.base!r}. Give one of them '
      'alone.'
    )
  if found.share != 1.0 and not (partial and 0.0 < found.share < 1.0):
    own = f'{where} of ' if 'partial_rotary_factor' in values else ''
    raise ValueError(
      f'{own}config.json has partial_rotary_factor={found.share!r}; allowed: '
      + ('more than 0, at most 1. ' if partial else '1.0. ')
      + 'This variant of the model is not supported.'
    )
  return found


def _take_context(config: Settings, values: dict, where: str, names, usual):
  """Puts the context of the whole config among the values: the outer one
  holds, as in transformers."""
  given = config.integer(_CONTEXT, usual)
  if not given:
    return
  if values.get(_CONTEXT) not in (None, given):
    raise ValueError(
      f'config.json has {_CONTEXT}={given!r}, but {values[_CONTEXT]!r} in '
      f'{where}. Give one of them alone.'
    )
  if _kind(values, names) in ('llama3', 'yarn', 'longrope'):
    values[_CONTEXT] = given


def of(
  values: Mapping[str, Any],
  where: str,
  *,
  base: float,
  positions: int,
  share: float = 1.0,
  names: Mapping[str, str] | None = None,
) -> Rope:
  """The rotary angles that one table says; `where` is its name."""
  rope = Settings(values, f'{where} of config.json')
  base = rope.number('rope_theta', base)
  share = rope.number('partial_rotary_factor', share)
  allowed = {key: key for key in _KINDS} | dict(names or {})
  kind = rope.choice('type', 'default', allowed)
  kind = allowed[rope.choice('rope_type', kind, allowed)]
  needs, may = _KINDS[kind]
  lists = ('short_factor', 'long_factor')
  numbers = {
    key: float(rope.number(key, 0.0))
    for key in (*needs, *may)
    if key not in (*lists, 'truncate')
  }
  pairs = {key: rope.numbers(key) for key in lists if key in needs}
  whole = rope.flag('truncate', True) if 'truncate' in may else True
  lacking = [key for key in needs if not (numbers | pairs)[key]]
  unknown = rope.unread()
  if lacking or unknown:
    raise ValueError(
      f'{where} of config.json, of the type {kind!r}, '
      + (f'lacks {lacking[0]}' if lacking else f'has {unknown[0].split()[0]}')
      + f'; allowed: {", ".join(("rope_theta", *needs))}. Mend it.'
    )
  scaling = _scaling(kind, numbers, pairs, whole, positions)
  return Rope(float(base), scaling, share)


def _kind(values: Mapping[str, Any], names: Mapping[str, str] | None) -> str:
  kind = str(values.get('rope_type') or values.get('type'))
  return (names or {}).get(kind, kind)


def _scaling(
  kind: str,
  numbers: Mapping[str, float],
  pairs: Mapping[str, tuple[float, ...]],
  whole: bool,
  positions: int,
) -> rotary.Scaling:
  """The stretching of this type, as transformers computes it."""
  if kind == 'linear':
    return rotary.Linear(numbers['factor'])
  if kind == 'dynamic':
    return rotary.Dynamic(numbers['factor'], positions)
  if kind == 'llama3':
    return rotary.Llama3(*(numbers[key] for key in _LLAMA3))
  if kind == 'yarn':
    return rotary.Yarn(
      numbers['factor'],
      numbers[_CONTEXT],
      numbers['beta_fast'] or 32.0,
      numbers['beta_slow'] or 1.0,
      whole,
      gain=numbers['attention_factor'] or _yarn_gain(numbers),
    )
  if kind == 'longrope':
    context = numbers[_CONTEXT]
    factor = numbers['factor'] or positions / context
    gain = 1.0
    if factor > 1.0:
      gain = math.sqrt(1.0 + math.log(factor) / math.log(context))
    return rotary.LongRope(
      pairs['short_factor'],
      pairs['long_factor'],
      int(context),
      gain=numbers['attention_factor'] or gain,
    )
  return rotary.Scaling()


def _yarn_gain(numbers: Mapping[str, float]) -> float:
  """The temperature of YaRN (arXiv 2309.00071, section 3.4), or the quotient
  of two, where both weights of DeepSeek's variant are given."""

  def gain(weight: float) -> float:
    factor = numbers['factor']
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

  own, all_dims = numbers['mscale'], numbers['mscale_all_dim']
  return gain(own) / gain(all_dims) if own and all_dims else gain(1.0)
