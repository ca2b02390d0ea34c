"""A network of a user's own: any pure function of its parameters.

Nothing is known of its layers but their paths, so it has no blocks that a
schedule could activate; a path pattern says which parameters are its head, and
which kernels carry LoRA. Patterns are those of the shell, `Dense_0/*`, divided
by commas; one that names a layer stands for all that is below it.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.costs import BackboneCost
from fedms_jax.core.types import Backbone, Outputs, Task, Tree
from fedms_jax.models import counted, tasks

# What a loss of one's own is compared with, by what the data holds.
_ANSWERS = {
  'classes': 'labels',
  'levels': 'labels',
  'tags': 'tags',
  'values': 'values',
}
_TASKS = {
  'classes': tasks.classification,
  'levels': tasks.ordinal,
  'tags': tasks.multi_label,
  'values': tasks.regression,
}


class Network(NamedTuple):
  """A network, and what of it trains how; see `of`.

  init: (key, inputs of one example [1, ...]) -> parameters, any tree. apply:
  (parameters, inputs [B, ...], key) -> logits; key is of the step, None where
  nothing is trained. loss: a `Task`, or (logits, answers) -> [B]; None: what
  the data asks for. head: pattern of the parameters that personal methods keep.
  lora: pattern of the kernels [d_in, d_out] that carry LoRA, beside which the
  head alone trains; '': all parameters train. adapted: (parameters, {path: (A,
  B)}, scale, inputs, key) -> logits with LoRA beside the layers; None: LoRA is
  added to the kernels, which is one copy of them for each client of a chunk.
  beside: (parameters, inputs) -> paths of the kernels that `adapted` can take.
  """

  name: str
  init: Callable[[Any, Any], Tree]
  apply: Callable[[Tree, Any, Any], Any]
  loss: Task | Callable | None = None
  head: str = ''
  lora: str = ''
  adapted: Callable[..., Any] | None = None
  beside: Callable[[Tree, Any], frozenset[str]] | None = None


def of(
  init: Callable,
  apply: Callable,
  loss: Task | Callable | None = None,
  *,
  name: str = 'network',
  head: str = '',
  lora: str = '',
) -> Network:
  """A network of two functions.

  Args:
    init: key -> parameters, or (key, inputs of one example) -> parameters.
    apply: (parameters, inputs) -> logits, or (parameters, inputs, key) ->
      logits, where key, of the step, is None outside of training.
    loss: a `Task`; or (logits [B, ...], answers) -> losses [B], where answers
      are labels [B], or tags or values [B, C]; None: what the data asks for.
    name: of the network, in tables and files.
    head: see `Network`.
    lora: see `Network`.
  """
  if not _takes(init, 2):
    init = functools.partial(_without_inputs, init)
  if not _takes(apply, 3):
    apply = functools.partial(_without_key, apply)
  return Network(name, init, apply, loss, head, lora)


def _without_inputs(init, key, inputs):
  del inputs
  return init(key)


def _without_key(apply, params, inputs, key):
  del key
  return apply(params, inputs)


def _takes(function: Callable, count: int) -> bool:
  """Whether a function can be called with so many arguments."""
  try:
    inspect.signature(function).bind(*(None,) * count)
  except TypeError:
    return False
  return True


class Form(NamedTuple):
  """A network in the shape of the data, with its parameters by path.

  paths: of all leaves. treedef: of the parameters. fixed, body, head: paths of
  what never trains, of what trains beside the head, and of the head; with LoRA
  body are the kernels that carry it. beside: of those, the ones that
  `Network.adapted` takes.
  """

  network: Network
  paths: tuple[str, ...]
  treedef: Any
  fixed: tuple[str, ...]
  body: tuple[str, ...]
  head: tuple[str, ...]
  beside: frozenset[str]

  def flat(self, params: Tree) -> dict[str, Any]:
    """The leaves of parameters by path."""
    return dict(zip(self.paths, jax.tree.leaves(params), strict=True))

  def whole(self, flat: dict[str, Any]) -> Tree:
    """The parameters of leaves by path."""
    return self.treedef.unflatten([flat[path] for path in self.paths])


@functools.lru_cache(maxsize=64)
def form(network: Network, shape: tuple[int, ...], dtype: str) -> Form:
  """The form of a network for inputs [B, *shape]; the same arguments give the
  same object.

  Raises:
    ValueError: a pattern matches nothing, or the network cannot be called so.
  """
  example = jax.ShapeDtypeStruct((1, *shape), dtype)
  params = _shapes(network, example)
  found, treedef = jax.tree_util.tree_flatten_with_path(params)
  flat = {tree.path_name(path) or 'params': x for path, x in found}
  trains = [p for p, x in flat.items() if jnp.issubdtype(x.dtype, jnp.floating)]
  head = _matching(network, 'head', trains)
  body = tuple(path for path in trains if path not in head)
  beside = frozenset()
  if network.lora:
    kernels = [path for path in body if len(flat[path].shape) == 2]
    body = _matching(network, 'lora', kernels)
    if network.beside is not None:
      beside = network.beside(params, example) & set(body)
  kept = {*head, *body} if not network.lora else set(head)
  fixed = tuple(path for path in flat if path not in kept)
  return Form(network, tuple(flat), treedef, fixed, body, head, beside)


def _shapes(network: Network, example) -> Tree:
  """Shapes of the parameters."""
  try:
    return jax.eval_shape(network.init, jax.random.key(0), example)
  except (TypeError, ValueError) as e:
    told = ' '.join(str(e).split())[:300]
    raise ValueError(
      f'the network {network.name!r} cannot be made for inputs of the shape '
      f'[B, {", ".join(map(str, example.shape[1:]))}]: {told}'
    ) from e


def _matching(network: Network, what: str, paths: list[str]):
  """The paths that a pattern of the network matches, in their order."""
  found = {}
  for pattern in filter(
    None, map(str.strip, getattr(network, what).split(','))
  ):
    some = [
      path
      for path in paths
      if fnmatch.fnmatchcase(path, pattern)
      or fnmatch.fnmatchcase(path, f'{pattern}/*')
    ]
    if not some:
      kind = 'kernel [d_in, d_out]' if what == 'lora' else 'parameter'
      raise ValueError(
        f'the {what} pattern {pattern!r} matches no {kind} of the network '
        f'{network.name!r}; there are: {", ".join(paths) or "none"}.'
      )
    found |= dict.fromkeys(some)
  return tuple(path for path in paths if path in found)


@functools.lru_cache(maxsize=64)
def backbone(network: Network, shape: tuple[int, ...], dtype: str) -> Backbone:
  """What the engine asks of a model, for a network: parameters {'network':
  leaves by path}, one block that is always active, and costs, which are
  counted in the network's own operations."""
  made = form(network, shape, dtype)
  example = jax.ShapeDtypeStruct((1, *shape), dtype)

  def init(key) -> Tree:
    inputs = jnp.zeros((1, *shape), dtype)
    return {'network': tree.nested(made.flat(network.init(key, inputs)))}

  def logits(params: Tree, x, key=None):
    leaves = tree.flat(params['network'])
    return network.apply(made.whole(leaves), x, key)

  params = jax.eval_shape(init, jax.random.key(0))
  flops, kept = counted.cost(logits, params, example)
  return Backbone(
    blocks=1,
    width=1,
    init=init,
    init_head=lambda key: {},
    logits=lambda params, head, x: logits(params, x),
    cost=BackboneCost(0.0, flops, 0.0, 1, kept),
    **dict.fromkeys(('embed', 'mask', 'run', 'features'), _no_blocks),
  )


