"""What lies between clients and server in a run: its channel, built of flags.

Here, and nowhere else, each kind of channel adds its member. The order is that
in which a client's message goes through them.
"""

from __future__ import annotations

import functools

from fedms_jax import channel
from fedms_jax.core.contract import Channel
from fedms_jax.shell import privacy
from fedms_jax.shell.config import Config
from fedms_jax.simulation.state import Stage


def wired(config: Config, stages: list[Stage]) -> list[Stage]:
  """The stages with what their messages pass through, and what guards them.

  Raises:
    ValueError: the flags do not go together.
  """
  plan = privacy.plan(config, stages)
  out = []
  for number, stage in enumerate(stages):
    members: list[Channel] = []
    if plan is not None:
      members += privacy.channel(config, plan, number)
      stage = stage._replace(guard=privacy.guard(config, plan, number))
    if members:
      made = _chained(tuple(members))
      stage = stage._replace(algorithm=stage.algorithm._replace(channel=made))
    out.append(stage)
  return out


@functools.lru_cache(maxsize=64)
def _chained(members: tuple[Channel, ...]) -> Channel:
  """One object for equal members, so that runs share compiled programs."""
  return members[0] if len(members) == 1 else channel.chain(*members)
