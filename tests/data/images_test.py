import io
import json

import numpy as np
import pytest
from PIL import Image

from fedms_jax.data import images
from fedms_jax.models import preprocessors


def encoded(*pictures, form='PNG', **kwargs):
  for i, picture in enumerate(pictures):
    file = io.BytesIO()
    picture.save(file, form, **kwargs)
    yield f'image {i}', {'bytes': file.getvalue(), 'path': None}


def decode(*pictures, size=0, **kwargs):
  return images.decode(
    encoded(*pictures, **kwargs), len(pictures), images.square(size)
  )


RED = Image.new('RGB', (4, 4), (255, 0, 0))
GRAY = Image.new('L', (4, 4), 7)


def test_gray_images_keep_one_channel():
  assert decode(GRAY, GRAY).shape == (2, 4, 4, 1)


@pytest.mark.parametrize('order', [(RED, GRAY), (GRAY, RED)])
def test_one_color_image_makes_all_color(order):
  pixels = decode(*order)
  assert pixels.shape == (2, 4, 4, 3)
  assert pixels[order.index(RED), 0, 0].tolist() == [255, 0, 0]
  assert pixels[order.index(GRAY), 0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
  ('mode', 'channels'), [('1', 1), ('LA', 1), ('RGBA', 3), ('P', 3)]
)
def test_other_modes_become_gray_or_color(mode, channels):
  assert decode(RED.convert(mode)).shape == (1, 4, 4, channels)


def test_sizes_that_differ_need_a_size():
  other = RED.resize((6, 4))
  with pytest.raises(ValueError, match='image 1 is 4 x 6.*`image_size`'):
    decode(RED, other)
  assert decode(RED, other, size=5).shape == (2, 5, 5, 3)


def test_a_photo_is_resized_as_if_it_were_decoded_whole():
  """A JPEG may be decoded at a fraction of its size: a ramp stays a ramp."""
  ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
  pixels = decode(Image.fromarray(ramp), form='JPEG', size=16)
  expected = np.arange(16) * 16 + 7.5
  assert np.abs(pixels[0, :, :, 0] - expected).max() < 3


def test_detail_that_the_size_can_show_is_kept():
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (64, 64), np.uint8).repeat(4, 0).repeat(4, 1)
  photo = Image.fromarray(blocks)
  exact = images.resize(blocks[None, ..., None], images.square(48))
  lossy = decode(photo, form='JPEG', quality=95, size=48)
  assert np.abs(exact.astype(float) - lossy).mean() < 8


def test_the_orientation_of_a_photo_is_applied():
  left_white = Image.fromarray(
    np.repeat(np.asarray([[255, 0]], np.uint8), 2, 0).repeat(8, 0).repeat(8, 1)
  )
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  pixels = decode(left_white, form='JPEG', exif=exif)[0, :, :, 0]
  assert pixels[0, 0] < 50 and pixels[0, -1] > 200


def test_a_file_is_opened_by_path(tmp_path):
  RED.save(tmp_path / 'a.png')
  item = {'bytes': None, 'path': str(tmp_path / 'a.png')}
  pixels = images.decode([('a', item)], 1, images.square(0))
  assert pixels[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
  'item', [{'bytes': b'no image', 'path': None}, {'bytes': None, 'path': '/no'}]
)
def test_what_is_no_image_is_refused_by_place(item):
  with pytest.raises(ValueError, match='row 3 is no readable image'):
    images.decode([('row 3', item)], 1, images.square(0))


def transparent(mode):
  """Left half clear, with black under it; right half full, of value 200."""
  alpha = Image.fromarray(np.array([[0, 255]], np.uint8).repeat(2, 1))
  level = alpha.point(lambda a: 200 if a else 0)
  bands = [level] * (3 if mode == 'RGBA' else 1)
  return Image.merge(mode, [*bands, alpha])


@pytest.mark.parametrize(('mode', 'channels'), [('RGBA', 3), ('LA', 1)])
@pytest.mark.parametrize('form', ['PNG', 'TIFF'])
def test_what_is_transparent_is_white(mode, channels, form):
  pixels = decode(transparent(mode), form=form)
  assert pixels.tolist() == [[[[v] * channels for v in (255, 255, 200, 200)]]]