def _no_blocks(*args, **kwargs):
  raise ValueError(
    "a network of one's own has no blocks: this method cannot train it."
  )


def check_logits(
  made: Form, shape: tuple[int, ...], dtype: str, outputs: int
) -> None:
  """Raises `ValueError` unless the logits are [B, outputs]."""
  network = made.network
  example = jax.ShapeDtypeStruct((2, *shape), dtype)
  params = _shapes(network, example)
  found = jax.eval_shape(
    lambda params, x: network.apply(params, x, None), params, example
  )
  got = getattr(found, 'shape', None)
  if isinstance(network.loss, Task) or network.loss is None:
    if got != (2, outputs):
      raise ValueError(
        f'the network {network.name!r} gives logits of the shape '
        f'{_said(got)}; allowed: [B, {outputs}], one for each of the '
        f'{outputs} outputs of the data.'
      )


def _said(shape) -> str:
  if shape is None:
    return 'of no array'
  return f'[{", ".join(["B", *map(str, shape[1:])])}]'


@functools.lru_cache(maxsize=64)
def task(loss: Task | Callable | None, outputs: Outputs | None) -> Task:
  """What a network learns of data with these outputs; the same arguments give
  the same object. A loss of one's own keeps the score of the data's task."""
  if isinstance(loss, Task):
    return loss
  usual = _TASKS[outputs.kind if outputs else 'classes']()
  if loss is None:
    return usual
  answers = _ANSWERS[usual.kind]

  def own(logits, batch):
    values = loss(logits, batch[answers])
    rows = batch['mask'].astype(jnp.float32)
    if values.shape != rows.shape:
      raise ValueError(
        f'the loss gives the shape {list(values.shape)} for {len(rows)} rows; '
        'allowed: one number for each row, [B].'
      )
    return values, rows

  return usual._replace(loss=own)
