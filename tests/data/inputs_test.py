"""Some rows of a source are what they are among all rows."""

import datasets
import numpy as np
import pytest
from PIL import Image

from fedms_jax.data import features, images, lazy, readers, text
from tests import folders

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 4, 4, 3), np.uint8)
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
TYPES = {'img': datasets.Image(), 'label': datasets.Value('int64')}
# What two processes ask for, in orders of their own.
PARTS = [np.array([5, 0, 3]), np.array([1, 6, 2, 4])]


def read(parts, **kwargs):
  kwargs = {
    'input_column': '', 'label_column': '', 'group_column': '',
    'image_size': 0, 'encode_text': None, 'need_labels': False,
  } | kwargs  # fmt: skip
  parts = dict(zip(('train', 'test'), parts, strict=False))
  table, _ = features.read(parts, **kwargs)
  return {k: v for k, v in table.columns.items() if k != 'labels'}


def dataset(types=None, **columns):
  types = types and datasets.Features(types)
  return datasets.Dataset.from_dict(columns, features=types)


def pictures(chosen):
  """Two splits of images."""
  chosen, zeros = list(chosen), [0] * len(chosen)
  return [
    dataset(TYPES, img=chosen[:3], label=zeros[:3]),
    dataset(TYPES, img=chosen[3:], label=zeros[3:]),
  ]


def check_parts(make, parts=PARTS):
  """Parts that different readers read are those of the whole."""
  whole = lazy.whole(make())
  for rows in parts:
    columns = make()
    part = lazy.take(columns, rows)
    assert part.keys() == whole.keys()
    for name, values in whole.items():
      assert columns[name].shape == values.shape
      assert columns[name].dtype == values.dtype
      np.testing.assert_array_equal(part[name], values[rows])
  return whole


@pytest.fixture
def decoded(monkeypatch):
  """Where each image is from that was decoded."""
  seen, decode = [], images._pixels

  def watched(where, item, prepare):
    seen.append(where)
    return decode(where, item, prepare)

  monkeypatch.setattr(images, '_pixels', watched)
  return seen


@pytest.mark.parametrize('batch', [2, 100])
def test_part_of_the_images(monkeypatch, batch):
  monkeypatch.setattr(readers, 'BATCH', batch)
  monkeypatch.setattr(images, 'GROUP', 2)
  whole = check_parts(lambda: read(pictures(PICTURES)))
  np.testing.assert_array_equal(whole['inputs'], PIXELS)


@pytest.mark.parametrize('colored', [[], [0], [6]])
def test_one_color_image_makes_those_of_all_processes_color(colored):
  mixed = [
    p if i in colored else p.convert('L') for i, p in enumerate(PICTURES)
  ]
  whole = check_parts(lambda: read(pictures(mixed)))
  assert whole['inputs'].shape == (7, 4, 4, 3 if colored else 1)


def test_all_images_are_decoded_once_each(decoded):
  columns = read(pictures(PICTURES))
  assert not decoded
  lazy.whole(lazy.reordered(columns, np.random.default_rng(1).permutation(7)))
  assert len(decoded) == len(set(decoded)) == 7


def test_of_some_images_only_the_first_row_of_all_is_decoded_beside(decoded):
  columns = read(pictures(PICTURES))
  lazy.take(columns, np.array([5, 2]))
  lazy.take(columns, np.array([6]))
  assert sorted(decoded) == [
    f"'img' of row {i} of the {split} split"
    for i, split in ((0, 'train'), (2, 'test'), (2, 'train'), (3, 'test'))
  ]


def test_sizes_that_differ_between_processes_are_refused():
  """Though each process alone has images of one size."""
  odd = [*PICTURES[:6], PICTURES[6].resize((5, 5))]
  with pytest.raises(ValueError, match='row 3 of the test split is 5 x 5'):
    lazy.take(read(pictures(odd)), np.array([6]))


def test_a_broken_image_is_refused_by_whom_it_concerns():
  broken = [*PICTURES[:6], None]
  found = lazy.take(read(pictures(broken)), np.array([4]))
  np.testing.assert_array_equal(found['inputs'][0], PIXELS[4])
  with pytest.raises(ValueError, match='row 3 of the test split has no image'):
    lazy.take(read(pictures(broken)), np.array([6]))


