"""Role trees as objectives get them: what trains beside what does not."""

from __future__ import annotations

from fedms_jax.core import tree
from fedms_jax.core.activation import Stack, at_rest
from fedms_jax.core.contract import Start
from fedms_jax.core.types import Mask, Roles, Tree


def join(full: Tree, part: Tree, mask: Mask, blocks: int) -> Tree:
  """A role tree for an objective: stacked keys as `Stack`, others trained."""

  def joined(key, value):
    if not tree.is_stacked(key):
      return part.get(key, value)
    if key not in part:
      return at_rest(value, blocks)
    held = tree.trained(mask, key)
    active = held if isinstance(held, tuple) else (True,) * blocks
    return Stack(value, part[key], active)

  return {key: joined(key, value) for key, value in full.items()}


def join_roles(start: Start, train: Tree, masks: tuple[Mask, Mask]) -> Roles:
  """The roles of an objective whose {'shared', 'personal'} parts train."""
  roles, blocks = start.roles, len(start.plan.active)
  shared = join(roles.shared, train['shared'], masks[0], blocks)
  personal = join(roles.personal, train['personal'], masks[1], blocks)
  return Roles(roles.frozen, shared, personal)


def rest(full: Tree, blocks: int) -> Tree:
  """A role tree of which nothing trains, in the form of `join`."""
  return {
    key: at_rest(value, blocks) if tree.is_stacked(key) else value
    for key, value in full.items()
  }
