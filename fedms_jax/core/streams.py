"""Every use of randomness, on the host and on devices, in one registry.

A draw is a pure function of a seed, its stream, and numbers such as the round
or the client; draws of different streams are independent.
"""

from __future__ import annotations

import enum

HOST, DEVICE = 'host', 'device'  # NumPy's generators, and JAX's keys


@enum.unique
class Stream(enum.Enum):
  """(where it is drawn, its number there). Never renumber: old runs change."""

  INIT = DEVICE, 0  # parameters
  PRETRAIN = DEVICE, 1
  CLIENT = DEVICE, 2  # a client's round
  IMPORTANCE = DEVICE, 3  # the step that measures it
  SERVER = DEVICE, 4  # memory of the server and of the channel
  NOISE = DEVICE, 5  # what the channel adds to a round's sums

  SHUFFLE = HOST, 1  # rows of an epoch of pre-training
  SYNTHETIC = HOST, 2
  PUBLIC = HOST, 3
  DEAL = HOST, 4
  UNSEEN = HOST, 5
  COHORT = HOST, 6
  BATCHES = HOST, 7
  MASKS = HOST, 8  # which tokens are masked
  NOVEL = HOST, 9  # which rows of novel classes are tested
  LOST = HOST, 10  # which clients of a cohort send nothing
  KEEP = HOST, 11  # which rows `max_rows` keeps
  FOREIGN = HOST, 12  # which public rows a client's gate sees
  SHIFT = HOST, 0x5F7  # what a client's images look like
  CONCEPT = HOST, 0xC07  # what a client means by labels
  ORDER = HOST, 0x0DE  # of activation
  RANDOM = HOST, 0x5A1  # when a random schedule goes deeper
  ALLOCATION = HOST, 0xA11
  BUDGET = HOST, 0xB5D  # of a client's depth
  DROPOUT = HOST, 0xD20  # of layers
  TURNS = HOST, 0xF30  # who chooses first in a balanced order
  RANKS = HOST, 0x4A4C  # of clients
  SEARCH = HOST, 0xF3C  # for which blocks a cohort trains
  DEPTHS = HOST, 0xDE47  # of clients' models
  PROXY = HOST, 0x9B0  # public rows that the server reads in a round
  GROUPS = HOST, 0x6B5  # of clients, that take turns
  SCORE = HOST, 0x5C0  # noise of a score that is released
  DEVICES = HOST, 0xDE5  # of clients: their speeds, and when they are online
  SELECT = HOST, 0x5E1  # who is chosen by what clients reported
  ATTACK = HOST, 0xBAD  # who is malicious, and which rows are poisoned
  AUDIT = HOST, 0xA0D  # canaries, and which rows a shadow run has
  TASKS = HOST, 0x7A5  # which rows and classes a task of a sequence has
  ARRIVAL = HOST, 0xA77  # when rows of a task arrive
  MEMORY = HOST, 0x3E3  # which rows of earlier tasks clients keep

  @property
  def number(self) -> int:
    """The number of the stream, the first word after the seed."""
    return self.value[1]
