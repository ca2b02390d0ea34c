"""The words of a config.json, each read with its type.

A key is read, or must have its usual value, or is known to change no number;
what remains is told to the user, who may have meant something by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

MOST = 2**31 - 1  # of any size
MOST_BLOCKS = 10_000

# Keys that change no number of a forward pass without dropout, or that are
# read elsewhere (labels, tokens that begin and end a text).
HARMLESS = frozenset(
  # What the files are, and who made them.
  '_name_or_path architectures model_type name_or_path tokenizer_class '
  'transformers_version finetuning_task task_specific_params dtype torch_dtype '
  'use_bfloat16 attn_implementation _attn_implementation '
  '_attn_implementation_autoset transformers.js_config '
  # Labels and special tokens.
  'id2label label2id num_labels _num_labels problem_type bos_token_id '
  'eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix '
  # Training and initialization.
  'attention_dropout attention_probs_dropout_prob attn_pdrop embd_pdrop '
  'classifier_dropout dropout hidden_dropout_prob resid_pdrop '
  'hidden_dropout initializer_factor initializer_range '
  'logit_scale_init_value gradient_checkpointing encoder_stride '
  # How it is computed, not what.
  'chunk_size_feed_forward pretraining_tp reorder_and_upcast_attn torchscript '
  'use_cache tf_legacy_loss cache_implementation is_llama_config '
  # What is returned.
  'output_attentions output_hidden_states output_past return_dict '
  # Parts that are not built here and lie behind the features.
  'pooler_act pooler_output_size pooler_fc_size pooler_num_attention_heads '
  'pooler_num_fc_layers pooler_size_per_head pooler_type directionality '
  'summary_activation summary_first_dropout summary_proj_to_logits '
  'summary_type summary_use_proj n_ctx cross_attention_hidden_size '
  'tie_encoder_decoder '
  # Generation.
  'bad_words_ids begin_suppress_tokens diversity_penalty do_sample '
  'early_stopping encoder_no_repeat_ngram_size '
  'exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id '
  'length_penalty max_length '
  'min_length no_repeat_ngram_size num_beam_groups num_beams '
  'num_return_sequences output_scores remove_invalid_values '
  'repetition_penalty return_dict_in_generate suppress_tokens temperature '
  'top_k top_p typical_p'.split()
)
# Keys of any family whose unusual values change what is computed.
USUAL = {
  'add_cross_attention': False,
  'is_decoder': False,
  'is_encoder_decoder': False,
  'pruned_heads': {},
  'quantization_config': None,
  'auto_map': None,
}


class Settings:
  """The values of a config.json, or of a part of it.

  Raises `ValueError` that names the key wherever a value is not of its type.
  """

  def __init__(self, values: Mapping[str, Any], where: str = 'config.json'):
    self._values = dict(values)
    self._where = where
    self._read: set[str] = set()
    self._parts: list[Settings] = []
    if self._native():
      self._values.pop('auto_map', None)
    self.refuse(**USUAL)

  def _native(self) -> bool:
    """Whether code beside the files is what transformers has itself now."""
    named = self._values.get('auto_map')
    classes = named if isinstance(named, dict) else {'': ''}
    return self._values.get('model_type') == 'phi3' and all(
      key == 'AutoTokenizer'
      or re.fullmatch(r'(configuration|modeling)_phi3\.Phi3\w+', str(name))
      for key, name in classes.items()
    )

  def integer(
    self, key: str, usual: int, *, also: str = '', low: int = 1,
    high: int = MOST,
  ) -> int:  # fmt: skip
    """A whole number; null stands for the usual one. also: the key's other
    name."""
    found = self._get(key, also)
    if found is None:
      return usual
    if type(found) is not int or not low <= found <= high:
      raise self._wrong(key, found, f'whole numbers from {low} to {high}')
    return found

  def size(self, key: str, usual: int) -> int:
    """A whole number; `usual` where the key is not there, and 0 for null."""
    gone = key in self._values and self._values[key] is None
    return self.integer(key, 0 if gone else usual)

  def cap(self, key: str, usual: float) -> float:
    """A number; `usual` where the key is not there, and 0 for null."""
    gone = key in self._values and self._values[key] is None
    return float(self.number(key, 0.0 if gone else usual))

  def blocks(self, key: str, usual: int, *, also: str = '') -> int:
    """How many blocks there are."""
    return self.integer(key, usual, also=also, high=MOST_BLOCKS)

  def number(self, key: str, usual: float) -> float:
    """A number that is not negative."""
    found = self._get(key)
    if found is None:
      return usual
    if type(found) not in (int, float) or not 0 <= found < math.inf:
      raise self._wrong(key, found, 'numbers from 0')
    return found

  def numbers(self, key: str) -> tuple[float, ...]:
    """A list of positive numbers; () if it is not there."""
    found = self._get(key)
    if found is None:
      return ()
    if not isinstance(found, list) or not all(
      type(x) in (int, float) and 0 < x < math.inf for x in found
    ):
      raise self._wrong(key, found, 'lists of positive numbers')
    return tuple(map(float, found))

  def local(self, blocks: int) -> tuple[bool, ...]:
    """Which blocks have a window, by `layer_types`; () if it is not there."""
    kinds = {'sliding_attention': True, 'full_attention': False}
    found = self._get('layer_types')
    if found is None:
      return ()
    if (
      not isinstance(found, list)
      or len(found) != blocks
      or not all(isinstance(x, str) and x in kinds for x in found)
    ):
      allowed = f'lists of {blocks} words, each {" or ".join(kinds)}'
      raise self._wrong('layer_types', found, allowed)
    return tuple(kinds[x] for x in found)

  def flag(self, key: str, usual: bool) -> bool:
    """True or false."""
    return self._typed(key, usual, bool, 'true and false')

  def text(self, key: str, usual: str) -> str:
    """A word."""
    return self._typed(key, usual, str, 'texts')

  def side(self, key: str, usual: int) -> int:
    """The side of a square, which may be written as [side, side]."""
    found = self._get(key)
    if isinstance(found, list):
      if len(found) != 2 or found[0] != found[1]:
        raise self._wrong(key, found, 'squares, as 224 or [224, 224]')
      self._values[key] = found[0]
    return self.integer(key, usual)

  def part(self, key: str) -> Settings:
    """The settings under a key; none if it is not there."""
    # Old files repeat what differs from the defaults under `_dict`.
    values = self.table(key) | self.table(f'{key}_dict')
    self._parts.append(Settings(values, f'{key} of {self._where}'))
    return self._parts[-1]

  def table(self, key: str) -> dict[str, Any]:
    """What lies under a key, as it is; {} if it is not there."""
    found = self._get(key)
    if found is None:
      return {}
    if not isinstance(found, dict):
      raise self._wrong(key, found, 'objects')
    return found

  def choice(self, key: str, usual: str, allowed: Mapping[str, Any]) -> str:
    """One of the words that are allowed."""
    found = self.text(key, usual)
    if found not in allowed:
      raise self._wrong(key, found, ', '.join(allowed))
    return found

  def refuse(self, **usual: Any) -> None:
    """Raises `ValueError` where a variant is asked for that is not built."""
    for key, value in usual.items():
      found = self._get(key)
      if found is not None and found != value:
        raise ValueError(
          f'{self._where} has {key}={found!r}; allowed: {value!r}. This '
          'variant of the model is not supported.'
        )

  def skip(self, *keys: str) -> None:
    """Leaves aside keys that change no number of this family."""
    self._read |= {*keys}

  def unread(self) -> tuple[str, ...]:
    """Keys that nobody has read, and that are not known to be harmless."""
    own = self._values.keys() - self._read - HARMLESS
    found = [f'{key} ({self._where})' for key in sorted(own)]
    return (*found, *(key for part in self._parts for key in part.unread()))

  def _get(self, key: str, also: str = '') -> Any:
    self._read |= {key, also}
    found = self._values.get(key)
    other = self._values.get(also) if also else None
    if found is not None and other is not None and found != other:
      raise ValueError(
        f'{self._where} has {key}={found!r} and {also}={other!r}, which are '
        'two names of one thing. Leave one of them out.'
      )
    return other if found is None else found

  def _typed(self, key: str, usual, kind: type, allowed: str) -> Any:
    found = self._get(key)
    if found is None:
      return usual
    if type(found) is not kind:
      raise self._wrong(key, found, allowed)
    return found

  def _wrong(self, key: str, found: Any, allowed: str) -> ValueError:
    return ValueError(
      f'{self._where} has {key}={found!r}; allowed: {allowed}. Mend '
      'config.json, or choose another model.'
    )
