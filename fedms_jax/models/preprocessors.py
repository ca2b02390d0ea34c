"""What is done to images before a model sees them, as its files say it.

The words are those of preprocessor_config.json. What a file leaves out is
usual for the class of transformers that reads it, and not for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedms_jax.models import clip, vit

_CLIP = {
  'size': {'shortest_edge': 224},
  'resample': 3,
  'do_center_crop': True,
  'crop_size': {'height': 224, 'width': 224},
  'image_mean': list(clip.MEAN),
  'image_std': list(clip.STD),
}
_VIT = {
  'size': {'height': 224, 'width': 224},
  'resample': 2,
  'do_center_crop': False,
  'image_mean': list(vit.PIXELS['vit'][0]),
  'image_std': list(vit.PIXELS['vit'][1]),
}
_DEIT = {
  'size': {'height': 256, 'width': 256},
  'resample': 3,
  'do_center_crop': True,
  'crop_size': {'height': 224, 'width': 224},
  'image_mean': list(vit.PIXELS['deit'][0]),
  'image_std': list(vit.PIXELS['deit'][1]),
}
_USUAL = {
  'CLIP': _CLIP,
  'Bit': _CLIP,
  'Siglip': _VIT | {'resample': 3},
  'ViT': _VIT,
  'DeiT': _DEIT,
}
_BY_SHORTEST = ('CLIP', 'Bit', 'Siglip')  # what a single number means
OF_MODEL = {
  'clip': 'CLIP',
  'clip_vision_model': 'CLIP',
  'siglip': 'Siglip',
  'siglip_vision_model': 'Siglip',
  'vit': 'ViT',
  'deit': 'DeiT',
  'dinov2': 'Bit',
  'dinov2_with_registers': 'Bit',
}
_ENDS = ('ImageProcessor', 'ImageProcessorFast', 'ImageProcessorPil',
         'FeatureExtractor')  # fmt: skip
# Steps that every one of these classes takes, and the numbers of pixels.
_STEPS = {
  'do_resize': True,
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'do_normalize': True,
}
_HARMLESS = frozenset(
  'image_processor_type feature_extractor_type processor_class data_format '
  'input_data_format return_tensors do_convert_rgb do_thumbnail device '
  'disable_grouping default_to_square _valid_processor_keys '
  '_processor_class image_seq_length backend auto_map'.split()
)


def completed(
  found: Mapping[str, Any], model_type: str | None, where: str
) -> dict[str, Any]:
  """The words of a file with those that it leaves out, each checked.

  size and crop_size become objects; 'unread' names the keys that are not
  known. model_type: of the model, for files that name no class.

  Raises:
    ValueError: a value is of a wrong type, or asks for a step that is not
      built; `where` is the file.
  """
  kind = _kind(found, model_type, where)
  given = {k: v for k, v in found.items() if v is not None}
  out = {**_STEPS, **_USUAL[kind], **given}
  square = kind not in _BY_SHORTEST
  if 'default_to_square' in given:
    square = given['default_to_square']
  out['size'] = _size('size', out['size'], square, where)
  if 'crop_size' in out:
    out['crop_size'] = _size('crop_size', out['crop_size'], True, where)
  for key in (*_STEPS, 'do_center_crop'):
    if key.startswith('do_') and not isinstance(out[key], bool):
      raise _wrong(where, key, out[key], 'true and false')
  if type(out['resample']) is not int or not 0 <= out['resample'] <= 5:
    raise _wrong(where, 'resample', out['resample'], 'numbers from 0 to 5')
  for key in ('image_mean', 'image_std', 'rescale_factor'):
    low = 'above 0' if key == 'image_std' else ''
    if not _numbers(out[key], low, listed=key != 'rescale_factor'):
      raise _wrong(where, key, out[key], f'numbers {low}'.strip())
  unknown = sorted(given.keys() - {*_STEPS, *_CLIP} - _HARMLESS)
  for key in unknown:
    if key.startswith(('do_', 'use_')) and given[key]:
      raise _wrong(where, key, given[key], 'false; that step is not built')
  return out | {'unread': [f'{key} ({where})' for key in unknown]}


def side(preprocessor: Mapping[str, Any]) -> int | None:
  """The side of the images that come out; None if it depends on them.

  Raises:
    ValueError: they are no squares.
  """
  key = 'crop_size' if preprocessor['do_center_crop'] else 'size'
  if key == 'size' and not preprocessor['do_resize']:
    return None
  found = preprocessor[key]
  if 'shortest_edge' in found:
    return None
  if found['height'] != found['width']:
    raise ValueError(
      f'the preprocessor has {key}={dict(found)}; allowed: squares, which '
      'these models read.'
    )
  return found['height']


def _kind(found: Mapping[str, Any], model_type, where: str) -> str:
  said = found.get('image_processor_type', found.get('feature_extractor_type'))
  if said is None:
    return OF_MODEL.get(str(model_type), 'ViT')
  for kind in _USUAL:
    if said in [kind + end for end in _ENDS]:
      return kind
  raise _wrong(
    where,
    'image_processor_type',
    said,
    ', '.join(f'{k}{_ENDS[0]}' for k in _USUAL),
  )


def _size(key: str, value: Any, square: bool, where: str) -> dict[str, int]:
  """A size as an object, however it is written."""
  if type(value) is int:
    value = (
      {'height': value, 'width': value} if square else {'shortest_edge': value}
    )
  elif isinstance(value, list) and len(value) == 2:
    value = dict(zip(('height', 'width'), value, strict=True))
  found = value if isinstance(value, dict) else {}
  allowed = [['height', 'width']] + [['shortest_edge']] * (key == 'size')
  good = sorted(found) in allowed and all(
    type(x) is int and 0 < x <= 65536 for x in found.values()
  )
  if not good:
    raise _wrong(where, key, value, 'height and width, or shortest_edge')
  return found


def _numbers(value: Any, low: str, listed: bool) -> bool:
  values = value if listed else [value]
  return isinstance(values, list) and all(
    type(x) in (int, float) and (x > 0 or not low) for x in values
  )


def _wrong(where: str, key: str, found: Any, allowed: str) -> ValueError:
  return ValueError(f'{where} has {key}={found!r}; allowed: {allowed}.')