def test_a_transparent_color_of_a_palette_is_white():
  picture = Image.new('P', (2, 1), 0)
  picture.putpalette([9, 9, 9, 50, 60, 70])
  picture.putpixel((1, 0), 1)
  pixels = decode(picture, form='GIF', transparency=0)
  assert pixels.tolist() == [[[[255, 255, 255], [50, 60, 70]]]]


def test_a_checkpoint_leaves_alpha_out_as_its_reference_does():
  prepare = images.Prepare(color=True)
  pixels = images.decode(encoded(transparent('RGBA')), 1, prepare)
  assert pixels[0, 0, :, 0].tolist() == [0, 0, 200, 200]


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
"""


@pytest.mark.parametrize('by_path', [True, False])
def test_no_other_program_is_started_for_an_image(
  tmp_path, monkeypatch, by_path
):
  """Pillow would call Ghostscript for PostScript, whatever its file's name."""
  stub = tmp_path / 'gs'
  stub.write_text(f'#!/bin/sh\necho called >> {tmp_path}/log; exit 1\n')
  stub.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
  (tmp_path / 'x.png').write_bytes(POSTSCRIPT)
  item = {'bytes': POSTSCRIPT, 'path': None}
  if by_path:
    item = {'bytes': None, 'path': str(tmp_path / 'x.png')}
  for look in (
    lambda: images.decode([('row 3', item)], 1, images.square(0)),
    lambda: images.has_color('row 3', item),
  ):
    with pytest.raises(ValueError, match='row 3 is no .*: it is none of PNG'):
      look()
  assert not (tmp_path / 'log').exists()


@pytest.mark.parametrize('form', [*images.FORMATS, 'MPO'])
def test_every_format_that_is_named_can_be_read(form):
  kwargs = {'lossless': True} if form == 'WEBP' else {}
  if form == 'MPO':
    kwargs = {'save_all': True, 'append_images': [RED]}
  pixels = decode(RED, form=form, **kwargs)
  assert np.abs(pixels[0, 0, 0].astype(int) - [255, 0, 0]).max() < 3


@pytest.mark.parametrize('form', ['PPM', 'TGA', 'ICO', 'PCX', 'DDS'])
def test_other_formats_are_refused(form):
  with pytest.raises(
    ValueError, match='image 0 is no readable image: it is no'
  ):
    decode(RED, form=form)


def test_an_image_of_too_many_pixels_is_not_decoded():
  """A megabyte of PNG may be gigabytes of pixels."""
  bomb = Image.new('1', (8_500, 10_000))
  with pytest.raises(ValueError, match='image 0 .* has 8500 x 10000 pixels'):
    decode(bomb, form='PNG')
  with pytest.raises(ValueError, match='allowed: 80,000,000'):
    images.has_color(*next(encoded(bomb)))
  larger = Image.new('1', (20_000, 10_000))  # Pillow itself refuses those
  with pytest.raises(ValueError, match='image 0 is no readable .*200000000'):
    decode(larger, form='PNG')


def test_deep_pixels_are_refused():
  deep = Image.fromarray(np.full((4, 4), 1000, np.uint16))
  with pytest.raises(ValueError, match='not 8 bit'):
    decode(deep)


def test_arrays_and_files_are_resized_alike():
  rng = np.random.default_rng(0)
  for shape in ((3, 9, 9, 3), (3, 9, 6, 1)):
    pixels = rng.integers(0, 256, shape, np.uint8)
    pictures = [Image.fromarray(each.squeeze()) for each in pixels]
    np.testing.assert_array_equal(
      images.resize(pixels, images.square(6)), decode(*pictures, size=6)
    )


def test_resize_to_the_same_size_changes_nothing():
  pixels = np.arange(50, dtype=np.uint8).reshape(2, 5, 5, 1)
  assert images.resize(pixels, images.square(0)) is pixels
  assert images.resize(pixels, images.square(5)) is pixels


