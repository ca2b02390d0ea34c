"""The foundation model of a run, and what it asks of the data.

A checkpoint's tokenizer and image size are known before
the data is read, the shape of its inputs only after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.core.types import Federation, Task, Tree
from fedms_jax.data import images, quality, text
from fedms_jax.models import (
  class_prompts,
  hiding,
  pretrained,
  tasks,
)
from fedms_jax.models.family import Model, Options
from fedms_jax.persistence import model_files
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.shell import (
  built_in,
  class_texts,
  data_flags,
  own_network,
  plugged,
  scratch,
  side_files,
)
from fedms_jax.shell.config import (
  Config,
  DataConfig,
  ModelConfig,
  PromptConfig,
)
from fedms_jax.shell.config.model import LINEAR

_MARKS = 3  # tokens about the name of a class: a start, a full stop, an end
TASKS = {
  'classification': tasks.classification,
  'zero_shot': tasks.classification,
  'causal_lm': tasks.causal_lm,
  'masked_lm': tasks.masked_lm,
  'contrast': tasks.contrast,
  'regression': tasks.regression,
  'multi_label': tasks.multi_label,
  'ordinal': tasks.ordinal,
}
# What the label column holds, where it is no class.
ANSWERS = {'regression': 'values', 'multi_label': 'tags', 'ordinal': 'levels'}


def checkpoint(
  config: Config, public: Callable[[], list[str]] | None = None
) -> Checkpoint | None:
  """The checkpoint of a run; None for the built-in vit. public: gives the
  texts that a new tokenizer is trained on; None: it is there."""
  if config.model.scratch:
    return scratch.checkpoint(config.model, config.data, config.workdir, public)
  return find(config.model)


def find(m: ModelConfig, *, weights: bool = True) -> Checkpoint | None:
  """The checkpoint of `--model.name`; None for the built-in model."""
  if m.built_in or m.own:
    return None
  found = model_files.find(m.name, revision=m.revision, weights=weights)
  pretrained.family_of(found.config)  # refused before its data is looked for
  return found


def task(m: ModelConfig, model: Model) -> Task:
  """What the model learns."""
  if m.head == 'contrast' and model.sigmoid:
    return tasks.pairwise_contrast()
  own = plugged.task(m.task) or model.task
  if own is not None:
    return own
  if m.head == 'masked_patches':
    return hiding.masked_patches(
      hiding.Patches(m.patch, m.hidden_patches, m.patch_target)
    )
  return TASKS[m.head]()


def objective(m: ModelConfig) -> str:
  """What is learned of a row: 'next' or 'masked' tokens, or the 'whole'."""
  return {'causal_lm': 'next', 'masked_lm': 'masked'}.get(m.head, 'whole')


def reading(
  m: ModelConfig, d: DataConfig, checkpoint: Checkpoint | None, *, seed: int
) -> dict[str, Any]:
  """The arguments of `sources.load` that depend on the model."""
  if checkpoint is None:
    if d.pack and not m.own:
      raise ValueError(
        f'--data.pack is for texts, and --model.name={m.name} reads images. '
        'Leave it out.'
      )
    return {'answer': ANSWERS[m.head]} if m.head in ANSWERS else {}
  data_flags.check(m, d, _reads_images(m, checkpoint))
  asked = {
    'target_column': d.target_column,
    'need_labels': m.head in (*LINEAR, 'zero_shot'),
    'answer': ANSWERS.get(m.head, 'classes'),
  }
  if _reads_images(m, checkpoint):
    asked['prepare'] = images.for_checkpoint(
      side_files.preprocessor(checkpoint)
    )
    side_files.check_side(checkpoint)
  if _reads_texts(m, checkpoint):
    asked['encode_text'] = _encoder(m, d, checkpoint, seed)
  return asked


def text_length(m: ModelConfig, d: DataConfig, checkpoint: Checkpoint) -> int:
  """The most tokens of a text, 0 if the model reads none."""
  if not _reads_texts(m, checkpoint):
    return 0
  return min(d.max_tokens, pretrained.words(checkpoint.config).positions)


class Facts(NamedTuple):
  """What a checkpoint's model must know of the data: the names of the classes,
  or of the outputs in their place, and T of the texts (0: none). center,
  spread: see `Outputs`."""

  label_names: tuple[str, ...]
  tokens: int
  center: tuple[float, ...] = ()
  spread: tuple[float, ...] = ()


def facts(data: Federation) -> Facts:
  """The facts of the data."""
  columns = data.table.columns
  tokens = columns.get('texts', columns['inputs'])
  outputs = data.table.outputs
  return Facts(
    data.table.output_names,
    tokens.shape[-1] if tokens.ndim == 2 else 0,
    outputs.center if outputs else (),
    outputs.spread if outputs else (),
  )


def model(
  m: ModelConfig,
  data: Federation,
  checkpoint: Checkpoint | None,
  d: DataConfig | None = None,
) -> Model:
  """The model in the shape of the data. d: says how tokens are hidden."""
  if m.own:
    return own_network.model(m, data.table)
  if checkpoint is None:
    return Model(built_in.backbone(m, data), {})
  if _reads_images(m, checkpoint):
    side_files.check_shape(checkpoint, data.table.columns['inputs'].shape[1:3])
  made = loadable(m, checkpoint, facts(data))
  side_files.say_unread(made.unread, checkpoint)
  if m.head == 'masked_lm' and d is not None and d.masks == 'fresh':
    return made._replace(task=_fresh_masks(d, checkpoint))
  return made


def _fresh_masks(d: DataConfig, checkpoint: Checkpoint) -> Task:
  """Masked tokens that are drawn anew in each step."""
  tokenizer, _ = side_files.tokenizer(checkpoint)
  how = hiding.Tokens(
    side_files.mask(tokenizer), tokenizer.get_vocab_size(), d.mask_fraction
  )
  return hiding.masked_lm(how)


def loadable(m: ModelConfig, checkpoint: Checkpoint, facts: Facts) -> Model:
  """The model of a checkpoint."""
  names, tokens = facts.label_names, facts.tokens
  options = Options(
    head='classification' if m.head in LINEAR else m.head,
    classes=len(names),
    pooling=m.pooling,
    tower=m.tower,
    tokens=tokens,
    dtype=m.dtype,
    storage=m.storage,
    remat=m.remat,
    unroll=m.unroll,
    keep_head=m.keep_head,
    padding=side_files.padding(checkpoint),
  )
  return pretrained.model(checkpoint.config, options, checkpoint.preprocessor)


def load(
  m: ModelConfig,
  d: DataConfig,
  model: Model,
  names: Sequence[str],
  checkpoint: Checkpoint,
  key,
) -> tuple[Tree, Tree]:
  """(params, head) as the files have them; a head that they lack is new.

  names: of the classes, for the prompts of zero_shot.
  """
  given = {}
  order = (
    side_files.outputs(m.head, model.reference, names, checkpoint)
    if m.keep_head
    else []
  )
  if m.head == 'zero_shot':
    given['final/classes'] = _class_features(m, d, names, checkpoint)
  params, head = model_files.load(
    model, checkpoint, head=m.keep_head, given=given
  )
  if head is None:
    return params, model.backbone.init_head(key)
  columns = np.array(order)
  return params, jax.tree.map(lambda x: x[..., columns], head)


def text_tower(
  m: ModelConfig, p: PromptConfig, names: Sequence[str], checkpoint: Checkpoint
) -> Tree:
  """CLIP's text tower for soft prompts, see `family.Prompted`, with the
  `class_tokens`."""
  params, _ = model_files.load(_text_tower(m, checkpoint), checkpoint)
  found = params | class_tokens(p, names, checkpoint)
  return jax.tree.map(jax.numpy.asarray, found)


def text_tower_shapes(
  m: ModelConfig, tokens: Tree, checkpoint: Checkpoint
) -> Tree:
  """The shapes of `text_tower`. tokens: the `class_tokens`, or `one_token`."""
  tower = _text_tower(m, checkpoint)
  return jax.eval_shape(tower.backbone.init, jax.random.key(0)) | tokens


def class_tokens(
  p: PromptConfig, names: Sequence[str], checkpoint: Checkpoint
) -> dict[str, np.ndarray]:
  """'tokens', int32 [C, n], of the names of the classes, read as 'name.' as in
  CoOp; and where there are --prompt.words, their tokens, 'words', int32 [T],
  as which a prompt begins."""
  tokenizer, _ = side_files.tokenizer(checkpoint)
  tokenizer.no_truncation()
  prompts = [f'{class_prompts.spoken(name)}.' for name in names]
  quality.check_prompts(names, [[prompt] for prompt in prompts])
  read = tokenizer.encode_batch(prompts)
  out: dict[str, np.ndarray] = {}
  out['tokens'] = text.padded([r.ids for r in read])
  length, said = p.length, f'--prompt.length={p.length}'
  if p.words:
    ids = tokenizer.encode(p.words, add_special_tokens=False).ids
    out['words'] = np.array(ids, np.int32)
    length, said = len(ids), f'--prompt.words={p.words!r} of {len(ids)} tokens'
  longest = max(zip(map(len, read), names, strict=True))
  most = pretrained.words(checkpoint.config).positions
  if length + longest[0] > most:
    raise ValueError(
      f'{said} and the class {longest[1]!r} of {longest[0]} tokens with its '
      f'marks are longer than the {most} positions of the text tower. Shorten '
      'one of them.'
    )
  return out


def one_token(p: PromptConfig, classes: int) -> dict[str, np.ndarray]:
  """`class_tokens` without a tokenizer: as if each name and each of
  --prompt.words were one token."""
  out: dict[str, np.ndarray] = {}
  out['tokens'] = np.zeros((classes, _MARKS + 1), np.int32)
  if words := p.words.split():
    out['words'] = np.zeros(len(words), np.int32)
  return out


def _text_tower(m: ModelConfig, checkpoint: Checkpoint) -> Model:
  options = Options(
    head='classification', tower='text', dtype=m.dtype, storage=m.storage
  )
  return pretrained.model(checkpoint.config, options, checkpoint.preprocessor)


def _class_features(
  m: ModelConfig, d: DataConfig, names: Sequence[str], checkpoint: Checkpoint
) -> np.ndarray:
  """The features [C, P] of the class prompts."""
  texts = _reads_texts(m, checkpoint)
  if texts:  # which are cut; what says a class is not
    most = pretrained.words(checkpoint.config).positions
    d = dataclasses.replace(d, max_tokens=most)
  encode = _encoder(m, d, checkpoint)
  return class_texts.features(m, names, checkpoint, encode, texts=texts)


def _reads_images(m: ModelConfig, checkpoint: Checkpoint) -> bool:
  kind = checkpoint.config.get('model_type')
  if kind not in pretrained.IMAGES or kind not in pretrained.WORDS:
    return kind in pretrained.IMAGES
  # A tower of each.
  return m.tower != 'text' or m.head in ('zero_shot', 'contrast')


def _reads_texts(m: ModelConfig, checkpoint: Checkpoint) -> bool:
  if m.head == 'contrast':
    return True
  return not _reads_images(m, checkpoint)


def _encoder(
  m: ModelConfig, d: DataConfig, checkpoint: Checkpoint, seed: int = 0
) -> text.Encoder:
  """seed: of the tokens that are hidden (masked_lm)."""
  tokenizer, words = side_files.tokenizer(checkpoint)
  lm = m.head == 'causal_lm'
  return text.Encoder(
    tokenizer,
    max_tokens=min(
      d.max_tokens,
      pretrained.words(checkpoint.config).positions,
      words.most or d.max_tokens,
    ),
    objective=objective(m),
    end=side_files.end(checkpoint.config) if lm else -1,
    mask=side_files.mask(tokenizer) if m.head == 'masked_lm' else -1,
    fraction=d.mask_fraction,
    fresh=d.masks == 'fresh',
    seed=seed,
    side=words.side,
  )
