"""Training by outputs alone, without a gradient, and prefixes with them."""

from __future__ import annotations

import jax

from fedms_jax.adapters import prefix
from fedms_jax.algorithms import (
  black_box,
  fedms,
  prefix_tuning,
  soft_prompts,
  visual_prompt,
)
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.zeroth import Estimator
from fedms_jax.shell.config import ClientConfig
from fedms_jax.shell.methods import prompts
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

# Flags of how a client descends, for methods that do so in their own way.
DESCENT = (
  'optimizer', 'learning_rate', 'momentum', 'weight_decay', 'beta1', 'beta2',
  'schedule', 'max_norm', 'personal_learning_rate',
)  # fmt: skip
# Orders that measure gradients, and heads of models with other inputs.
_MEASURED = ('importance', 'balanced', 'f3ocus')
_NO_IMAGES = ('contrast', 'masked_patches')


def _mezo(builder: Builder) -> list[Stage]:
  own = builder.own
  estimator = Estimator(own.kind, own.step, own.directions)
  make = _trained(builder)
  dense = 'dense' if own.trains == 'prompt' else 'restart'
  method = black_box.mezo(builder.setting(), make, estimator)
  return [builder.stage('global', method, builder.rounds, dense)]


def _fedkseed(builder: Builder) -> list[Stage]:
  own = builder.own
  choice = black_box.Seeds(own.seeds, own.step, own.rate)
  _check_descent(builder)
  method = black_box.fedkseed(builder.setting(), _trained(builder), choice)
  return [builder.stage('global', method, builder.rounds, 'dense')]


def _search(builder: Builder, server: str) -> list[Stage]:
  own, name = builder.own, builder.config.algorithm.name
  choice = black_box.Search(
    own.dimension,
    own.population,
    own.sigma,
    own.scale,
    own.covariance == 'diagonal',
    server,
  )
  _check_descent(builder)
  setting = builder.setting(merges=server != 'average', exact=True)
  method = black_box.evolved(setting, _trained(builder), choice, name)
  stage = 'personal' if server == 'none' else 'global'
  return [builder.stage(stage, method, builder.rounds, 'dense')]


def _bbt(builder: Builder) -> list[Stage]:
  return _search(builder, 'none')


def _fedbpt(builder: Builder) -> list[Stage]:
  return _search(builder, builder.own.server)


def _blackvip(builder: Builder) -> list[Stage]:
  own = builder.own
  estimator = Estimator('spsa', own.step, own.directions, own.step_decay)
  _check_descent(builder)
  setting = builder.setting()._replace(
    optimizer=visual_prompt.gains(
      own.rate, own.offset, own.rate_decay, own.momentum
    )
  )
  _check_images(builder)

  def make(setting: Setting) -> Algorithm:
    form = visual_prompt.of_pixels(setting, own.side, own.strength)
    return visual_prompt.prompted(setting, form)

  method = black_box.mezo(setting, make, estimator, 'blackvip')
  return [builder.stage('global', method, builder.rounds, 'dense')]


def _prefix(builder: Builder) -> list[Stage]:
  spec = prefix.Prefix(builder.own.length)
  return builder.alone(
    'global',
    builder.setting(),
    lambda setting: prefix_tuning.prefix_tuning(setting, spec),
  )


def _trained(builder: Builder) -> black_box.Maker:
  """What the method trains, as another one that takes gradients."""
  if builder.own.trains == 'lora':
    _check_blocks(builder)
    return lambda setting: fedms.global_stage(setting, adapter=builder.adapter)

  def make(setting: Setting) -> Algorithm:
    return soft_prompts.promptfl(setting, prompts.form(builder, setting))

  return make


def _check_images(builder: Builder) -> None:
  """Raises `ValueError` if the model does not read images alone."""
  base = jax.eval_shape(builder.backbone.init, jax.random.key(0))
  kernel, m = base['stem'].get('kernel'), builder.config.model
  if kernel is None or kernel.ndim != 4 or m.head in _NO_IMAGES:
    raise ValueError(
      f'--algorithm.name={builder.config.algorithm.name} adds to images, and '
      f'--model.name={m.name} with --model.head={m.head} does not read them '
      'alone; allowed: classification and zero_shot of models of images. '
      'Change one of them.'
    )


def _check_blocks(builder: Builder) -> None:
  """Raises `ValueError` for a schedule of LoRA that does not fit: one that
  measures gradients, or blocks that a code of all of them cannot leave out."""
  s, name = builder.config.schedule, builder.config.algorithm.name
  measured = s.order if s.order in _MEASURED else ''
  if s.order == 'allocation' and s.shape == 'importance':
    measured = s.shape
  if measured:
    raise ValueError(
      f'{measured!r} of --schedule.order={s.order} measures gradients, which '
      f'--algorithm.name={name} does not take. Set --schedule.order=top_down.'
    )
  if name != 'mezo' and s.cap:
    raise ValueError(
      f'--schedule.cap={s.cap} does not go with --algorithm.name={name}, '
      'whose code is of all blocks. Leave it out.'
    )


def _check_descent(builder: Builder) -> None:
  """Raises `ValueError` for flags of an optimizer that is not used."""
  given, usual = builder.config.client, ClientConfig()
  name = builder.config.algorithm.name
  for field in DESCENT:
    value = getattr(given, field)
    if value != getattr(usual, field):
      raise ValueError(
        f'--client.{field}={value} does not go with --algorithm.name={name}, '
        f'whose clients have steps of their own (--{name}.*). Leave it out.'
      )


STAGES = {
  'mezo': _mezo,
  'fedkseed': _fedkseed,
  'bbt': _bbt,
  'fedbpt': _fedbpt,
  'blackvip': _blackvip,
  'prefix': _prefix,
}
