"""Metrics by name: against scikit-learn, by hand, and as sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from fedms_jax.core import metrics, scoring
from fedms_jax.core.types import Outputs
from fedms_jax.models import class_measures, measures, tasks
from tests.algorithms import language_test

RNG = np.random.default_rng(0)
N, C = 60, 4
MASK = np.arange(N) < 50  # the rest is padding, of any content
REAL = slice(0, 50)
CLASSES, LEVELS = tasks.classification(), tasks.ordinal()
TAGS, VALUES = tasks.multi_label(), tasks.regression()
NEXT = tasks.causal_lm()
TAGGED = Outputs('tags', ('a', 'b', 'c', 'd'))
VALUED = Outputs('values', ('x', 'y'), (5.0, 0.0), (3.0, 0.5))
LABELS = RNG.integers(0, C, N).astype(np.int32)
LOGITS = (2 * RNG.normal(size=(N, C)) + 2 * np.eye(C)[LABELS]).astype('f4')
HOT = (RNG.random((N, C)) < 0.4).astype(np.uint8)
Y = RNG.normal(size=(N, 2)).astype(np.float32)
BATCH = {'mask': MASK, 'labels': LABELS, 'tags': HOT, 'values': Y}


def value(name, task, logits, batch=None, outputs=None, labels=C):
  """A metric's value, of sums over three parts of the rows."""
  batch = BATCH if batch is None else batch
  metric = measures.make(name, task, labels, outputs)
  parts = [
    metric.sums(
      logits[i::3], {k: jnp.asarray(x[i::3]) for k, x in batch.items()}
    )
    for i in range(3)
  ]
  total = np.sum([np.asarray(x, np.float64) for x in parts], axis=0)
  return metric.finish(total)


def test_of_classes_they_are_those_of_scikit_learn():
  right, said = LABELS[REAL], LOGITS[REAL].argmax(1)
  get = functools.partial(value, task=CLASSES, logits=LOGITS)
  macro = {'average': 'macro'}
  wanted = {
    'accuracy': reference.accuracy_score(right, said),
    'f1': reference.f1_score(right, said, **macro),
    'f1_micro': reference.f1_score(right, said, average='micro'),
    'precision': reference.precision_score(right, said, **macro),
    'precision_micro': reference.precision_score(right, said, average='micro'),
    'recall': reference.recall_score(right, said, **macro),
    'recall_micro': reference.recall_score(right, said, average='micro'),
    'top2': reference.top_k_accuracy_score(right, LOGITS[REAL], k=2),
    'nll': reference.log_loss(right, jax.nn.softmax(LOGITS[REAL])),
  }
  for name, found in wanted.items():
    assert get(name) == pytest.approx(found, rel=1e-5), name
  table = reference.confusion_matrix(right, said)
  np.testing.assert_array_equal(get('confusion'), table)


def test_a_class_that_nobody_has_or_says_is_no_part_of_a_mean():
  """As in scikit-learn; one that is said and never right counts 0."""
  logits = np.eye(C, dtype=np.float32)[[0, 0, 1, 1, 3]]
  batch = {'mask': np.ones(5, bool), 'labels': np.array([0, 0, 1, 0, 1])}
  found = value('f1', CLASSES, logits, batch)
  said = logits.argmax(1)
  wanted = reference.f1_score(batch['labels'], said, average='macro')
  assert found == pytest.approx(wanted) == pytest.approx((0.8 + 0.5 + 0) / 3)
  nothing = batch | {'mask': np.zeros(5, bool)}
  assert np.isnan(value('f1', CLASSES, logits, nothing))


