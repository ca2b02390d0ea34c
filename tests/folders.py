"""Folders as users have them: small checkpoints, and small data."""

from __future__ import annotations

import json
import pathlib

import datasets
import jax
import numpy as np
import tokenizers
from PIL import Image

from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_export, model_files
from tests.models import references

SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '<eos>')
TOPICS = {
  'sport': 'ball goal team match win player run race'.split(),
  'food': 'bread soup salt cook taste apple rice pan'.split(),
  'sky': 'star moon cloud rain sun wind light blue'.split(),
}
WORDS = [word for words in TOPICS.values() for word in words]
VOCABULARY = {w: i for i, w in enumerate((*SPECIAL, *WORDS))}
_ENDS = {'eos_token_id': VOCABULARY['<eos>'], 'bos_token_id': 0}
CONFIGS = {
  'bert': {'model_type': 'bert', **references.WORDS},
  'gpt2': {'model_type': 'gpt2', **references.GPT2, **_ENDS},
  'llama': {'model_type': 'llama', **references.GROUPED, **_ENDS},
  'vit': {'model_type': 'vit', **references.PATCHES},
  'clip': {'model_type': 'clip', **references.CLIP_PARTS}
  | {'text_config': references.CLIP_PARTS['text_config'] | _ENDS},
}
# The head under which every tensor of a family is written.
HEADS = {
  'bert': Options(head='masked_lm'),
  'gpt2': Options(head='causal_lm'),
  'llama': Options(head='causal_lm'),
  'vit': Options(classes=2),
  'clip': Options(head='contrast', tower='both'),
}


def checkpoint(
  folder: pathlib.Path, kind: str, options: Options | None = None
) -> pathlib.Path:
  """A checkpoint with random weights, and its tokenizer or preprocessor."""
  config = CONFIGS[kind]
  model = pretrained.model(config, options or HEADS[kind])
  shapes = jax.eval_shape(
    lambda key: (model.backbone.init(key), model.backbone.init_head(key)),
    jax.random.key(0),
  )
  rng = np.random.default_rng(1)
  params, head = jax.tree_util.tree_map_with_path(
    lambda path, x: random(path, x, rng), shapes
  )
  empty = model_files.Checkpoint(folder, config, {}, {})
  own = head if model.reference else None
  model_export.save(model, params, folder, empty, head=own)
  if kind != 'vit':
    tokenizer(kind).save(str(folder / 'tokenizer.json'))
  if kind in ('vit', 'clip'):
    (folder / 'preprocessor_config.json').write_text(json.dumps(PREPROCESSOR))
  return folder


def random(path, shape, rng):
  """A leaf in the range of trained ones; the scales of norms are about 1."""
  noise = 0.1 * rng.normal(size=shape.shape)
  scale = getattr(path[-1], 'key', '') == 'scale'
  return (noise + scale).astype(np.float32)


PREPROCESSOR = {
  'do_resize': True,
  'size': {'shortest_edge': 18},
  'resample': 3,
  'do_center_crop': True,
  'crop_size': {'height': 16, 'width': 16},
  'image_mean': [0.4, 0.5, 0.6],
  'image_std': [0.2, 0.3, 0.25],
}


def tokenizer(kind: str) -> tokenizers.Tokenizer:
  """One token a word, with the special tokens of the family."""
  out = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(VOCABULARY, unk_token='[UNK]')
  )
  out.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  out.add_special_tokens(list(SPECIAL))
  around = {'bert': '[CLS] $A [SEP]', 'clip': '[CLS] $A <eos>'}.get(kind)
  if around:
    names = around.split()
    out.post_processor = tokenizers.processors.TemplateProcessing(
      single=around,
      special_tokens=[(n, VOCABULARY[n]) for n in names if n != '$A'],
    )
  # As many files have it; ours is not to follow it.
  out.enable_padding(length=14, pad_id=0)
  return out


def texts(folder: pathlib.Path, rows: int = 60) -> pathlib.Path:
  """Texts of three topics: columns text, answer, label; one split, test."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  topics = [list(TOPICS)[i % 3] for i in range(rows)]
  found = {
    'text': [' '.join(_words(t, 3 + i % 4, rng)) for i, t in enumerate(topics)],
    'answer': [' '.join(_words(t, 2, rng)) for t in topics],
    'label': topics,
  }
  datasets.Dataset.from_dict(found).to_parquet(folder / 'test.parquet')
  return folder


def pictures(folder: pathlib.Path, rows: int = 48) -> pathlib.Path:
  """Pictures with captions: columns image, caption, label; one split, test."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  topics = [list(TOPICS)[i % 3] for i in range(rows)]
  found = {
    'image': [
      Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
      for _ in range(rows)
    ],
    'caption': [' '.join(_words(t, 3, rng)) for t in topics],
    'label': topics,
  }
  features = datasets.Features(
    {
      'image': datasets.Image(),
      'caption': datasets.Value('string'),
      'label': datasets.Value('string'),
    }
  )
  made = datasets.Dataset.from_dict(found, features=features)
  made.to_parquet(folder / 'test.parquet')
  return folder


def _words(topic, count, rng):
  return rng.choice(TOPICS[topic], count).tolist()
