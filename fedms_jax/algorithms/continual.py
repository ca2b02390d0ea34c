"""Learning one task after another, around any algorithm.

What a run knows of its tasks is in `frozen[KEY]`: in which step it is, which
classes compete for a row, which ones are learned, what the model was when the
last task ended (the teacher), and how much the tasks before depend on each
parameter. A loss reads it through derived columns, a gradient through the
optimizer, so that no algorithm knows of it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import tree
from fedms_jax.core.contract import (
  Algorithm,
  Prediction,
  Start,
)
from fedms_jax.core.types import Batch, Plan, Roles, Task, Tree

KEY = 'tasks'  # of frozen
SERVER, TASK = 'server', 'task'
_LOW = -1e9  # the logit of a class that does not compete
_STEP, _TEACHER = 'step', 'teacher'
FISHER, ANCHOR = 'fisher', 'anchor'
_VISIBLE, _LEARNED, _OLD = 'visible', 'learned', 'old'
_MASKS = (_VISIBLE, _LEARNED, _OLD)


class How(NamedTuple):
  """What an algorithm does to remember. taught: it needs the teacher's logits.
  anchored: it needs what earlier tasks depend on. fresh: its head begins with
  random weights. index, of: which stage of a task this is, and of how many."""

  taught: bool = False
  anchored: bool = False
  fresh: bool = True
  index: int = 0
  of: int = 1


def start(visible, learned, old) -> dict[str, Tree]:
  """What frozen has of a sequence before its first step: bool [S, T, C] each.

  visible: the classes that compete for a row of a task, where it is scored.
  learned: those that compete in its loss. old: those that the teacher knows.
  """
  arrays = {_VISIBLE: visible, _LEARNED: learned, _OLD: old}
  return {KEY: {name: jnp.asarray(x) for name, x in arrays.items()}}


@functools.lru_cache(maxsize=64)
def through(algorithm: Algorithm, how: How) -> Algorithm:
  """The algorithm as a stage of each of a sequence of tasks: it goes on with
  the model of the task before. Where it learns no classes, none compete.

  Raises:
    ValueError: when it begins, where what it would have to remember with is
      part of no model that all clients have.
  """

  masks = _MASKS if algorithm.task.kind == 'classes' else ()

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    mine = roles.frozen[KEY]
    found = dict(algorithm.columns(roles, batch, plan))
    at = mine[_STEP], batch[TASK]
    for name in masks:
      found[name] = mine[name][at]
    if how.taught:
      old = roles._replace(**mine[_TEACHER])
      said = algorithm.predict(old, batch | found, plan).logits
      found[_TEACHER] = said[algorithm.served].astype(jnp.float32)
    return found

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    found = algorithm.predict(roles, batch, plan)
    if not masks:
      return found
    logits = {
      name: jnp.where(batch[_VISIBLE], x, jnp.asarray(_LOW, x.dtype))
      for name, x in found.logits.items()
    }
    return found._replace(logits=logits)

  names = (*masks, *([_TEACHER] if how.taught else []))
  passes = algorithm.passes
  ahead = passes._replace(ahead=passes.ahead + how.taught)
  return algorithm._replace(
    begin=functools.partial(_begin, algorithm, how),
    columns=columns,
    derived=(*algorithm.derived, *names),
    predict=predict,
    passes=ahead,
  )


def _begin(algorithm: Algorithm, how: How, key, before: Roles) -> Roles:
  """The roles of a stage of `through`."""
  mine = dict(before.frozen[KEY])
  plain = {k: x for k, x in before.frozen.items() if k not in (KEY, SERVER)}
  before, held = before._replace(frozen=plain), f'held{how.index}'
  new = _STEP not in mine
  if new:
    mine[_STEP] = jnp.int32(-1)
  if how.index:
    mine[f'held{how.index - 1}'] = _copied(_without_base(before))
  if how.index == 0:
    mine[_STEP] = mine[_STEP] + 1
  if new and how.index == 0:
    begun = before
    if how.fresh:
      head = algorithm.backbone.init_head(jax.random.fold_in(key, 0x4EAD))
      begun = before._replace(frozen=plain | {'head': head})
    roles = algorithm.begin(key, begun)
  elif how.index:
    roles = algorithm.begin(key, before)
    if held in mine:
      roles = roles._replace(shared=mine[held]['shared'])
  elif how.of == 1:
    roles = before
  else:
    mine[f'held{how.of - 1}'] = _copied(_without_base(before))
    kept = mine[held]
    base = {k: plain[k] for k in ('base',) if k in plain}
    roles = Roles(base | kept['frozen'], kept['shared'], kept['personal'])
  mine |= _remembered(how, roles, mine, new)
  # A copy: what trains is given away to compiled steps.
  shared = _copied(roles.shared)
  return roles._replace(frozen=roles.frozen | {KEY: mine}, shared=shared)


def _remembered(how: How, roles: Roles, mine: Tree, new: bool) -> Tree:
  """What a task remembers of the one before. new: there was none."""
  found = {}
  if how.taught:
    if jax.tree.leaves(roles.personal):
      raise ValueError(
        '`Tasks.method` with a teacher needs a model that all clients have, '
        'and this algorithm has personal parts; allowed: finetune, joint, '
        'replay, ewc.'
      )
    teacher = {'shared': roles.shared, 'personal': roles.personal}
    found[_TEACHER] = _copied(teacher)
  if how.anchored and new:
    nothing = jax.tree.map(jnp.zeros_like, roles.shared)
    found |= {FISHER: nothing, ANCHOR: _copied(nothing)}
  return found


def _copied(tree_: Tree) -> Tree:
  return jax.tree.map(jnp.copy, tree_)


def _without_base(roles: Roles) -> dict[str, Tree]:
  frozen = {k: x for k, x in roles.frozen.items() if k != 'base'}
  return roles._replace(frozen=frozen)._asdict()


class Lesson(NamedTuple):
  """What a task's loss is made of. teacher: 'lwf' or 'glfc'; '': the labels
  alone. weight, temperature: of LwF's second term."""

  teacher: str = ''
  weight: float = 0.0
  temperature: float = 2.0


