"""A small CLIP that has learned handwritten digits, for methods of prompts.

    python -m benchmarks.small_clip [--quick] [--epochs=60] --out=FOLDER

Writes a CLIP of a few thousand weights with random ones into FOLDER/random,
every tenth digit of scikit-learn with its caption into FOLDER/public and the
others into FOLDER/data, lets the server of `fedms` train both towers on dimmed
images of the former by contrast, and exports what it has learned to
FOLDER/model: a checkpoint for --model.name, with --model.head=zero_shot, that
has seen no row of FOLDER/data, so that something is left to learn.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import datasets
import jax
import numpy as np
import tokenizers
from PIL import Image
from sklearn.datasets import load_digits

from fedms_jax.launch import command
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_export, model_files
from fedms_jax.shell import main as fedms

SIDE, WIDTH, HEADS = 16, 48, 4
_SPECIAL = ('[PAD]', '[UNK]', '<bos>', '<eos>')
_WORDS = ('a', 'photo', 'of', '.', *map(str, range(10)))
_NUMBERS = {word: i for i, word in enumerate((*_SPECIAL, *_WORDS))}
_SIZES = {
  'hidden_size': WIDTH,
  'intermediate_size': 2 * WIDTH,
  'num_attention_heads': HEADS,
}
CONFIG = {
  'model_type': 'clip',
  'projection_dim': 32,
  'vision_config': _SIZES
  | {'num_hidden_layers': 4, 'image_size': SIDE, 'patch_size': 4},
  'text_config': _SIZES
  | {
    'num_hidden_layers': 3,
    'vocab_size': len(_NUMBERS),
    'max_position_embeddings': 24,
    'pad_token_id': 0,
    'bos_token_id': _NUMBERS['<bos>'],
    'eos_token_id': _NUMBERS['<eos>'],
  },
}
_PREPROCESSOR = {
  'do_resize': True,
  'size': {'shortest_edge': SIDE},
  'resample': 3,
  'do_center_crop': True,
  'crop_size': {'height': SIDE, 'width': SIDE},
  'image_mean': [0.5, 0.5, 0.5],
  'image_std': [0.5, 0.5, 0.5],
}


def untrained(folder: pathlib.Path) -> None:
  """A checkpoint of `CONFIG` with random weights, and its tokenizer."""
  model = pretrained.model(CONFIG, Options(head='contrast', tower='both'))
  init = jax.jit(model.backbone.init)
  params = jax.tree.map(np.asarray, init(jax.random.key(0)))
  empty = model_files.Checkpoint(folder, CONFIG, {}, {})
  model_export.save(model, params, folder, empty)
  _tokenizer().save(str(folder / 'tokenizer.json'))
  text = json.dumps(_PREPROCESSOR)
  (folder / 'preprocessor_config.json').write_text(text, encoding='utf-8')


def _tokenizer() -> tokenizers.Tokenizer:
  """One token a word, between a start and an end."""
  out = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(_NUMBERS, unk_token='[UNK]')
  )
  out.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  out.add_special_tokens(list(_SPECIAL))
  out.post_processor = tokenizers.processors.TemplateProcessing(
    single='<bos> $A <eos>',
    special_tokens=[(n, _NUMBERS[n]) for n in ('<bos>', '<eos>')],
  )
  return out


def digits(folder: pathlib.Path, rows: np.ndarray) -> None:
  """These digits of scikit-learn as pictures with captions."""
  folder.mkdir(parents=True, exist_ok=True)
  features, numbers = load_digits(return_X_y=True)
  pixels = np.rint(np.reshape(features, (-1, 8, 8)) * (255 / 16))
  images = pixels[rows].astype(np.uint8)
  labels = [str(x) for x in numbers[rows]]
  table = {
    'image': [Image.fromarray(x).convert('RGB') for x in images],
    'caption': [f'a photo of a {label}.' for label in labels],
    'label': labels,
  }
  text = datasets.Value('string')
  columns = datasets.Features(
    {'image': datasets.Image(), 'caption': text, 'label': text}
  )
  made = datasets.Dataset.from_dict(table, features=columns)
  made.to_parquet(folder / 'train.parquet')


def trained(root: pathlib.Path, epochs: int) -> int:
  """Lets the server train both towers, and exports them; the exit code. What
  clients learn in the one round that there must be is next to nothing."""
  run = [
    'fedms', f'--model.name={root / "random"}', '--model.head=contrast',
    '--model.tower=both', f'--data.source={root / "public"}',
    '--data.target_column=caption', '--data.public_fraction=0.9',
    '--data.public_shift=dim',
    '--pretrain.mode=full', f'--pretrain.epochs={epochs}',
    '--partition.name=iid', '--partition.num_clients=2',
    '--partition.unseen_clients=0', '--partition.min_rows=3',
    '--cohort.size=1',
    '--algorithm.name=fedit', '--algorithm.stage1_rounds=1',
    '--algorithm.stage2_rounds=0', '--client.learning_rate=1e-9',
    '--lora.targets=image/attn/q',
    f'--workdir={root / "run"}', '--resume',
  ]  # fmt: skip
  export = [
    'fedms', 'export', f'--workdir={root / "run"}', '--what=merged',
    f'--out={root / "model"}',
  ]  # fmt: skip
  return fedms.main(run) or fedms.main(export)


def main(argv: Sequence[str]) -> int:
  """Makes the checkpoint; gives the exit code."""
  options = argparse.ArgumentParser(prog='benchmarks.small_clip')
  options.add_argument('--out', required=True, help='folder of the results')
  options.add_argument('--epochs', type=int, default=60, help='of the server')
  options.add_argument('--quick', action='store_true', help='few rows')
  own = options.parse_args(argv)
  root = pathlib.Path(own.out).absolute()
  untrained(root / 'random')
  rows = np.arange(700 if own.quick else 1797)
  digits(root / 'public', rows[::10])
  digits(root / 'data', rows[rows % 10 > 0])
  return trained(root, 1 if own.quick else own.epochs)


if __name__ == '__main__':
  sys.exit(command.run(main))
