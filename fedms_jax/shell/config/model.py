"""The foundation model of a run, and what adapts it."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell import plugins
from fedms_jax.shell.fields import opt

_BUILT_IN = 'vit'
SCRATCH = ('gpt', 'bert', 'llama')  # text models that begin with random weights
_MOST_HIDDEN = 1 << 20  # of the built-in model
# Heads that are a linear layer on the feature of a model.
LINEAR = ('classification', 'regression', 'multi_label', 'ordinal')
# Options that say what a checkpoint says itself, and the reverse.
OF_BUILT_IN = ('patch', 'width', 'blocks', 'heads', 'mlp_ratio')
OF_CHECKPOINT = ('revision', 'keep_head', 'tower', 'templates', 'storage')
OF_SCRATCH = ('tokenizer', 'vocabulary')
OF_TRANSFORMERS = ('pooling', 'dtype', 'remat', 'unroll')
OF_PATCHES = ('hidden_patches', 'patch_target')
HEADS_OF = {
  'vit': (*LINEAR, 'masked_patches'),
  'gpt': ('causal_lm', *LINEAR),
  'llama': ('causal_lm', *LINEAR),
  'bert': ('masked_lm', *LINEAR),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  name: str = opt(
    _BUILT_IN,
    'vit (the built-in small vision transformer); gpt, bert or llama (text '
    'models of the sizes below, with random weights); or a checkpoint of CLIP, '
    'ViT, BERT, GPT-2, LLaMA, Mistral, Qwen, Gemma or Phi (`fedms list` names '
    'all): a Hub id, or a local folder with config.json and *.safetensors',
  )
  revision: str = opt('', 'revision of a Hub checkpoint')
  head: str = opt(
    'classification',
    'what the model is for: a new linear head on its feature (of classes, '
    'numbers, any number of tags, or levels in an order), next or masked '
    'tokens, masked patches (vit), class prompts (of CLIP, SigLIP, BERT and '
    'its kin), or image-text contrast',
    choices=(
      'classification',
      'causal_lm',
      'masked_lm',
      'masked_patches',
      'zero_shot',
      'contrast',
      'regression',
      'multi_label',
      'ordinal',
    ),
  )
  task: str = opt(
    '', 'what is learned in place of what the head is for: a task of a plugin'
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
    '',
    'class prompts for zero_shot, divided by |; their features are averaged '
    "(empty: 'a photo of a {}.' for images, 'This sentence is {}' for texts; "
    "better say what they are, as in 'a news article about {}.')",
  )
  patch: int = opt(
    2, 'vit: side of a square patch, in pixels', low=1, high=8192
  )
  hidden_patches: float = opt(
    0.6, 'masked_patches: part of the patches to hide', above=0.0, high=0.95
  )
  patch_target: str = opt(
    'pixels',
    'masked_patches: absolute differences of pixels (SimMIM), or squared ones '
    'of normalized patches (MAE)',
    choices=('pixels', 'normalized'),
  )
  tokenizer: str = opt(
    'bytes',
    'gpt, bert, llama: tokens are bytes, or a BPE that is trained on the '
    'public texts',
    choices=('bytes', 'bpe'),
  )
  vocabulary: int = opt(1024, 'bpe: most tokens', low=300, high=1 << 20)
  width: int = opt(
    64, 'new models: D, width of the transformer', low=4, high=1 << 16
  )
  blocks: int = opt(
    6, 'new models: L, number of transformer blocks', low=1, high=4096
  )
  heads: int = opt(4, 'new models: attention heads', low=1, high=1 << 16)
  mlp_ratio: float = opt(
    2.0, 'new models: width of the MLP over D', above=0.0, high=1024.0
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
  def own(self) -> bool:
    """Whether it is a network of a plugin, or was given from Python."""
    given = self.name.startswith(plugins.GIVEN)
    return not self.new and (given or plugins.has('models', self.name))

  @property
  def scratch(self) -> bool:
    """Whether it is a text model that begins with random weights."""
    return self.name in SCRATCH

  @property
  def new(self) -> bool:
    """Whether its weights begin random, and no checkpoint says its sizes."""
    return self.built_in or self.scratch

  @property
  def mlp_width(self) -> int:
    """The width of the built-in model's MLP."""
    return round(self.width * self.mlp_ratio)

  def check(self) -> None:
    """Raises `ValueError` for what the model would not look at, and for an
    MLP of no width or of too much."""
    unused = self._unused()
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name in unused and value != field.default:
        raise ValueError(
          f'--model.{field.name}={value!r} does not go with --model.name='
          f'{self.name}: it is {unused[field.name]}. Leave it out.'
        )
    self.check_head(self.head, 'model.head')
    if self.tokenizer == 'bytes' and self.vocabulary != 1024:
      raise ValueError(
        f'--model.vocabulary={self.vocabulary} is for --model.tokenizer=bpe; '
        'bytes are 256 and the marks. Leave it out.'
      )
    if not 1 <= self.mlp_width <= _MOST_HIDDEN:
      raise ValueError(
        f'--model.width={self.width} times --model.mlp_ratio='
        f'{self.mlp_ratio:g} is {self.mlp_width}, the width of the MLP; '
        f'allowed: 1 to {_MOST_HIDDEN}.'
      )

  def _unused(self) -> dict[str, str]:
    """Options that the model would not look at, and what they are for."""
    kinds: list[tuple[tuple[str, ...], str]] = []
    if self.own:
      every = (*OF_CHECKPOINT, *OF_BUILT_IN, *OF_SCRATCH, *OF_TRANSFORMERS)
      kinds.append((every, "for models that are no networks of one's own"))
    elif self.new:
      kinds.append((OF_CHECKPOINT, 'for checkpoints, not for new models'))
    else:
      own = "the new models'; a checkpoint has its own"
      kinds.append(((*OF_BUILT_IN, *OF_SCRATCH), own))
    if self.built_in:
      kinds.append((OF_SCRATCH, 'for new text models'))
    else:
      kinds.append((OF_PATCHES, 'for --model.head=masked_patches'))
    if self.scratch:
      kinds.append((('patch',), 'for images'))
    return {name: why for names, why in kinds for name in names}

  def check_head(self, head: str, flag: str) -> None:
    """Raises `ValueError` for a head that the model has not."""
    allowed = LINEAR if self.own else HEADS_OF.get(self.name)
    if allowed is None and head == 'masked_patches':
      allowed = (*LINEAR, 'causal_lm', 'masked_lm', 'contrast')
    if allowed is not None and head not in allowed:
      raise ValueError(
        f'--{flag}={head} does not go with --model.name={self.name}; '
        f'allowed: {", ".join(allowed)}. Change one of them.'
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
  head: str = opt(
    '',
    'what is learned in the phases S, F and W of --stages, where the method '
    'after them is for something else (empty: model.head)',
    choices=(
      '',
      'classification',
      'causal_lm',
      'masked_lm',
      'masked_patches',
      'contrast',
    ),
  )
  client_rate: float = opt(
    0.0,
    'local learning rate of F and W (0: client.learning_rate)',
    low=0.0,
  )


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