def test_auc_is_as_good_as_its_bins():
  p = np.asarray(jax.nn.softmax(LOGITS[REAL]))
  exact = reference.roc_auc_score(LABELS[REAL], p, multi_class='ovr')
  assert value('auc', CLASSES, LOGITS) == pytest.approx(exact, abs=3e-3)
  tagged = reference.roc_auc_score(HOT[REAL], LOGITS[REAL], average='macro')
  found = value('auc', TAGS, LOGITS, outputs=TAGGED)
  assert found == pytest.approx(tagged, abs=3e-3)
  # By hand: 5 of 6 pairs are in order, and one is a tie.
  odds = np.array([[-3.0], [-1.0], [1.0], [1.0], [2.0]], np.float32)
  batch = {
    'mask': np.ones(5, bool),
    'tags': np.array([[0], [0], [1], [0], [1]]),
  }
  one = Outputs('tags', ('a',))
  assert value('auc', TAGS, odds, batch, one) == pytest.approx(5.5 / 6)


def test_of_tags_they_are_those_of_scikit_learn():
  said = LOGITS[REAL] > 0
  get = functools.partial(value, task=TAGS, logits=LOGITS, outputs=TAGGED)
  for name, average in (('f1', 'macro'), ('f1_micro', 'micro')):
    wanted = reference.f1_score(HOT[REAL], said, average=average)
    assert get(name) == pytest.approx(wanted, rel=1e-5)
  exact = reference.accuracy_score(HOT[REAL], said)
  assert get('exact_match') == pytest.approx(exact)


def test_of_values_they_are_those_of_scikit_learn_in_the_units_of_the_data():
  logits = (Y + RNG.normal(size=Y.shape)).astype(np.float32)
  get = functools.partial(value, task=VALUES, logits=logits, outputs=VALUED)
  unit, zero = np.array(VALUED.spread), np.array(VALUED.center)
  right, said = (zero + unit * x[REAL] for x in (Y, logits))
  wanted = {
    'mse': reference.mean_squared_error(right, said),
    'rmse': np.sqrt(reference.mean_squared_error(right, said)),
    'mae': reference.mean_absolute_error(right, said),
    'r2': reference.r2_score(right, said),
  }
  for name, found in wanted.items():
    assert get(name) == pytest.approx(found, rel=1e-5), name
  flat = BATCH | {'values': np.full_like(Y, 2.0)}
  assert np.isnan(get('r2', batch=flat))  # no variance to explain


def test_of_levels_errors_count_levels():
  """Log odds of being above levels 0, 1, 2: who is over even odds counts."""
  logits = np.array([[3, 1, -2], [-1, -2, -3], [2, 2, 2]], np.float32)
  said, right = np.array([2, 0, 3]), np.array([1, 0, 0])
  batch = {'mask': np.ones(3, bool), 'labels': right}
  get = functools.partial(value, task=LEVELS, logits=logits, batch=batch)
  assert get('mae') == pytest.approx(np.abs(said - right).mean())
  assert get('rmse') == pytest.approx(np.sqrt(np.mean([1, 0, 9])))
  assert get('accuracy') == pytest.approx(1 / 3)
  kappa = reference.cohen_kappa_score(right, said, weights='quadratic')
  assert get('kappa') == pytest.approx(kappa)


def test_probabilities_of_levels_add_up_to_one():
  """Where a step is likelier than the one below it, as the one below it."""
  asked = class_measures.Asked(LEVELS, 4)
  logits = jnp.array([[0.0, 2.0, -1.0]])
  p = np.asarray(class_measures._probabilities(asked, logits))
  last = 1 / (1 + np.exp(1.0))
  np.testing.assert_allclose(p, [[0.5, 0.0, 0.5 - last, last]], atol=1e-6)


def test_calibration_by_hand():
  """Three rows of confidence .9, two right; one of .6, wrong."""
  p = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.4, 0.6]])
  batch = {'mask': np.ones(4, bool), 'labels': np.array([0, 1, 1, 0])}
  found = value('ece', CLASSES, np.log(p).astype('f4'), batch, labels=2)
  wanted = 3 / 4 * abs(0.9 - 2 / 3) + 1 / 4 * abs(0.6 - 0)
  assert found == pytest.approx(wanted, rel=1e-5)


