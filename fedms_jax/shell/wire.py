"""What lies between clients and server in a run: its channel, built of flags.

Here, and nowhere else, each kind of channel adds its member. The order is that
in which a client's message goes through them.
"""

from __future__ import annotations

import functools

from fedms_jax import channel
from fedms_jax.channel import compression, discrete, protocol, secure
from fedms_jax.core import inner_state
from fedms_jax.core.contract import Channel
from fedms_jax.core.wire import INNER
from fedms_jax.data import sampling as samplers
from fedms_jax.shell import attacks, privacy, timing, wire_rules
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import CENTRAL, DISTRIBUTED
from fedms_jax.simulation.state import Stage


def wired(config: Config, stages: list[Stage]) -> list[Stage]:
  """The stages with what their messages pass through, and what guards them.

  Raises:
    ValueError: the flags do not go together.
  """
  wire_rules.check(config, stages)
  attacks.check(config)
  plan = privacy.plan(config, stages)
  out, before = [], 0
  for number, stage in enumerate(stages):
    # First of all, so that what follows is put upon malicious clients, too.
    members: list[Channel] = attacks.channel(config, stage, before)
    stage = attacks.opened(config, stage)
    before += stage.rounds
    members += codes(config)
    if config.compression.feedback:
      stage = _keeping(stage)
    if plan is not None:
      members += privacy.channel(config, plan, number)
      stage = stage._replace(guard=privacy.guard(config, plan, number))
    members += timing.channel(config)
    if config.secagg.on:
      members.append(secure.secure(sum_of(config, stage, plan, number)))
    if members:
      made = _chained(tuple(members))
      stage = stage._replace(algorithm=stage.algorithm._replace(channel=made))
    out.append(stage)
  return out


@functools.lru_cache(maxsize=64)
def _chained(members: tuple[Channel, ...]) -> Channel:
  """One object for equal members, so that runs share compiled programs."""
  return members[0] if len(members) == 1 else channel.chain(*members)


def codes(config: Config) -> list[Channel]:
  """The codes of both directions."""
  c, out = config.compression, []
  if c.down != 'none':
    out.append(compression.down(compression.Code(c.down, c.levels, c.share)))
  if c.up != 'none':
    code = compression.Code(
      c.up,
      c.levels,
      c.share,
      c.feedback,
      c.decay,
      common=config.secagg.on,
      entropy=c.entropy,
    )
    out.append(compression.up(code))
  return out


def _keeping(stage: Stage) -> Stage:
  """The stage whose clients keep what a code has lost, in this stage alone."""
  carry, probe = stage.carry, stage.probe

  def carried(before, new):
    assert carry is not None
    own = carry(inner_state.model(before), inner_state.model(new))
    return own | {INNER: new[INNER]}

  return stage._replace(
    algorithm=inner_state.with_residual(stage.algorithm),
    probe=None if probe is None else inner_state.with_residual(probe),
    carry=None if carry is None else carried,
  )


def sum_of(
  config: Config, stage: Stage, plan: privacy.Plan | None, number: int
) -> protocol.Secure:
  """The secure sum of a stage."""
  s, c = config.secagg, config.cohort
  how = samplers.sampling(
    c.sampling, config.partition.num_clients, c.size, c.cap, c.groups
  )
  span, noise = s.range or 1.0, None
  if plan is not None and config.privacy.mode in (CENTRAL, DISTRIBUTED):
    span = privacy.clip(config, number)
  share = 1.0
  if config.compression.up != 'none':
    share = config.compression.share
  made = protocol.Secure(
    bits=privacy.secagg_bits(config),
    range=span,
    weight=s.max_weight or 1.0,
    most=how.cap if how.random else how.size,
    blocks=stage.algorithm.backbone.blocks,
    modulus=s.modulus,
    masked=s.mode == 'masked',
    # A cohort of random size seldom is as large as it may be.
    neighbors=s.neighbors or (c.size - 1 if how.random else 0),
    threshold=s.threshold,
    survivors=s.survivors,
    share=share,
  )
  if how.random and not s.threshold:
    made = made._replace(threshold=made.shares // 2 + 1)
  if plan is not None and config.privacy.mode == DISTRIBUTED:
    z = plan.noise[number]
    least = max(made.needed, s.survivors or -(-2 * c.size // 3))
    noise = discrete.Noise(z, least) if z else None
  return made._replace(noise=noise)