@functools.lru_cache(maxsize=64)
def learning(task: Task, lesson: Lesson) -> Task:
  """The task, in which classes that are not learned do not compete, and what
  the teacher says of old ones is learned, too.

  LwF (arXiv 1606.09282): the cross-entropy over new classes, and beside it
  weight * sum_c -softmax(teacher / t)_c log softmax(student / t)_c over old
  ones. GLFC (arXiv 2203.11473, section 3.2): half of a binary cross-entropy
  whose rows weigh by how wrong they are, among old and among new ones apart,
  and half of one with what the teacher says of old classes as its targets.
  Batches without the columns of a task, of public rows, are learned plainly.
  """

  def loss(logits, batch: Batch):
    if _LEARNED not in batch:
      return task.loss(logits, batch)
    if lesson.teacher == 'glfc':
      return _glfc(logits, batch), batch['mask'].astype(jnp.float32)
    held = jnp.where(batch[_LEARNED], logits, jnp.asarray(_LOW, logits.dtype))
    values, weights = task.loss(held, batch)
    if lesson.teacher == 'lwf':
      said = distilled(batch[_TEACHER], logits, batch[_OLD], lesson.temperature)
      values = values + lesson.weight * said
    return values, weights

  def score(logits, batch: Batch):
    if _VISIBLE in batch:
      logits = jnp.where(
        batch[_VISIBLE], logits, jnp.asarray(_LOW, logits.dtype)
      )
    return task.score(logits, batch)

  return task._replace(loss=loss, score=score)


def distilled(teacher, student, old, temperature: float):
  """-sum_c softmax(teacher / t)_c log softmax(student / t)_c over the classes
  in `old`, float32 [B]; 0 where there are none. All [B, C]."""
  teacher = jax.lax.stop_gradient(teacher)
  q, p = (
    jnp.where(old, x.astype(jnp.float32) / temperature, _LOW)
    for x in (student, teacher)
  )
  each = jax.nn.softmax(p) * jnp.where(old, jax.nn.log_softmax(q), 0.0)
  return jnp.where(jnp.any(old, axis=-1), -jnp.sum(each, axis=-1), 0.0)


def _glfc(logits, batch: Batch):
  """GLFC's two losses of each row, float32 [B]."""
  x, known = logits.astype(jnp.float32), batch[_LEARNED] | batch[_OLD]
  classes = jnp.arange(x.shape[-1])
  hot = (batch['labels'][:, None] == classes[None, :]).astype(jnp.float32)
  old = jnp.any((hot > 0) & batch[_OLD], axis=-1)
  wrong = jnp.sum(jnp.abs(jax.nn.sigmoid(x) - 1.0) * hot, axis=-1)
  wrong = jax.lax.stop_gradient(wrong)

  def evened(rows):
    rows = (rows & batch['mask']).astype(jnp.float32)
    mean = jnp.sum(wrong * rows) / jnp.maximum(jnp.sum(rows), 1.0)
    return rows * wrong / jnp.maximum(mean, 1e-6)

  def mean(targets):
    each = optax.sigmoid_binary_cross_entropy(x, targets)
    count = jnp.maximum(jnp.sum(known, axis=-1), 1)
    return jnp.sum(jnp.where(known, each, 0.0), axis=-1) / count

  teacher = jax.nn.sigmoid(jax.lax.stop_gradient(batch[_TEACHER]))
  balanced = (evened(old) + evened(~old)) * mean(hot)
  return 0.5 * balanced + 0.5 * mean(jnp.where(batch[_OLD], teacher, hot))


def anchoring(weight: float) -> optax.GradientTransformationExtraArgs:
  """Adds the gradient of weight / 2 sum_i F_i (w_i - w*_i)^2 over what trains
  of the shared tree (EWC, arXiv 1612.00796): F and w* are those that
  `fisher.measured` has put into frozen."""

  def update(updates, state, params=None, **extra):
    start: Start = extra['start']
    mine, mask = start.roles.frozen[KEY], extra['masks'][0]
    fisher, anchor = (tree.narrow(mine[n], mask) for n in (FISHER, ANCHOR))
    assert params is not None
    pulled = jax.tree.map(
      lambda g, w, f, a: g + weight * f * (w - a),
      updates['shared'],
      params['shared'],
      fisher,
      anchor,
    )
    return updates | {'shared': pulled}, state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
