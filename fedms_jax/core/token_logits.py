"""Logits of tokens that are never there as a whole.

A vocabulary is wider than a model: logits [B, T, V] in float32 of each client
are what fills an accelerator with language models. `TokenLogits` says how they
are computed, token by token; `measured` computes them for a chunk of tokens at
a time, measures them, and lets go of them. What fits into one chunk is an
array as ever.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.core.types import Tree

CHUNK_BYTES = 32 * 2**20  # of the logits of one client, all models together


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('whole', 'tokens', 'inputs'),
  meta_fields=('read', 'shape', 'once'),
)
@dataclasses.dataclass(frozen=True, eq=False)
class TokenLogits:
  """Logits [B, T, V] by what each token has.

  read: (whole, tokens, *logits of the inputs [n, V]) -> logits [n, V] of any n
  tokens, each by itself. whole: arrays that all tokens read. tokens: arrays
  [B, T, ...], of which `read` gets [n, ...]. inputs: other logits of the same
  tokens. shape: (B, T, V). once: see `of`.
  """

  read: Callable[..., Any]
  whole: Tree
  tokens: Tree
  inputs: tuple[TokenLogits, ...]
  shape: tuple[int, int, int]
  once: Callable[[Tree, Any], Tree]


def _as_it_is(whole: Tree, tokens: Tree) -> Tree:
  del tokens
  return whole


def of(logits: Callable, whole: Tree, features, once=_as_it_is) -> Any:
  """`logits(whole, features)`, unless that is [B, T, V] of features [B, T, D]
  and more than a chunk; then `TokenLogits`.

  logits: computes each token by itself, and closes over no arrays. once:
  (whole, features) -> what stands for `whole` where many chunks read it.
  """
  shape = jax.eval_shape(logits, whole, features).shape
  by_token = features.ndim == 3 and shape[:-1] == features.shape[:-1]
  if not by_token or 4 * math.prod(shape) <= CHUNK_BYTES:
    return logits(whole, features)
  return TokenLogits(logits, whole, features, (), shape, once)


def combined(function: Callable, tokens: Tree, *inputs) -> Any:
  """`function(tokens, *inputs)` of logits that are all arrays [B, T, V], or
  all `TokenLogits`.

  tokens: arrays [B, T or 1, ...] or scalars, which `function` gets as [n, ...]
  and as [n, 1] beside logits [n, V].
  """
  if not isinstance(inputs[0], TokenLogits):
    return function(tokens, *inputs)
  shape = inputs[0].shape

  def apart(x):
    x = jnp.asarray(x)
    return jnp.broadcast_to(x, (*shape[:2], *(x.shape[2:] if x.ndim else (1,))))

  def read(whole, tokens, *logits):
    del whole
    return function(tokens, *logits)

  tokens = jax.tree.map(apart, tokens)
  return TokenLogits(read, (), tokens, inputs, shape, _as_it_is)


def constant(logits) -> Any:
  """The same logits, through which no gradient passes."""
  return combined(lambda _, x: jax.lax.stop_gradient(x), (), logits)


def nbytes(logits) -> int:
  """Bytes of logits, arrays or shapes; of `TokenLogits`, of what the tokens
  have."""
  held = logits.tokens if isinstance(logits, TokenLogits) else logits
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))


def measured(
  measures: Sequence[Callable], several: Sequence[TokenLogits], targets
):
  """What several logits of the same tokens are worth, in one pass.

  Args:
    measures: each (logits [n, V], targets [n]) -> [n].
    several: logits of shape (B, T, V).
    targets: int32 [B, T].

  Returns:
    (total, values). total: float32 [B, T], the first measure added up over
    the logits, which is what a gradient passes through. values: of each
    logits, each measure, float32 [B, T], without a gradient.
  """
  batch, length, vocabulary = several[0].shape
  nodes = _nodes(several)
  cut, joined = _chunks(batch * length, len(nodes) * vocabulary)
  read, wholes, tokens = _reader(measures, several, nodes)
  tokens, targets = jax.tree.map(
    lambda x: cut(x.reshape(batch * length, *x.shape[2:])), (tokens, targets)
  )
  total, values = jax.tree.map(
    lambda x: joined(x).reshape(batch, length),
    _in_chunks(read)(wholes, tokens, targets),
  )
  return total, jax.lax.stop_gradient(values)


def _reader(measures, several: Sequence[TokenLogits], nodes):
  """(read, wholes, tokens): a function of `_in_chunks`, and what it reads, as
  plain tuples of arrays. Logits that others are made of are computed once."""
  places = {id(node): i for i, node in enumerate(nodes)}
  made = {}
  for node in nodes:
    key = _same(node)
    if key not in made:
      made[key] = node.once(node.whole, node.tokens)
  wholes, a = jax.tree.flatten([made[_same(node)] for node in nodes])
  tokens, b = jax.tree.flatten([node.tokens for node in nodes])

  def read(wholes, tokens, targets):
    logits = []
    wholes, tokens = (
      jax.tree.unflatten(a, wholes),
      jax.tree.unflatten(b, tokens),
    )
    for node, whole, own in zip(nodes, wholes, tokens, strict=True):
      inputs = [logits[places[id(x)]] for x in node.inputs]
      logits.append(node.read(whole, own, *inputs))
    found = [
      [measure(logits[places[id(x)]], targets) for measure in measures]
      for x in several
    ]
    return sum(first for first, *_ in found), jax.lax.stop_gradient(found)

  return read, tuple(wholes), tuple(tokens)


def _same(node: TokenLogits) -> tuple:
  """What logits share that read the same arrays in the same form."""
  leaves, structure = jax.tree.flatten(node.whole)
  return (node.once, structure, *map(id, leaves))


def _nodes(several: Sequence[TokenLogits]) -> list[TokenLogits]:
  """All that is read, each once, after its inputs."""
  found: dict[int, TokenLogits] = {}

  def visit(node: TokenLogits):
    for x in node.inputs:
      visit(x)
    found.setdefault(id(node), node)

  for node in several:
    visit(node)
  return list(found.values())


def _chunks(count: int, width: int) -> tuple[Callable, Callable]:
  """(cut, joined): tokens [count, ...] into equal chunks [n, size, ...], the
  last one filled up with zeros, and back. width: of all logits of a token."""
  most = max(1, CHUNK_BYTES // (4 * width))
  number = -(-count // most)
  size = -(-count // number)

  def cut(x):
    more = [(0, number * size - count)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, more).reshape(number, size, *x.shape[1:])

  return cut, lambda x: x.reshape(number * size, *x.shape[2:])[:count]


def _in_chunks(read: Callable) -> Callable:
  """`read` over chunks [n, size, ...] of tokens, one after another.

  read: (wholes, tokens, targets) -> (total, values), with a gradient of the
  total alone. The total of a token depends on that token, so its derivative is
  known as soon as its logits are: it is computed with them and kept, instead
  of the logits. Only where what all tokens read trains too, logits are
  computed again in the backward pass.
  """

  def each(wholes, tokens, targets):
    return jax.lax.map(lambda chunk: read(wholes, *chunk), (tokens, targets))

  def forward(wholes, tokens, targets):
    held = jax.tree.map(lambda x: x.value, (wholes, tokens, targets))
    whole, own = _split(wholes), _split(tokens)
    if any(x is not None for x in whole[0]):
      return each(*held), (whole, own, held[2])
    found, slopes = _with_slopes(read, held[0], own, held[2])
    return found, slopes

  def backward(kept, cotangent):
    change = cotangent[0]
    if isinstance(change, jax.custom_derivatives.SymbolicZero):
      return None, None, None
    if len(kept) == 3:
      wholes, tokens, targets = kept
      return *_again(read, wholes, tokens, targets, change), None
    (slopes,) = kept
    return None, jax.tree.map(lambda x: _scaled(x, change), slopes), None

  run = jax.custom_vjp(each)
  run.defvjp(forward, backward, symbolic_zeros=True)
  return run


def _with_slopes(read: Callable, wholes, tokens, targets):
  """What `read` gives of each chunk, and the derivative of each total by the
  tokens that move, in a tuple."""

  def one(chunk):
    moved, fixed, targets = chunk

    def by_token(moved):
      return read(wholes, _merged(moved, fixed), targets)

    total, back, values = jax.vjp(by_token, moved, has_aux=True)
    return (total, values), back(jnp.ones_like(total))

  return jax.lax.map(one, (*tokens, targets))


def _again(read: Callable, wholes, tokens, targets, change):
  """Cotangents of what moves of wholes and tokens, from those [n, size] of the
  totals."""

  def one(sums, chunk):
    moved, fixed, targets, change = chunk

    def by_both(whole, moved):
      return read(_merged(whole, wholes[1]), _merged(moved, fixed), targets)

    _, back, _ = jax.vjp(by_both, wholes[0], moved, has_aux=True)
    by_whole, by_token = back(change)
    return jax.tree.map(jnp.add, sums, by_whole), by_token

  # Of many chunks, so bfloat16 would not do.
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), wholes[0])
  sums, by_token = jax.lax.scan(one, zeros, (*tokens, targets, change))
  sums = jax.tree.map(lambda x, like: x.astype(like.dtype), sums, wholes[0])
  return sums, by_token


def _split(primals):
  """(what a gradient is asked of, the rest), each with None in place of the
  other."""
  moved = tuple(x.value if x.perturbed else None for x in primals)
  fixed = tuple(None if x.perturbed else x.value for x in primals)
  return moved, fixed


def _merged(moved, fixed):
  pairs = zip(moved, fixed, strict=True)
  return tuple(y if x is None else x for x, y in pairs)


def _scaled(slope, change):
  """Derivatives [n, size, ...] of totals times cotangents [n, size]."""
  change = change.reshape(*change.shape, *(1,) * (slope.ndim - 2))
  return (change * slope.astype(jnp.float32)).astype(slope.dtype)
