"""Methods that make the model, or its adapter, smaller."""

from __future__ import annotations

import jax
import optax

from fedms_jax.algorithms import fedpft, lonas, offsite, raffm, sub_model
from fedms_jax.core import inner_state
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation
from fedms_jax.data import draws
from fedms_jax.server import averaged
from fedms_jax.shell import build, foundation
from fedms_jax.shell.methods import pretraining
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _lonas(builder: Builder) -> list[Stage]:
  own, config = builder.own, builder.config
  setting = builder.setting(ranks=True, merges=True)
  if config.model.head == 'contrast':
    raise ValueError(
      '--algorithm.name=lonas counts rows that are right, and those of '
      '--model.head=contrast are compared with their batch; allowed: any '
      'other head. Change one of them.'
    )
  elastic = _ranks(own.ranks, config.lora.rank)
  search = lonas.Search(own.candidates, own.tolerance)
  first = lonas.super_stage(setting, elastic, rank_of=builder.rank_of())
  second = lonas.search_stage(setting, elastic, search)
  return [
    builder.stage('global', first, builder.rounds),
    builder.stage('search', second, own.search_rounds, 'dense')._replace(
      view=_unlearned
    ),
  ]


def _fedot(builder: Builder) -> list[Stage]:
  choice = offsite.Choice(builder.own.ends, builder.own.kept)

  def make(setting):
    return offsite.fedot(setting, choice, adapter=builder.adapter)

  if builder.config.model.head == 'contrast':
    raise ValueError(
      '--algorithm.name=fedot has one end before the blocks and one behind '
      'them, and --model.head=contrast has two towers; allowed: any other '
      'head. Change one of them.'
    )
  return builder.alone('global', builder.setting(), make, start='dense')


def _fedpft(builder: Builder) -> list[Stage]:
  """A stage of the server alone, and the federated one."""
  own, blocks = builder.own, builder.backbone.blocks
  setting = builder.setting(merges=True)
  _check_fedpft(builder)
  choice = sub_model.Choice(
    own.share,
    own.ends,
    own.product,
    own.interval,
    own.align_steps,
    own.batch_size,
    own.learning_rate,
  )
  first = fedpft.compressed(setting, choice, adapter=builder.adapter)
  slope = fedpft.tuned(
    setting._replace(optimizer=optax.sgd(1.0)), choice._replace(interval=0)
  )
  probe = slope._replace(server=averaged.meaning(slope.server))
  tuned = fedpft.tuned(setting, choice)
  rounds, local = pretraining.of_server(own.steps, own.batch_size)
  return [
    Stage(
      'compressed',
      inner_state.central(first),
      rounds,
      pretraining.dense(blocks),
      central=True,
      local=local,
    ),
    builder.stage('global', tuned, builder.rounds, probe=probe),
  ]


def _check_fedpft(builder: Builder) -> None:
  """Refuses what has no MLP to be cut, or no rows to learn it on."""
  own, config = builder.own, builder.config
  builder.check_float32('trains weights')
  builder.check_public('trains its sub-model')
  blocks = builder.backbone.blocks
  if 2 * own.ends >= blocks:
    raise ValueError(
      f'--fedpft.ends={own.ends} leaves none of the {blocks} blocks to be cut; '
      f'allowed: 0 to {(blocks - 1) // 2}. Lower it.'
    )
  if config.model.head == 'contrast':
    raise ValueError(
      '--algorithm.name=fedpft cuts the MLPs of one tower, and --model.head='
      'contrast has two; allowed: any other head. Change one of them.'
    )
  found = [x for x in build.lora_spec(config.lora).targets if 'mlp/' in x]
  if found:
    raise ValueError(
      f'--lora.targets={config.lora.targets} has {found[0]}, whose shape '
      '--algorithm.name=fedpft changes; allowed: layers of the attention. '
      'Change it.'
    )
  shapes = jax.eval_shape(builder.backbone.init, jax.random.key(0))
  if 'gate' in shapes['blocks']['mlp']:
    raise ValueError(
      '--algorithm.name=fedpft counts how often a neuron is at rest, which '
      f'those of the gated MLPs of --model.name={config.model.name} never '
      'are; allowed: models such as BERT, GPT-2 and ViT. Take another method.'
    )


def _raffm(builder: Builder) -> list[Stage]:
  own, config = builder.own, builder.config
  builder.check_float32('trains all weights')
  if config.model.head == 'contrast':
    raise ValueError(
      '--algorithm.name=raffm has parts of one tower, and --model.head='
      'contrast has two; allowed: any other head. Change one of them.'
    )
  shapes = jax.eval_shape(builder.backbone.init, jax.random.key(0))
  if 'gate' in shapes['blocks']['mlp']:
    raise ValueError(
      '--algorithm.name=raffm cuts plain MLPs and heads without rotary angles, '
      f'which --model.name={config.model.name} has not; allowed: models such '
      'as BERT, GPT-2 and ViT. Take another method.'
    )
  mlp, head = _shares('mlp', own.mlp), _shares('head', own.head)
  heads = 1 if head == (1.0,) else _heads(builder)
  raffm.shape(shapes['blocks'], heads)

  def width_of(number: int, client: int) -> raffm.Width:
    rng = draws.generator(config.seed, Stream.DEPTHS, client, number)
    return raffm.Width(
      mlp[int(rng.integers(len(mlp)))], head[int(rng.integers(len(head)))]
    )

  return builder.alone(
    'global',
    builder.setting(merges=True),
    lambda s: raffm.raffm(s, heads, width_of),
    start='dense',
  )


def _shares(name: str, text: str) -> tuple[float, ...]:
  """The shares that an option of RaFFM lists, each once."""
  try:
    found = tuple(dict.fromkeys(float(x) for x in text.split(',') if x.strip()))
  except ValueError:
    found = ()
  if not found or any(not 0 < share <= 1 for share in found):
    raise ValueError(
      f'--raffm.{name}={text!r} is no list of shares above 0 and up to 1; '
      f'write --raffm.{name}=1,0.5.'
    )
  return found


def _heads(builder: Builder) -> int:
  """Attention heads of a block."""
  config = builder.config
  if config.model.built_in:
    return config.model.heads
  found = foundation.checkpoint(config)
  words = {} if found is None else found.config
  words = words | words.get('vision_config', {})
  for key in ('num_attention_heads', 'n_heads', 'n_head'):
    if key in words:
      return int(words[key])
  raise ValueError(
    f'--raffm.head={builder.own.head} needs the number of heads, which '
    f'config.json of --model.name={config.model.name} does not say; allowed: '
    '1. Leave it out.'
  )


def _unlearned(data: Federation) -> Federation:
  """Clients look at rows that they do not train on."""
  return data._replace(train=data.validation)


def _ranks(text: str, most: int) -> tuple[int, ...]:
  """The ranks of --lonas.ranks, ascending, with the largest."""
  try:
    found = {int(part) for part in text.split(',') if part.strip()}
  except ValueError:
    found = {0}
  if any(not 1 <= rank <= most for rank in found):
    raise ValueError(
      f'--lonas.ranks={text!r} is no list of ranks up to --lora.rank={most}; '
      f'write --lonas.ranks={max(1, most // 2)},{most}.'
    )
  if not found:
    found = {max(1, most // 4), max(1, most // 2)}
  return tuple(sorted(found | {most}))


STAGES = {
  'lonas': _lonas,
  'fedot': _fedot,
  'fedpft': _fedpft,
  'raffm': _raffm,
}