def test_part_of_the_arrays(monkeypatch):
  monkeypatch.setattr(readers, 'BATCH', 2)
  parts = [dataset(x=PIXELS[:3].tolist()), dataset(x=PIXELS[3:].tolist())]
  whole = check_parts(lambda: read(parts, image_size=6))
  np.testing.assert_array_equal(
    whole['inputs'], images.resize(PIXELS, images.square(6))
  )


def test_arrays_that_differ_between_processes_are_refused():
  odd = [*PIXELS[:6].tolist(), PIXELS[6, :3].tolist()]
  with pytest.raises(ValueError, match='arrays of different shapes'):
    lazy.take(read([dataset(x=odd)]), np.array([6]))


def encoder(objective, max_tokens):
  kind = 'gpt2' if objective == 'next' else 'bert'
  tokenizer = folders.tokenizer(kind)
  tokenizer.no_padding()
  return text.Encoder(
    tokenizer, max_tokens, objective=objective,
    end=folders.VOCABULARY['<eos>'], mask=folders.VOCABULARY['[MASK]'],
  )  # fmt: skip


TEXTS = [' '.join(folders.WORDS[i : i + n]) for i, n in
         enumerate([3, 1, 8, 2, 5, 4, 6])]  # fmt: skip


@pytest.mark.parametrize('batch', [2, 100])
@pytest.mark.parametrize('max_tokens', [4, 30])
@pytest.mark.parametrize('objective', ['whole', 'next', 'masked'])
def test_part_of_the_texts(monkeypatch, objective, max_tokens, batch):
  """As wide as the longest of all, and hidden alike, whoever reads it."""
  monkeypatch.setattr(readers, 'BATCH', batch)
  monkeypatch.setattr(text, 'DRAWN', 3)
  encode = encoder(objective, max_tokens)
  parts = [dataset(text=TEXTS[:3]), dataset(text=TEXTS[3:])]
  whole = check_parts(lambda: read(parts, encode_text=encode))
  monkeypatch.undo()
  expected = encode(TEXTS)
  assert whole.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_array_equal(whole[name], values)


def test_part_of_prompts_with_completions():
  answers = TEXTS[::-1]
  part = dataset(text=TEXTS, answer=answers)
  encode = encoder('next', 12)
  whole = check_parts(
    lambda: read([part], target_column='answer', encode_text=encode)
  )
  for name, values in encode(TEXTS, answers).items():
    np.testing.assert_array_equal(whole[name], values)


def test_part_of_images_with_captions():
  types = {'img': datasets.Image(), 'said': datasets.Value('string')}
  part = dataset(types, img=PICTURES, said=TEXTS)
  whole = check_parts(
    lambda: read([part], target_column='said', encode_text=encoder('whole', 30))
  )
  assert set(whole) == {'inputs', 'texts'}


class Counting:
  """An encoder that counts the texts of one length each."""

  max_tokens = 5

  def __init__(self):
    self.seen = []

  def tokens(self, texts, others=None):
    self.seen += texts
    return {'inputs': text.padded([range(min(len(t), 5)) for t in texts])}

  def finish(self, columns, rows, count):
    return columns


def test_all_texts_are_encoded_once_each():
  encode = Counting()
  columns = read([dataset(text=list('abcdefg'))], encode_text=encode)
  lazy.whole(columns)
  assert encode.seen == list('abcdefg')


def test_the_longest_texts_tell_the_width(monkeypatch):
  """Others are not encoded for it where those reach the limit."""
  monkeypatch.setattr(readers, 'BATCH', 2)
  encode = Counting()
  texts = ['a', 'bb', 'cccccccc', 'd', 'e', 'ffffff', 'g']
  columns = read([dataset(text=texts)], encode_text=encode)
  found = lazy.take(columns, np.array([4]))
  assert found['inputs'].tolist() == [[0, -1, -1, -1, -1]]
  assert encode.seen == ['e', 'cccccccc', 'ffffff']


def test_a_row_without_text_is_named_with_its_split():
  parts = [dataset(text=['a', 'b']), dataset(text=['c', None])]
  columns = read(parts, encode_text=Counting())
  with pytest.raises(ValueError, match='row 1 of the test split has no text'):
    lazy.whole(columns)
