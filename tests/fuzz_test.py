"""Whatever the input: it is taken, or refused in one line with exit code 2."""

import collections

import datasets.config
import pytest

from tests import fuzzing, fuzzing_data

# Inputs of each kind: 300 in all.
KINDS = {
  fuzzing.some_flags: 60,
  fuzzing.numbers: 40,
  fuzzing.flag_file: 20,
  fuzzing.checkpoint_json: 40,
  fuzzing.weights: 30,
  fuzzing_data.table: 60,
  fuzzing_data.arrays: 30,
  fuzzing_data.partition: 20,
}
EACH = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  root = tmp_path_factory.mktemp('fuzz')
  before = datasets.config.HF_DATASETS_CACHE
  datasets.config.HF_DATASETS_CACHE = root / 'cache'
  yield fuzzing.Bench(root)
  datasets.config.HF_DATASETS_CACHE = before


def check(kind, numbers, bench):
  """Runs inputs of a kind; says how many were what."""
  counts, wrong = collections.Counter(tried=0, accepted=0, refused=0), []
  for number in numbers:
    found = fuzzing.outcome(kind, number, bench)
    counts['tried'] += 1
    counts[found.kind] += 1
    if found.kind == 'wrong':
      wrong.append(found.said)
  said = ', '.join(f'{count} {what}' for what, count in counts.items())
  print(f'{kind.__name__}: {said}, {len(wrong)} tracebacks and the like')
  assert not wrong, f'{len(wrong)} of {counts}:\n\n' + '\n'.join(wrong)
  # Else the inputs no longer reach what they are meant for.
  assert counts['accepted'] and counts['refused'], counts


@pytest.mark.filterwarnings('ignore')
@EACH
def test_an_input_is_taken_or_refused_in_one_line(kind, bench):
  check(kind, range(KINDS[kind]), bench)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@EACH
def test_many_inputs_are_taken_or_refused_in_one_line(kind, bench):
  check(kind, range(1000, 1000 + 20 * KINDS[kind]), bench)


def test_inputs_are_the_same_each_time(bench):
  for kind in KINDS:
    one, other = (fuzzing.outcome(kind, 5, bench).kind for _ in range(2))
    assert one == other


def test_the_harness_sees_tracebacks_and_hangs(monkeypatch):
  def fail(_):
    raise KeyError('x')

  def hang(_):
    while True:
      pass

  monkeypatch.setattr(fuzzing.world, 'world', fail)
  assert 'KeyError' in fuzzing.run_words([]).said
  monkeypatch.setattr(fuzzing, 'SECONDS', 1)
  monkeypatch.setattr(fuzzing.world, 'world', hang)
  assert fuzzing.run_words([]).kind == 'wrong'
  assert fuzzing.run_words(['--seed=x']).kind == 'refused'
