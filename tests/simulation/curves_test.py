"""Curves, metrics and early ends, on the run of `tests/diary.py`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core.metrics import Metric
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.persistence.writers import MetricsFile, read_metrics, timeless
from fedms_jax.simulation import evaluation, observer
from fedms_jax.simulation.state import Curve, Preempted
from fedms_jax.simulation.stopping import Stop
from tests import diary, world
from tests.diary import ROUNDS, ROWS, labels, run, simulation, stages


def _spread_sums(logits, batch):
  real = batch['mask'].astype(jnp.float32)
  x = jnp.asarray(logits, jnp.float32)
  return jnp.stack([jnp.sum(real), jnp.sum(x * real), jnp.sum(x * x * real)])


def _spread(sums):
  count, total, square = sums
  return (
    np.sqrt(max(square / count - (total / count) ** 2, 0)) if count else np.nan
  )


# What no mean of one number a row can say.
SPREAD = Metric('spread', _spread_sums, _spread, (3,), lower=True)
CURVE = Curve(every=2, clients=4)


def measured():
  return run(curve=CURVE, metrics=(SPREAD,))


def eval_keys(record):
  return {key for key in record if key.startswith('eval_')}


def test_looking_changes_no_number_of_the_training():
  """Neither of models and clients' states, nor of what is counted: rows that
  were derived to look at them are counted when the training needs them."""
  small = {'block': 8}  # or the first round would need them all
  plain = run(**small)
  found = run(curve=CURVE, metrics=(SPREAD,), **small)
  world.same(found[1].roles, plain[1].roles)
  world.same(found[3], plain[3])
  assert found[0].ledgers == plain[0].ledgers
  for one, other in zip(found[2], plain[2], strict=True):
    kept = {k: v for k, v in one.items() if k not in eval_keys(one)}
    assert set(kept) == set(other)
    for name, value in timeless(other).items():
      np.testing.assert_equal(kept[name], value, err_msg=name)


def test_models_are_looked_at_every_so_many_rounds_and_at_the_end():
  _, _, records, _ = measured()
  seen = [bool(eval_keys(record)) for record in records]
  assert seen == [t % 2 == 1 or t == ROUNDS - 1 for t in range(ROUNDS)] * 2


def test_the_last_look_is_the_evaluation_of_the_same_clients():
  made, state, records, _ = measured()
  scope = evaluation.Scope(clients=4, metrics=(SPREAD,))
  found = evaluation.evaluate(made, state, scope)
  last, served = records[-1], found['models']['it']
  assert last['eval_own'] == pytest.approx(served['own_mean'])
  assert last['eval_own_loss'] == pytest.approx(served['own_loss'])
  assert last['eval_pooled'] == pytest.approx(served['pooled'])
  assert last['eval_unseen'] == pytest.approx(served['unseen'])
  told = found['metrics']['spread']['it']
  assert last['eval_own_spread'] == pytest.approx(told['own_mean'])
  assert last['eval_pooled_spread'] == pytest.approx(told['pooled'])
  assert last['eval_unseen_spread'] == pytest.approx(told['unseen'])


def test_a_mixed_stream_is_looked_at_as_it_is_evaluated():
  curve = CURVE._replace(mixed=0.3, readers=3)
  made, state, records, _ = run(curve=curve)
  scope = evaluation.Scope(clients=4, readers=3, mixed=0.3)
  found = evaluation.evaluate(made, state, scope)['models']['it']
  assert records[-1]['eval_mixed'] == pytest.approx(found['mixed'])
  # Of fewer clients than have own rows, as these are other numbers.
  apart = 0.7 * found['own_mean'] + 0.3 * found['pooled']
  assert abs(found['mixed'] - apart) > 1e-4
  seen = ['eval_mixed' in record for record in records]
  assert seen == ['eval_own' in record for record in records]
  assert 'eval_mixed' not in measured()[2][-1]


def test_a_metric_is_of_each_client_and_of_all_rows_together():
  made, state, *_ = measured()
  scope = evaluation.Scope(metrics=(SPREAD,), readers=3)
  found = evaluation.evaluate(made, state, scope)
  took = made.store(state).gather(np.arange(len(ROWS)))['took']
  level = 100 * took + float(state.roles.shared['told'][0])
  data = made.federation
  own = [x + labels(data.test.of(k)) for k, x in enumerate(level)]
  each = [float(np.std(rows)) for rows in own]
  np.testing.assert_allclose(
    found['per_client']['spread/it'], each, atol=2e-2, rtol=1e-3
  )
  told = found['metrics']['spread']['it']
  assert told['own_mean'] == pytest.approx(np.mean(each), abs=2e-2)
  assert told['own'] == pytest.approx(np.std(np.concatenate(own)), rel=1e-4)
  # Each reader's model alone on the pooled rows, then the mean over three.
  pooled = np.std(labels(data.pooled))
  assert told['pooled'] == pytest.approx(pooled, abs=2e-2)
  columns = evaluation.table(made, found)
  assert columns['client'].tolist() == list(range(len(ROWS)))
  assert columns['train_rows'].tolist() == ROWS.tolist()
  assert {'it', 'other', 'label', 'spread/it', 'spread/other'} < set(columns)


def test_a_schedule_may_watch_any_metric():
  """Of the rows of all newest reports together."""
  _, _, records, _ = run(score=SPREAD)
  data, reports, wanted = diary.federation(), {}, []
  told = [np.zeros(diary.TOLD)] + [kept[3] for kept in run()[3][:ROUNDS]]
  took = np.zeros(len(ROWS))
  for t in range(ROUNDS):
    ids, lost = diary.who(2 + t)
    for k in ids[~lost].tolist():
      took[k] += 1
      reports.pop(k, None)
      level = 100 * took[k] + told[t + 1][0]
      reports[k] = level + labels(data.validation.of(k))
    reports = dict(list(reports.items())[-4:])
    wanted.append(np.std(np.concatenate(list(reports.values()))))
  found = [record['capability'] for record in records[:ROUNDS]]
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-2)


def silently(reads, **options):
  """The run of a schedule that reads scores, or none."""
  return run.__wrapped__(stages=silent(reads), validate_every=3, **options)


def silent(reads):
  """Stages whose schedule reads scores, or none."""
  out = []
  for stage in stages():
    inner = stage.schedule(None)._replace(
      reads=reads, observe=lambda state, t, score: [*state, [t, score]]
    )
    out.append(stage._replace(schedule=lambda _, s=inner: s))
  return out


def test_nobody_validates_what_nobody_reads():
  """But every so many rounds, and in the last one of a stage; numbers of the
  training are the same."""
  _, state, records, rounds = silently(False)
  there = ['score' in record for record in records]
  assert there == [False, False, True, False, True] * 2
  assert ['capability' in record for record in records] == there
  assert [t for t, _ in state.progress] == [4]  # nobody came in round 2
  world.same(rounds, run()[3])
  every = silently(True)[2]
  assert all('score' in record for record in every)
  stop = Stop('capability', target=1e9)
  watched = silently(False, stop=stop)[2]
  assert all('score' in record for record in watched)
  losses = silently(True, score='train_loss')[2]
  assert ['score' in record for record in losses] == there
  assert all('capability' in record for record in losses)


# What all clients have after two rounds of a stage.
STOP = Stop('eval_own', target=1.0)


def test_a_stage_that_has_reached_its_target_hands_over():
  """One round later; the next one is whole, and begins anew."""
  plain, ends = measured()[2], []
  for stage in range(2):
    part = plain[stage * ROUNDS : (stage + 1) * ROUNDS]
    hits = [r['round'] for r in part if r.get('eval_own', 0) >= STOP.target]
    ends.append(min(hits[0] + 2, ROUNDS) if hits else ROUNDS)
  assert ends[0] < ROUNDS
  made, state, records, _ = run(curve=CURVE, metrics=(SPREAD,), stop=STOP)
  counts = [
    sum(r['stage'] == name for r in records) for name in ('first', 'second')
  ]
  assert counts == ends and state.done == (ends[0],)
  assert state.round == ends[1]
  # It is looked at when it ends, too.
  assert 'eval_own' in records[ends[0] - 1]
  for one, other in zip(records[: ends[0]], plain, strict=False):
    assert one['train_loss'] == pytest.approx(other['train_loss'], nan_ok=True)
  assert set(made.ledgers) == {'first', 'second'}


class Often(observer.Silent):
  def stop_requested(self):
    return True


def attempt(folder, watch):
  """One start of a run on the disk, with its file of metrics."""
  names = ['first', 'second']
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      watchers = observer.Observers(watch)
      made = simulation(
        keep, watchers, curve=CURVE, metrics=(SPREAD,), stop=STOP
      )
      state = keep.restore(made)
      at = None if state is None else (state.stage, state.round - 1)
      rounds = [] if state is None else state.done
      file = MetricsFile(workdir.metrics, at, rounds)
      keep.before_saving(file.sync)
      watchers.add(observer.Writers(file, [], names))
      try:
        state = made.run(state)
        keep.wait()
        return state, made.ledgers
      except Preempted:
        keep.wait()
        return None
      finally:
        file.close()
    finally:
      keep.close()


def test_a_run_that_ends_early_is_resumed_bitwise(tmp_path):
  """Stopped and gone on with after each round: the same ends, lines and
  numbers."""
  whole = attempt(tmp_path / 'whole', observer.Silent())
  found, starts = None, 0
  while found is None:
    found = attempt(tmp_path / 'parts', Often())
    starts += 1
  lines = [
    [timeless(line) for line in read_metrics(tmp_path / name / 'metrics.jsonl')]
    for name in ('whole', 'parts')
  ]
  assert json.dumps(lines[0]) == json.dumps(lines[1])
  assert starts == len(lines[0]) < 2 * ROUNDS
  state, wanted = found[0], whole[0]
  world.same(state.roles, wanted.roles)
  for name in ('watch', 'done', 'round', 'stage', 'reports', 'progress'):
    assert getattr(state, name) == getattr(wanted, name), name
  assert found[1] == whole[1]


def test_very_many_clients_are_not_listed_but_kept(monkeypatch):
  made, state, *_ = run()
  plain = evaluation.evaluate(made, state, evaluation.Scope())
  monkeypatch.setattr(evaluation, 'MOST_LISTED', 3)
  found = evaluation.evaluate(made, state, evaluation.Scope())
  assert isinstance(found['client_ids'], np.ndarray)
  np.testing.assert_allclose(
    found['per_client']['it'], plain['per_client']['it']
  )
