"""Prompts and adapters of a frozen model: CLIP's family, and soft prompts."""

from __future__ import annotations

from fedms_jax.algorithms import (
  fedclip,
  fedotp,
  fedpgp,
  pfedmma,
  pfedmoap,
  pfedprompt,
  soft_prompts,
)
from fedms_jax.algorithms.frozen_backbone import Form
from fedms_jax.models.family import Prompted
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _fedclip(builder: Builder) -> list[Stage]:
  _needs_classes(builder, 'compares images with class prompts')
  return builder.alone(
    'global', builder.setting(), fedclip.fedclip, start='dense'
  )


def _promptfl(builder: Builder) -> list[Stage]:
  def make(setting):
    return soft_prompts.promptfl(setting, form(builder, setting))

  return builder.alone('global', builder.setting(), make, start='dense')


def _promptfolio(builder: Builder) -> list[Stage]:
  local = builder.own.local

  def make(setting):
    return soft_prompts.promptfolio(setting, form(builder, setting), local)

  return builder.alone('personal', builder.setting(), make, start='dense')


def _fedpgp(builder: Builder) -> list[Stage]:
  prompted, own = _prompted(builder), builder.own

  def make(setting):
    return fedpgp.fedpgp(
      setting,
      prompted,
      builder.config.prompt.length,
      rank=own.rank,
      weight=own.contrast,
      temperature=own.temperature,
    )

  return builder.alone('personal', builder.setting(), make, start='dense')


def _pfedmoap(builder: Builder) -> list[Stage]:
  prompted, config = _prompted(builder), builder.config
  own, width = builder.own, builder.backbone.width
  if own.width > width or own.width % own.heads:
    raise ValueError(
      f'--pfedmoap.width={own.width} with --pfedmoap.heads={own.heads} does '
      f'not fit features of width {width}; allowed: at most that, and a '
      'multiple of the heads. Change one of them.'
    )
  choice = pfedmoap.Choice(
    experts=own.experts,
    pool=min(own.pool, config.partition.num_clients),
    width=own.width,
    heads=own.heads,
    scale=own.scale,
    local=own.local,
  )
  setting = builder.setting(merges=True)
  method = pfedmoap.pfedmoap(setting, prompted, config.prompt.length, choice)
  return [builder.stage('personal', method, builder.rounds, start='dense')]


def _pfedprompt(builder: Builder) -> list[Stage]:
  prompted, own = _prompted(builder), builder.own
  choice = pfedprompt.Choice(own.rows, own.weight, own.sharpness)
  length = builder.config.prompt.length

  def make(setting):
    return pfedprompt.pfedprompt(
      setting, prompted, length, choice, classes=builder.classes
    )

  return builder.alone('personal', builder.setting(), make, start='dense')


def _fedotp(builder: Builder) -> list[Stage]:
  prompted, own = _prompted(builder), builder.own
  choice = fedotp.Choice(own.mass, own.entropy, own.rounds)
  length = builder.config.prompt.length

  def make(setting):
    return fedotp.fedotp(setting, prompted, length, choice)

  return builder.alone('personal', builder.setting(), make, start='dense')


def _pfedmma(builder: Builder) -> list[Stage]:
  prompted, own = _prompted(builder), builder.own
  most = min(builder.backbone.blocks, prompted.blocks)
  if own.blocks > most:
    raise ValueError(
      f'--pfedmma.blocks={own.blocks} is more than a tower has; allowed: 1 to '
      f'{most}. Lower it.'
    )
  blocks = own.blocks or -(-2 * most // 3)
  choice = pfedmma.Choice(blocks, own.width, own.scale)

  def make(setting):
    return pfedmma.pfedmma(setting, prompted, choice)

  return builder.alone('personal', builder.setting(), make, start='dense')


def form(builder: Builder, setting) -> Form:
  """What a prompt is for the model."""
  config = builder.config
  head, length = config.model.head, config.prompt.length
  if builder.model.prompted:
    return soft_prompts.of_classes(setting, _prompted(builder), length)
  name = config.algorithm.name
  if head == 'contrast':
    raise ValueError(
      f'--algorithm.name={name} learns prompts of classes or of one kind of '
      'input, and --model.head=contrast has two; allowed: any other head. Set '
      '--model.head=zero_shot for prompts of class names.'
    )
  if config.prompt.words:
    raise ValueError(
      f'--prompt.words={config.prompt.words!r} are words before the names of '
      f'classes, before which --model.head={head} of this model learns no '
      'prompt; allowed: empty. Leave it out, or set --model.head=zero_shot of '
      'a CLIP.'
    )
  return soft_prompts.of_inputs(setting, length)


def _prompted(builder: Builder) -> Prompted:
  """The text tower that prompts of class names need; it is checked."""
  _needs_classes(builder, 'learns prompts of class names')
  config, prompted = builder.config, builder.model.prompted
  assert prompted is not None  # it has class prompts
  most = prompted.room - 3  # a start, an end, and a name between
  if config.prompt.length > most and not config.prompt.words:
    raise ValueError(
      f'--prompt.length={config.prompt.length} leaves no room for the names of '
      f'classes among the {prompted.room} positions of the text tower; '
      f'allowed: 1 to {most}. Lower it.'
    )
  if config.pretrain.mode == 'full':
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} needs the text tower that '
      'belongs to the image tower, which --pretrain.mode=full moves away from '
      'it; allowed: none. Change one of them.'
    )
  return prompted


def _needs_classes(builder: Builder, why: str) -> None:
  """Raises `ValueError` if the model has no class prompts."""
  m = builder.config.model
  if builder.model.prompted is None:
    raise ValueError(
      f'--algorithm.name={builder.config.algorithm.name} {why}, which needs a '
      f'model with a text tower; got --model.name={m.name} with --model.head='
      f'{m.head}. Name a checkpoint of CLIP, and set --model.head=zero_shot.'
    )


STAGES = {
  'fedclip': _fedclip,
  'promptfl': _promptfl,
  'promptfolio': _promptfolio,
  'fedpgp': _fedpgp,
  'pfedmoap': _pfedmoap,
  'pfedprompt': _pfedprompt,
  'fedotp': _fedotp,
  'pfedmma': _pfedmma,
}
