"""Training by outputs alone: no derivative of the model is taken.

MeZO trains what another method trains, by estimated slopes (`core.zeroth`). In
two other families a short code stands for all that trains, w = w_0 + sum_s c_s
z_s with fixed random z_s, and the code alone passes between clients and server:

- FedKSeed (arXiv 2312.06353): c has a number for each of so many seeds, and z_s
  is drawn from the seed s. A step moves one of them.
- BBT (arXiv 2201.03514), FedBPT (arXiv 2310.01467): c is the mean of a CMA-ES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, cma, evolution, joined, tree, zeroth
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Message,
  Prediction,
  Server,
  Start,
)
from fedms_jax.core.evolution import SEARCH, Strategy
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree
from fedms_jax.core.zeroth import Estimator
from fedms_jax.server import averaged, ranked

SEEDS = 'seeds'
WHOLE, DRAWS, MAP = 'whole', 'draws', 'map'  # in frozen['start']
_TOGETHER = 64  # directions that are drawn at once

Maker = Callable[[Setting], Algorithm]


def queried(passes: Passes, queries: int) -> Passes:
  """The passes of a step that asks for so many losses of each row.

  A pass through what was trained is one forward; what runs beside it did so
  there and back, as much again (see `Passes`).
  """
  beside = passes.beside

  def flops(shapes: Roles) -> tuple[float, float]:
    step, once = beside(shapes) if beside else (0.0, 0.0)
    return queries * step / 2, once

  return passes._replace(
    trained=0,
    again=queries * passes.trained,
    beside=flops if beside else None,
    queries=queries,
  )


def mezo(
  setting: Setting, make: Maker, estimator: Estimator, name: str = 'mezo'
) -> Algorithm:
  """MeZO (arXiv 2305.17333), and SPSA, of what another method trains.

  make: setting -> that method. The optimizer is the setting's, as it is.
  """

  def local(objective, optimizer, masks, prepare) -> ClientUpdate:
    return zeroth.zeroth(
      objective, optimizer, masks, estimator, prepare=prepare
    )

  method = make(setting._replace(local=local))
  passes = queried(method.passes, estimator.queries)
  return method._replace(name=name, passes=passes)


class Code(NamedTuple):
  """What stands for all that trains.

  key: of the role tree that has it. init: (key, frozen, whole) -> (code, what
  joins frozen['start']). whole: (frozen, code) -> what trains, as the method
  has it.
  """

  key: str
  init: Callable[[Any, Tree, Tree], tuple[Tree, Tree]]
  whole: Callable[[Tree, Tree], Tree]


def coded(
  name: str,
  method: Algorithm,
  code: Code,
  queries: int,
  server: Server,
  *,
  own: bool = False,
) -> Algorithm:
  """A method whose shared tree is a code.

  Args:
    name: of the algorithm.
    method: what trains, all of it shared; its update reads a code already.
    code: see `Code`.
    queries: losses that a step asks for of each row.
    server: what merges codes.
    own: each client has a code of its own and sends nothing.
  """
  served = 'local' if own else 'global'

  def begin(seed, before: Roles) -> Roles:
    roles = method.begin(seed, before)
    frozen, whole = roles.frozen, roles.shared
    made, kept = code.init(jax.random.fold_in(seed, 1), frozen, whole)
    start = frozen.get('start', {}) | kept | {WHOLE: whole}
    made = {code.key: made}
    shared, personal = ({}, made) if own else (made, {})
    return Roles(frozen | {'start': start}, shared, personal)

  def uncoded(roles: Roles) -> Roles:
    found = (roles.personal if own else roles.shared)[code.key]
    return Roles(roles.frozen, code.whole(roles.frozen, found), {})

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    found = method.predict(uncoded(roles), batch, plan)
    logits = dict(found.logits)
    logits[served] = logits.pop(method.served)
    return Prediction(logits, found.stats)

  return _begun(method)._replace(
    name=name,
    begin=begin,
    predict=predict,
    models=lambda r: {served: method.models(uncoded(r))[method.served]},
    server=server,
    masks=client.everywhere,
    served=served,
    passes=queried(_begun(method).passes, queries),
  )


def _begun(method: Algorithm) -> Algorithm:
  """The method, whose columns and passes see what it began with in place of
  what is shared."""
  beside = method.passes.beside

  def of(roles: Roles) -> Roles:
    return roles._replace(shared=roles.frozen['start'][WHOLE])

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    return method.columns(of(roles), batch, plan)

  def flops(shapes: Roles) -> tuple[float, float]:
    return beside(of(shapes)) if beside else (0.0, 0.0)

  passes = method.passes._replace(beside=flops if beside else None)
  return method._replace(columns=columns, passes=passes)


def _at(objective, start: Start, whole: Tree, batch: Batch, key):
  """An objective's value at all that trains."""
  shared = joined.rest(whole, len(start.plan.active))
  roles = Roles(start.roles.frozen, shared, {})
  return objective(roles, batch, key, start)


class Seeds(NamedTuple):
  """FedKSeed's choice. count: of the seeds. step: c of the two losses. rate: a
  step moves c_s by -rate d. kind: of the directions."""

  count: int = 4096
  step: float = 5e-4
  rate: float = 1e-3
  kind: str = 'gaussian'


