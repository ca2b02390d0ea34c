"""Flax modules as networks: linen and nnx."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from fedms_jax.core.types import Task, Tree
from fedms_jax.models.network import Network


def of_flax(
  module: Any,
  loss: Task | Callable | None = None,
  *,
  head: str = '',
  lora: str = '',
  training: str = '',
) -> Network:
  """A Flax module as a network.

  Args:
    module: of `flax.linen`; of `flax.nnx`, whose parameters are then the start
      of a run, whatever its seed; or, of nnx, what makes one of `nnx.Rngs`,
      such as a class, for parameters that follow from the seed.
    loss: as of `network.of`.
    head: see `Network`.
    lora: see `Network`.
    training: of linen, the argument of the module that is True in training,
      such as 'train'. Dropout draws from the stream 'dropout'. Modules of nnx
      are set to train or to evaluate.

  Raises:
    ValueError: the module keeps something beside parameters, such as the
      averages of batch normalization, which no method here averages.
  """
  if isinstance(module, nn.Module):
    return _linen(module, training)._replace(loss=loss, head=head, lora=lora)
  if training:
    raise ValueError(
      f'training={training!r} is for modules of flax.linen; those of nnx '
      'know themselves. Leave it out.'
    )
  made = module if isinstance(module, nnx.Module) else None
  if made is None and not callable(module):
    raise ValueError(
      f'the module is {type(module).__name__}; allowed: a module of flax.linen '
      'or flax.nnx, or what makes one of nnx.Rngs.'
    )
  return _nnx(module)._replace(loss=loss, head=head, lora=lora)


@functools.lru_cache(maxsize=64)
def _linen(module: nn.Module, training: str) -> Network:
  """The network of a linen module; equal modules have one."""

  def call(params, inputs, key):
    rngs = {} if key is None else {'dropout': key}
    asked: dict[str, Any] = {training: key is not None} if training else {}
    return module.apply({'params': params}, inputs, rngs=rngs, **asked)

  def init(key, inputs) -> Tree:
    asked: dict[str, Any] = {training: False} if training else {}
    found = module.init(key, inputs, **asked)
    _check(type(module).__name__, set(found) - {'params'})
    return found.get('params', {})

  def adapted(params, adapters, scale: float, inputs, key):
    def beside(following, args, kwargs, context):
      y = following(*args, **kwargs)
      path = _kernel(context)
      if path not in adapters:
        return y
      a, b = adapters[path]
      return y + (args[0] @ a) @ (b * scale)

    with nn.intercept_methods(beside):
      return call(params, inputs, key)

  def dense(params, inputs) -> frozenset[str]:
    """The kernels of dense layers, seen in a call."""
    found = set()

    def note(following, args, kwargs, context):
      found.add(_kernel(context))
      return following(*args, **kwargs)

    with nn.intercept_methods(note):
      jax.eval_shape(lambda p, x: call(p, x, None), params, inputs)
    return frozenset(found - {''})

  name = type(module).__name__
  return Network(name, init, call, adapted=adapted, beside=dense)


def _kernel(context) -> str:
  """The path of the kernel of a dense layer that is being called, or ''."""
  plain = type(context.module) is nn.Dense
  if not plain or context.method_name != '__call__':
    return ''
  return '/'.join([*context.module.path, 'kernel'])


def _nnx(module: Any) -> Network:
  """The network of an nnx module, or of what makes one."""

  def made(key):
    found = module if isinstance(module, nnx.Module) else module(nnx.Rngs(key))
    graph, params, other = nnx.split(found, nnx.Param, ...)
    kinds = {
      type(leaf).__name__
      for leaf in jax.tree.leaves(
        other, is_leaf=lambda x: isinstance(x, nnx.Variable)
      )
      if not isinstance(leaf, nnx.RngState)
    }
    _check(type(found).__name__, kinds)
    return graph, params, other

  def init(key, inputs) -> Tree:
    del inputs
    return nnx.to_pure_dict(made(key)[1])

  def apply(params, inputs, key):
    graph, state, other = made(jax.random.key(0))
    nnx.replace_by_pure_dict(state, params)
    # A copy: what is traced must not be written into the user's module.
    model = nnx.merge(graph, state, other, copy=True)
    if key is None:
      model.eval()
    else:
      model.train()
      nnx.reseed(model, default=key, dropout=key)
    return model(inputs)

  named = module if isinstance(module, type) else type(module)
  if isinstance(module, nnx.Module) or isinstance(module, type):
    return Network(named.__name__, init, apply)
  return Network(getattr(module, '__name__', 'network'), init, apply)


def _check(name: str, kinds: set[str]) -> None:
  if kinds:
    raise ValueError(
      f'the module {name} keeps {", ".join(sorted(kinds))} beside its '
      'parameters, which nothing here would average; allowed: parameters '
      'alone. Normalize by groups or layers in place of batches, for example.'
    )
