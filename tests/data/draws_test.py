import numpy as np

from fedms_jax.core.streams import HOST, Stream
from fedms_jax.data import draws


def test_keys_are_the_published_splitmix64_sequence():
  """The first outputs of the reference generator from seed 1234567."""
  start = np.full(3, 1234567, np.uint64)
  assert draws.keys(start, np.arange(3)).tolist() == [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
  ]


def test_states_differ_in_every_word_and_in_their_order():
  words = [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (1, 0, 2), (0, 1)]
  states = {int(draws.state(*each)[0]) for each in words}
  assert len(states) == len(words)


def test_an_array_of_words_gives_the_states_of_each():
  many = draws.state(7, np.arange(5), 3)
  assert many.tolist() == [int(draws.state(7, k, 3)[0]) for k in range(5)]


def test_streams_are_independent():
  """A last word of 0 is no word to NumPy: streams need numbers of their own."""
  here = [stream for stream in Stream if stream.value[0] == HOST]
  first = [
    draws.generator(0, stream, *words).integers(1 << 60)
    for stream in here
    for words in ((), (1,))
  ]
  assert len(set(first)) == 2 * len(here)