def fedkseed(setting: Setting, make: Maker, choice: Seeds) -> Algorithm:
  """FedKSeed (arXiv 2312.06353): one number for each seed passes, whatever the
  model.

  Clients are averaged by their weights, where the public code adds them up.
  """
  estimator = Estimator(choice.kind, choice.step)
  zeroth.check(estimator)

  def drawn(frozen: Tree, number):
    start = frozen['start']
    key = jax.random.fold_in(jax.random.key(0), start[DRAWS])
    key = jax.random.fold_in(key, number)
    return zeroth.direction(choice.kind, key, start[WHOLE])

  def init(key, frozen: Tree, whole: Tree):
    del frozen, whole
    return jnp.zeros(choice.count), {DRAWS: jax.random.bits(key)}

  def whole(frozen: Tree, code) -> Tree:
    numbers = jnp.arange(choice.count)

    def added(args):
      z = drawn(frozen, args[0])
      return tree.scale(z, args[1])

    def block(total, args):
      some = jax.vmap(added)(args)
      return jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total, some), ()

    width = min(_TOGETHER, choice.count)
    room = -choice.count % width  # which nothing is added for
    args = jnp.pad(numbers, (0, room)), jnp.pad(code, (0, room))
    args = jax.tree.map(lambda x: x.reshape(-1, width), args)
    return jax.lax.scan(block, frozen['start'][WHOLE], args)[0]

  code = Code(SEEDS, init, whole)

  def local(objective, optimizer, masks, prepare) -> ClientUpdate:
    del optimizer, masks, prepare
    return _by_seeds(objective, choice, drawn, whole)

  method = make(setting._replace(local=local))
  server = adapted.server(setting)
  return coded('fedkseed', method, code, estimator.queries, server)


def _by_seeds(objective, choice: Seeds, drawn, whole) -> ClientUpdate:
  """Steps along directions of seeds, each drawn from all of them."""

  def begin(start: Start) -> Tree:
    code = start.roles.shared[SEEDS]
    return {'at': whole(start.roles.frozen, code), SEEDS: code}

  def step(carry: Tree, start: Start, batch: Batch, key):
    pick, key = jax.random.split(key)
    number = jax.random.randint(pick, (), 0, choice.count)
    z = drawn(start.roles.frozen, number)

    def loss(point: Tree):
      return _at(objective, start, point, batch, key)

    d, sums = zeroth.slope_along(loss, carry['at'], z, choice.step)
    by = -choice.rate * d
    code = carry[SEEDS].at[number].add(by)
    return {'at': zeroth.moved(carry['at'], z, by), SEEDS: code}, sums

  def finish(carry: Tree, start: Start):
    return Message({SEEDS: carry[SEEDS]}), start.roles.personal

  return ClientUpdate(begin, step, finish)


class Search(NamedTuple):
  """How BBT and FedBPT search.

  dimension: n. population: lambda. sigma: step size at first. scale: alpha,
  the standard deviation of what is added at first, over that of the words.
  diagonal: see `cma.Shape`. server: 'average' of the clients' searches;
  'rank', FedBPT's own (see `server.ranked`); 'none', each client by itself.
  """

  dimension: int = 500
  population: int = 20
  sigma: float = 1.0
  scale: float = 1.0
  diagonal: bool = False
  server: str = 'average'

  @property
  def shape(self) -> cma.Shape:
    return cma.Shape(self.dimension, self.diagonal)


def evolved(
  setting: Setting, make: Maker, choice: Search, name: str
) -> Algorithm:
  """CMA-ES in a random subspace of what another method trains.

  With 'average', clients go on from the server's search, its paths included,
  and the server has the mean of theirs: of m, C, the paths and log sigma; it is
  ours. A client's fitness for 'rank' is the weighted mean of the losses of the
  parents of its last generation; the public code asks for further ones, of
  texts of which half is replaced.
  """
  rank, own = choice.server == 'rank', choice.server == 'none'
  strategy = Strategy(choice.shape, choice.population, own=own, told=rank)

  def init(key, frozen: Tree, whole: Tree):
    state = cma.begin(choice.shape, choice.sigma)
    return state, {MAP: subspace(key, frozen, whole, choice)}

  def at(frozen: Tree, point) -> Tree:
    start = frozen['start']
    return jax.tree.map(
      lambda x, a: (x + jnp.tensordot(point, a, 1)).astype(x.dtype),
      start[WHOLE],
      start[MAP],
    )

  def local(objective, optimizer, masks, prepare) -> ClientUpdate:
    del optimizer, masks, prepare

    def fitness(point, start: Start, batch: Batch, key):
      whole = at(start.roles.frozen, point)
      return _at(objective, start, whole, batch, key)

    return evolution.evolution(fitness, strategy)

  method = make(setting._replace(local=local))
  code = Code(SEARCH, init, lambda frozen, state: at(frozen, state['mean']))
  if rank:
    parents = len(cma.weights(choice.population))
    server = ranked.ranked(choice.shape, parents)
  else:
    server = averaged.averaged(setting.aggregator, setting.outer)
  return coded(name, method, code, choice.population, server, own=own)


def subspace(key, frozen: Tree, whole: Tree, choice: Search) -> Tree:
  """Random maps [n, ...] from codes to all that trains: normal, so that what a
  first point adds to a prompt has `scale` times the standard deviation of the
  word embeddings, as BBT has it; of other leaves, of what they begin as, or
  0.02 of those that begin as zeros."""
  leaves, structure = jax.tree.flatten_with_path(whole)
  words = _words(frozen['base'])
  maps = []
  for number, (path, x) in enumerate(leaves):
    named = tree.path_name(path) == 'prompt' and words is not None
    spread = jnp.std(jnp.asarray(words if named else x, jnp.float32))
    spread = jnp.where(spread > 0, spread, 0.02)
    unit = choice.scale / (choice.dimension**0.5 * choice.sigma)
    drawn = jax.random.normal(
      jax.random.fold_in(key, number), (choice.dimension, *x.shape)
    )
    maps.append(unit * spread * drawn)
  return jax.tree.unflatten(structure, maps)


def _words(base: Tree):
  """The embeddings of words, where the model has such; else None."""
  return base.get('text', base).get('stem', {}).get('word')