def test_perplexity_is_of_sums_over_tokens():
  """Three tokens that cost 6 nats in all: exp(6 / 3), whatever the rows."""
  metric = measures.make('perplexity', NEXT, 1, None)
  assert metric.finish(np.array([6.0, 3.0])) == pytest.approx(7.389, abs=1e-3)
  logits = RNG.normal(size=(3, 5, 7)).astype(np.float32)
  tokens = np.array([[1, 2, 3, 4, 5], [6, 0, -1, -1, -1], [3, 3, 1, -1, -1]])
  batch = {'inputs': tokens, 'mask': np.array([True, True, False])}
  logp = np.asarray(jax.nn.log_softmax(logits))
  places = [(0, t) for t in range(4)] + [(1, 0)]
  cost = [-logp[b, t, tokens[b, t + 1]] for b, t in places]
  found = value('perplexity', NEXT, logits, batch)
  assert found == pytest.approx(np.exp(np.mean(cost)), rel=1e-5)


def decoded(mixture, table, rows):
  """Texts as greedy decoding goes on with the prompts of these rows, token by
  token; as long as they are."""
  written, learned = table['inputs'], table['targets'][rows] >= 0
  for t in range(1, written.shape[1]):
    logits = mixture(table | {'inputs': written}, rows)
    new = jnp.where(learned[:, t], jnp.argmax(logits[:, t - 1], -1),
                    written[rows, t])  # fmt: skip
    written = written.at[rows, t].set(new.astype(written.dtype))
  return written[rows]


def test_exact_match_is_what_greedy_decoding_gives():
  """Of a mixture of two experts. Of six texts the model has written four, two
  of which were then changed in one token; the last two are as they came."""
  algorithm, roles, plan = language_test.stage('next')
  roles = jax.tree.map(jnp.asarray, roles)
  metric = measures.make('exact_match', algorithm.task, 1, None)
  look = scoring.Look(algorithm, plan, ('mixture',), (metric,))

  @jax.jit
  def mixture(table, rows):
    return scoring._predicted(look, roles, table, rows)[1].logits['mixture']

  table, rows = dict(language_test.table('next')), jnp.arange(6)
  prompt = jnp.arange(table['inputs'].shape[1])[None, :] < 2
  table['targets'] = jnp.where(prompt, -1, table['inputs'])
  own = decoded(mixture, table, rows[:4])
  own = own.at[2:, 3].set((own[2:, 3] + 1) % 7)
  table['inputs'] = table['inputs'].at[:4].set(own)
  table['targets'] = jnp.where(prompt, -1, table['inputs'])
  again = decoded(mixture, table, rows)
  wanted = (again == table['inputs'][rows]).all(axis=1)
  assert wanted.tolist() == [True, True, False, False, False, False]
  score = jax.jit(lambda row: scoring.evaluate(look, roles, table, row[None]))
  for row, right in zip(rows, wanted.tolist(), strict=True):
    sums = score(row)['metric/exact_match/mixture']
    assert sums.tolist() == [right, 1], row


@pytest.mark.parametrize(
  ('name', 'task', 'words'),
  [
    ('f2', CLASSES, 'f1, f1_micro'),
    ('f1', VALUES, 'mse, rmse, mae, r2'),
    ('mse', CLASSES, 'scores of classes'),
    ('perplexity', TAGS, 'exact_match'),
    ('top4', CLASSES, 'top1 to top3'),
    ('kappa', CLASSES, 'confusion'),
  ],
)
def test_a_metric_that_says_nothing_of_a_task_is_refused(name, task, words):
  with pytest.raises(ValueError, match=words):
    measures.make(name, task, C, None)


def test_a_matrix_of_too_many_classes_is_refused():
  with pytest.raises(ValueError, match='at most 200 classes'):
    measures.make('confusion', CLASSES, 201, None)


def test_the_same_metric_is_one_object():
  """Or each evaluation would compile its program again."""
  assert measures.make('f1', CLASSES, C, None) is measures.make(
    'f1', CLASSES, C, None
  )
  assert metrics.finished(
    measures.make('nll', CLASSES, C, None), [[6.0, 3.0], [0.0, 0.0]]
  ).tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
  assert measures.parse(' f1, auc,f1,') == ['f1', 'auc']
