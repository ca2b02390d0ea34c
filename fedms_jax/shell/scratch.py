"""Text models that begin with random weights: gpt, bert, llama.

They are checkpoints without tensors: a folder with a config.json and a
tokenizer, as transformers reads them, in the workdir of the run.
"""

from __future__ import annotations

import atexit
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from fedms_jax.data import new_tokenizer, text
from fedms_jax.persistence import files, json_files, model_files
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.shell.config import DataConfig, ModelConfig

FOLDER = 'model'  # in the workdir
_CONFIG = 'config.json'


def around(m: ModelConfig) -> bool:
  """Whether the tokenizer puts marks around a text."""
  return m.name == 'bert'


def shape(m: ModelConfig, d: DataConfig, vocabulary: int) -> dict[str, Any]:
  """config.json of a model of these sizes, whose positions are
  --data.max_tokens."""
  hidden = {'vocab_size': vocabulary, 'initializer_range': 0.02}
  if m.name == 'gpt':
    own = {
      'model_type': 'gpt2',
      'n_layer': m.blocks,
      'n_embd': m.width,
      'n_head': m.heads,
      'n_inner': m.mlp_width,
      'n_positions': d.max_tokens,
      'activation_function': 'gelu_new',
      'attn_pdrop': 0.0,
      'embd_pdrop': 0.0,
      'resid_pdrop': 0.0,
      'bos_token_id': 0,
      'eos_token_id': 0,
    }
    return own | hidden
  sizes = {
    'num_hidden_layers': m.blocks,
    'hidden_size': m.width,
    'num_attention_heads': m.heads,
    'intermediate_size': m.mlp_width,
    'max_position_embeddings': d.max_tokens,
  }
  if m.name == 'llama':
    ends = {'bos_token_id': 0, 'eos_token_id': 0}
    tied = {'tie_word_embeddings': True, 'rms_norm_eps': 1e-5}
    return {'model_type': 'llama'} | sizes | tied | ends | hidden
  words = {'type_vocab_size': 2, 'pad_token_id': 0, 'hidden_act': 'gelu'}
  none = {
    'attention_probs_dropout_prob': 0.0,
    'hidden_dropout_prob': 0.0,
    'layer_norm_eps': 1e-12,
  }
  return {'model_type': 'bert'} | sizes | words | none | hidden


def planned(m: ModelConfig, d: DataConfig) -> Checkpoint:
  """The checkpoint without a tokenizer: a BPE is taken to have as many tokens
  as it may."""
  size = m.vocabulary
  if m.tokenizer == 'bytes':
    size = 256 + len(new_tokenizer.marks(around(m)))
  return Checkpoint(pathlib.Path(FOLDER), shape(m, d, size), {}, {})


def checkpoint(
  m: ModelConfig,
  d: DataConfig,
  workdir: str,
  public: Callable[[], list[str]] | None,
) -> Checkpoint:
  """The checkpoint of a run, made if it is not there.

  workdir: of the run, '' for one that keeps nothing. public: gives the texts
  that a BPE is trained on; None: only what is there is wanted.

  Raises:
    ValueError: the run has not come so far.
  """
  folder = pathlib.Path(workdir) / FOLDER if workdir else _temporary()
  if not (folder / _CONFIG).is_file():
    if public is None:
      raise ValueError(
        f'{folder} does not exist yet. Wait for the first round of the run.'
      )
    _make(folder, m, d, public)
  said = json_files.read(folder / model_files.TOKENIZER)
  return Checkpoint(folder, json_files.read(folder / _CONFIG), {}, {}, said)


def _make(folder: pathlib.Path, m, d, public: Callable[[], list[str]]) -> None:
  """Writes the folder; its config.json, which says that it is whole, last."""
  if m.tokenizer == 'bytes':
    made = new_tokenizer.of_bytes(around(m))
  else:
    made = new_tokenizer.trained(public(), m.vocabulary, around(m))
  size = made.get_vocab_size(with_added_tokens=True)
  folder.mkdir(parents=True, exist_ok=True)
  settings = new_tokenizer.settings(around(m), d.max_tokens)
  files.write_atomic(folder / text.FILE, made.to_str(pretty=True))
  files.write_atomic(
    folder / model_files.TOKENIZER, json.dumps(settings, indent=2) + '\n'
  )
  config = json.dumps(shape(m, d, size), indent=2) + '\n'
  files.write_atomic(folder / _CONFIG, config)


def _temporary() -> pathlib.Path:
  """A folder that goes when the process ends."""
  made = tempfile.TemporaryDirectory(prefix='fedms-model-')
  atexit.register(made.cleanup)
  return pathlib.Path(made.name)