def test_arrays_must_be_images_of_bytes():
  plain = np.arange(18).reshape(2, 3, 3)
  assert images.from_arrays(plain, 'here').shape == (2, 3, 3, 1)
  color = np.zeros((2, 3, 3, 3), int)
  assert images.from_arrays(color, 'here').dtype == np.uint8
  for wrong in (plain * 20, plain - 1, plain / 18):
    with pytest.raises(ValueError, match='here has .* 0 to 255'):
      images.from_arrays(wrong, 'here')
  for wrong in (plain[0], np.zeros((2, 3, 3, 2), int)):
    with pytest.raises(ValueError, match='here has values of shape'):
      images.from_arrays(wrong, 'here')


PHOTOS = [
  Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, np.uint8))
  for i, shape in enumerate([(20, 27, 3), (38, 18, 3), (9, 9), (16, 16, 4)])
]
CROPPED = {
  'do_resize': True,
  'size': {'shortest_edge': 16},
  'resample': 3,
  'do_center_crop': True,
  'crop_size': {'height': 14, 'width': 14},
}
STRETCHED = {'size': {'height': 12, 'width': 12}, 'resample': 2}


def for_checkpoint(config, kind='vit'):
  found = preprocessors.completed(config, kind, 'preprocessor_config.json')
  return images.for_checkpoint(found)


@pytest.mark.parametrize(
  ('config', 'kind'),
  [
    (CROPPED, 'CLIPImageProcessorPil'),
    (CROPPED | {'size': 16, 'crop_size': 14}, 'CLIPImageProcessorPil'),
    (STRETCHED, 'ViTImageProcessorPil'),
    (STRETCHED | {'size': 12}, 'ViTImageProcessorPil'),
    # What is left out is usual for the class, and one number is a square.
    (
      {'do_center_crop': True, 'size': 16, 'crop_size': 14},
      'DeiTImageProcessorPil',
    ),
    ({'size': 12}, 'ViTImageProcessorPil'),
    ({'size': 18, 'crop_size': 14}, 'CLIPImageProcessorPil'),
    (
      {'size': 9, 'do_center_crop': True, 'crop_size': 7},
      'ViTImageProcessorPil',
    ),
    ({'size': [12, 12]}, 'ViTImageProcessorPil'),
  ],
)
def test_pixels_are_those_of_the_reference(config, kind):
  transformers = pytest.importorskip('transformers', reason='parity')
  if not hasattr(transformers, kind):
    kind = kind.removesuffix('Pil')  # before version 5
  theirs = getattr(transformers, kind)(**config)
  photos = [p.convert('RGB') for p in PHOTOS]
  expected = theirs(photos, do_normalize=False, do_rescale=False)
  expected = np.stack(expected['pixel_values']).transpose(0, 2, 3, 1)
  prepare = for_checkpoint(config, kind.partition('Image')[0].lower())
  found = images.decode(encoded(*PHOTOS), len(PHOTOS), prepare)
  np.testing.assert_array_equal(found, expected)


def test_a_checkpoint_gets_color_in_its_own_size():
  found = images.decode(encoded(*PHOTOS), len(PHOTOS), for_checkpoint(CROPPED))
  assert found.shape == (4, 14, 14, 3) and found.dtype == np.uint8
  digits = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
  grown = images.resize(digits, for_checkpoint(STRETCHED))
  assert grown.shape == (2, 12, 12, 3)
  np.testing.assert_array_equal(grown[..., 0], grown[..., 2])


@pytest.mark.parametrize(
  'change',
  [{'do_rescale': False}, {'rescale_factor': 1 / 127.5},
   {'do_normalize': False}, {'size': {'longest_edge': 9}}],
)  # fmt: skip
def test_other_preprocessing_is_refused(change):
  config = json.loads(json.dumps(CROPPED | change))
  with pytest.raises(ValueError, match=next(iter(change))):
    for_checkpoint(config)


def test_no_resize_where_the_checkpoint_wants_none():
  prepare = for_checkpoint(CROPPED | {'do_resize': False})
  found = np.asarray(prepare(PHOTOS[0]))
  np.testing.assert_array_equal(found, np.asarray(PHOTOS[0])[3:17, 6:20])
