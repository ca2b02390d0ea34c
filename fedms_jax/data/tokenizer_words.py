"""tokenizer_config.json beside tokenizer.json, which alone is run here.

transformers lets the former change what the latter does. What it says is
honored, or is what tokenizer.json does anyway, or is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'cls_token',
           'mask_token')  # fmt: skip
_LISTS = ('additional_special_tokens', 'extra_special_tokens')
# What the tokens of `added_tokens_decoder` say of how they are found in texts.
_MARKS = ('lstrip', 'rstrip', 'single_word', 'normalized', 'special')
_READ = {
  *_TOKENS, *_LISTS, 'added_tokens_decoder', 'added_tokens.json',
  'truncation_side', 'model_max_length', 'add_bos_token', 'add_eos_token',
  'do_lower_case', 'strip_accents', 'tokenize_chinese_chars',
  'add_prefix_space', 'split_special_tokens', 'auto_map', 'tokenizer_class',
}  # fmt: skip
# What transformers takes where a file of that class does not say.
_BERT = {'do_lower_case': True, 'tokenize_chinese_chars': True}
# How tokens become text again, how rows are padded (ours are masked), what is
# only for slow tokenizers, and arguments of a call.
_HARMLESS = frozenset(
  'backend chat_template clean_up_tokenization_spaces do_basic_tokenize errors '
  'is_local legacy local_files_only mask_token max_length max_len '
  'model_input_names model_specific_special_tokens name_or_path never_split '
  'pad_to_multiple_of pad_token pad_token_type_id padding_side '
  'processor_class return_token_type_ids sp_model_kwargs '
  'spaces_between_special_tokens special_tokens_map_file stride '
  'tokenizer_file trim_offsets truncation_strategy '
  'use_default_system_prompt use_fast vocab_file merges_file '
  'wordpieces_prefix keep_accents'.split()
)


class Words(NamedTuple):
  """side: of a text from which it is cut, 'right' or 'left'. most: tokens of
  a text, None: no limit. unread: keys that are not known."""

  side: str = 'right'
  most: int | None = None
  unread: tuple[str, ...] = ()


def read(tokenizer: Any, said: Mapping[str, Any], where: str) -> Words:
  """What tokenizer_config.json adds to a tokenizer.

  Args:
    tokenizer: a `tokenizers.Tokenizer`, with the truncation of its file.
    said: tokenizer_config.json; {} if there is none.
    where: its path, for messages.

  Raises:
    ValueError: it asks for what tokenizer.json does not do.
  """
  said = {key: value for key, value in said.items() if value is not None}
  _check_added(tokenizer, said, where)
  _check_steps(tokenizer, said, where)
  _check_ends(tokenizer, said, where)
  _check_punctuation(tokenizer, said, where)
  own = tokenizer.truncation or {}
  side = said.get('truncation_side', own.get('direction', 'right'))
  if side not in ('right', 'left'):
    raise _wrong(where, 'truncation_side', side, 'right, left')
  most = said.get('model_max_length')
  if most is not None and (type(most) not in (int, float) or most < 1):
    raise _wrong(where, 'model_max_length', most, 'numbers from 1')
  for key in ('split_special_tokens', 'auto_map'):
    if said.get(key):
      raise _wrong(where, key, said[key], 'none; that is not built')
  unread = sorted(said.keys() - _READ - _HARMLESS)
  return Words(
    side,
    None if most is None else int(most),
    tuple(f'{key} ({where})' for key in unread),
  )


def _check_added(tokenizer, said: Mapping[str, Any], where: str) -> None:
  """Tokens that transformers would add, or find otherwise."""
  own = tokenizer.get_added_tokens_decoder()
  for number, token, marks in _added(said, where):
    if tokenizer.token_to_id(token) != number:
      raise ValueError(
        f'{where} gives the token {token!r} the id {number}; tokenizer.json '
        f'has {tokenizer.token_to_id(token)}. Save the tokenizer again with '
        'transformers.'
      )
    if number in own:
      for mark, value in marks.items():
        if getattr(own[number], mark) != value:
          raise ValueError(
            f'{where} has {mark}={value!r} for the token {token!r}; '
            'tokenizer.json has the opposite. Save the tokenizer again with '
            'transformers.'
          )
  for key, token in _named(said, where):
    if tokenizer.token_to_id(token) is None:
      raise ValueError(
        f'{where} has {key}={token!r}, which tokenizer.json has not. Save the '
        'tokenizer again with transformers.'
      )


def _added(said: Mapping[str, Any], where: str) -> Iterator[tuple]:
  """(id, token, its marks) of the tokens that were added."""
  found = said.get('added_tokens_decoder', {})
  older = said.get('added_tokens.json', {})
  for key, value in (('added_tokens_decoder', found), ('of tokens', older)):
    if not isinstance(value, dict):
      raise _wrong(where, key, value, 'an object')
  for number, token in found.items():
    token = token if isinstance(token, dict) else {'content': token}
    if not number.isdecimal() or not isinstance(token.get('content'), str):
      raise _wrong(where, f'added_tokens_decoder of {number}', token, 'tokens')
    marks = {m: token[m] for m in _MARKS if m in token}
    yield int(number), token['content'], marks
  for token, number in older.items():
    yield number, token, {}


def _named(said: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
  """(key, token) of the special tokens."""
  listed: list[tuple[str, Any]] = [(k, said[k]) for k in _TOKENS if k in said]
  for key in _LISTS:
    values = said.get(key, [])
    values = list(values.values()) if isinstance(values, dict) else values
    if not isinstance(values, list):
      raise _wrong(where, key, values, 'a list')
    listed += [(key, value) for value in values]
  for key, value in listed:
    token = value.get('content') if isinstance(value, dict) else value
    if not isinstance(token, str):
      raise _wrong(where, key, value, 'a token')
    yield key, token


def _check_steps(tokenizer, said: Mapping[str, Any], where: str) -> None:
  """How texts are written before they are cut into words."""
  asked = dict(said)
  if str(said.get('tokenizer_class')).startswith('BertTokenizer'):
    asked = _BERT | asked
    asked.setdefault('strip_accents', asked['do_lower_case'])
  own = {}
  for step in _steps(tokenizer.normalizer):
    if step['type'] == 'BertNormalizer':
      lower, strip = step['lowercase'], step['strip_accents']
      own['do_lower_case'] = lower
      own['strip_accents'] = lower if strip is None else strip
      own['tokenize_chinese_chars'] = step['handle_chinese_chars']
  for step in _steps(tokenizer.pre_tokenizer):
    if step['type'] == 'ByteLevel':
      own['add_prefix_space'] = step['add_prefix_space']
    if step['type'] == 'Metaspace' and 'prepend_scheme' in step:
      own['add_prefix_space'] = step['prepend_scheme'] != 'never'
  for key, value in own.items():
    if key in asked and asked[key] != value:
      raise ValueError(
        f'{where} asks for {key}={asked[key]!r}, and tokenizer.json does '
        f'{key}={value!r}. Save the tokenizer again with transformers, or '
        'make the files agree.'
      )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
  """The steps of a normalizer or pre-tokenizer."""
  if part is None:
    return
  found = json.loads(part.__getstate__())
  names = ('normalizers', 'pretokenizers')
  inner = next((found[name] for name in names if name in found), [found])
  yield from inner


def _check_ends(tokenizer, said: Mapping[str, Any], where: str) -> None:
  """Whether texts begin and end with a token of their own."""
  if not {'add_bos_token', 'add_eos_token'} & said.keys():
    return
  ids = tokenizer.encode('').ids
  tokens = dict(_named(said, where))
  for key, name, place in (
    ('add_bos_token', 'bos_token', 0), ('add_eos_token', 'eos_token', -1)
  ):  # fmt: skip
    if key not in said or name not in tokens:
      continue
    added = bool(ids) and ids[place] == tokenizer.token_to_id(tokens[name])
    both = tokens.get('bos_token') == tokens.get('eos_token')
    if added != said[key] and not (both and added):
      raise ValueError(
        f'{where} has {key}={said[key]!r}, and tokenizer.json does '
        f'{"" if added else "not "}put {tokens[name]!r} there. Save the '
        'tokenizer again with transformers, or make the files agree.'
      )


def _check_punctuation(tokenizer, said: Mapping[str, Any], where: str) -> None:
  """SigLIP's texts have no punctuation and are small; transformers sees to it
  before the tokenizer does."""
  if not str(said.get('tokenizer_class')).startswith('SiglipTokenizer'):
    return
  plain = 'a b' if said.get('do_lower_case', True) else 'A b'
  if tokenizer.encode('A,  b.').ids != tokenizer.encode(plain).ids:
    raise ValueError(
      f'{where} has tokenizer_class={said["tokenizer_class"]}, which leaves '
      'punctuation out and makes texts small, and tokenizer.json does not. Add '
      'it to its normalizer.'
    )


def _wrong(where: str, key: str, found: Any, allowed: str) -> ValueError:
  return ValueError(f'{where} has {key}={found!r}; allowed: {allowed}.')
