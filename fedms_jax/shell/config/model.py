"""The foundation model of a run, and what adapts it."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt

_BUILT_IN = 'vit'
_MOST_HIDDEN = 1 << 20  # of the built-in model
# Heads that are a linear layer on the feature of a model.
LINEAR = ('classification', 'regression', 'multi_label', 'ordinal')
# Options that say what a checkpoint says itself, and the reverse.
OF_BUILT_IN = ('patch', 'width', 'blocks', 'heads', 'mlp_ratio')
OF_CHECKPOINT = (
  'revision',
  'head',
  'keep_head',
  'tower',
  'templates',
  'storage',
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  name: str = opt(
    _BUILT_IN,
    'vit (the built-in small vision transformer), or a checkpoint of CLIP, '
    'ViT, BERT, GPT-2, LLaMA, Mistral, Qwen, Gemma or Phi (`fedms list` names '
    'all): a Hub id, or a local folder with config.json and *.safetensors',
  )
  revision: str = opt('', 'revision of a Hub checkpoint')
  head: str = opt(
    'classification',
    'what a checkpoint is for: a new linear head on its feature (of classes, '
    'numbers, any number of tags, or levels in an order; of the built-in vit, '
    "too), next or masked tokens, CLIP's class prompts, or image-text contrast",
    choices=(
      'classification',
      'causal_lm',
      'masked_lm',
      'zero_shot',
      'contrast',
      'regression',
      'multi_label',
      'ordinal',
    ),
  )
  keep_head: bool = opt(
    False, "keep the checkpoint's own classification head; else a new one"
  )
  tower: str = opt(
    'image',
    'tower of CLIP that adapts',
    choices=('image', 'text', 'both'),
  )
  templates: str = opt(
    'a photo of a {}.',
    'class prompts for zero_shot, divided by |; their features are averaged',
  )
  patch: int = opt(
    2, 'vit: side of a square patch, in pixels', low=1, high=8192
  )
  width: int = opt(64, 'vit: D, width of the transformer', low=4, high=1 << 16)
  blocks: int = opt(6, 'vit: L, number of transformer blocks', low=1, high=4096)
  heads: int = opt(4, 'vit: attention heads', low=1, high=1 << 16)
  mlp_ratio: float = opt(
    2.0, 'vit: width of the MLP over D', above=0.0, high=1024.0
  )
  pooling: str = opt(
    '',
    'feature of an image or text (empty: the usual of the model)',
    choices=('', 'cls', 'mean', 'cls_mean', 'pooler', 'projected', 'last'),
  )
  dtype: str = opt(
    'float32',
    'compute type of the transformer',
    choices=('float32', 'bfloat16'),
  )
  storage: str = opt(
    'float32',
    "type of a checkpoint's frozen parameters",
    choices=('float32', 'bfloat16', 'int8'),
  )
  remat: bool = opt(False, 'rematerialize blocks in the backward pass')
  unroll: int = opt(
    3,
    'blocks in a row that are compiled one by one; more are a loop. Without a '
    'loop a step of a large model takes 6 % less on a CPU, and its compilation '
    'four times as long',
    low=0,
    high=4096,
  )

  @property
  def built_in(self) -> bool:
    """Whether it is the built-in vit, and no checkpoint."""
    return self.name == _BUILT_IN

  @property
  def mlp_width(self) -> int:
    """The width of the built-in model's MLP."""
    return round(self.width * self.mlp_ratio)

  def check(self) -> None:
    """Raises `ValueError` for what the model would not look at, and for an
    MLP of no width or of too much."""
    unused, why = OF_BUILT_IN, "the built-in vit's; a checkpoint has its own"
    if self.built_in:
      unused, why = OF_CHECKPOINT, 'for checkpoints, not for the built-in vit'
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name == 'head' and value in LINEAR:
        continue
      if field.name in unused and value != field.default:
        raise ValueError(
          f'--model.{field.name}={value!r} does not go with --model.name='
          f'{self.name}: it is {why}. Leave it out.'
        )
    if not 1 <= self.mlp_width <= _MOST_HIDDEN:
      raise ValueError(
        f'--model.width={self.width} times --model.mlp_ratio='
        f'{self.mlp_ratio:g} is {self.mlp_width}, the width of the MLP; '
        f'allowed: 1 to {_MOST_HIDDEN}.'
      )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  mode: str = opt(
    'auto',
    "what the server trains on the public rows: full (all weights; the vit's "
    'default), probe (a linear head on frozen features; the default of a '
    'checkpoint with a new head), none',
    choices=('auto', 'full', 'probe', 'none'),
  )
  epochs: int = opt(
    30, 'server epochs on the public rows', low=0, high=1_000_000
  )
  batch_size: int = opt(64, 'server batch size', low=1, high=1 << 20)
  learning_rate: float = opt(1e-3, 'server learning rate (AdamW)', above=0.0)
  weight_decay: float = opt(1e-2, 'server weight decay', low=0.0)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  length: int = opt(
    16,
    'context vectors of a soft prompt (promptfl and its kin)',
    low=1,
    high=4096,
  )
  words: str = opt(
    '',
    "CLIP: start the prompt from these words, such as 'a photo of a', as long "
    'as they are (empty: prompt.length random vectors)',
  )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  rank: int = opt(4, 'R, rank of the LoRA matrices', low=1, high=1 << 16)
  alpha: float = opt(8.0, 'LoRA scale is alpha / R', above=0.0)
  ranks: str = opt(
    '',
    'ranks dealt to clients in equal parts: 2,4,8, at most lora.rank, whose R '
    'is in the scale of all (flora, flexlora, hetlora; empty: lora.rank)',
  )
  targets: str = opt('attn/q,attn/v', 'comma-separated kernels that carry LoRA')
  init: str = opt(
    '', 'start stage 1 from the PEFT adapter in this folder (empty: fresh)'
  )

  @property
  def mixed(self) -> tuple[int, ...]:
    """The ranks that are dealt to clients; () if all have the same."""
    return tuple(int(x) for x in self.ranks.split(',') if x.strip())

  def check(self) -> None:
    """Raises `ValueError` for mixed ranks that no run can have."""
    try:
      mixed = self.mixed
      if self.ranks and not mixed:
        raise ValueError
    except ValueError:
      raise ValueError(
        f'--lora.ranks={self.ranks!r} is no list of ranks; write --lora.ranks='
        '2,4,8.'
      ) from None
    if mixed and self.init:
      raise ValueError(
        f'--lora.ranks={self.ranks} does not go with --lora.init: the adapter '
        'has one rank. Leave one of them out.'
      )
    for rank in mixed:
      if not 1 <= rank <= self.rank:
        raise ValueError(
          f'--lora.ranks={self.ranks!r} has the rank {rank}; allowed: 1 to '
          f'--lora.rank={self.rank}, which the server keeps.'
        )
