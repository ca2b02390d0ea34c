"""A benchmark runs what is missing, fairly, and survives being killed."""

import json
import pathlib

import pandas
import pytest

from benchmarks import contest, search_and_seeds, tuning
from benchmarks.contest import Axis, Entry, Job
from benchmarks.tuning import Tried
from fedms_jax.launch import sweep
from fedms_jax.report import runs, statistics
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import flags
from tests.report import finished

ENTRIES = [
  Entry('a', {'schedule.name': 'dense'}, 'all'),
  Entry('b', {'schedule.name': 'linear'}),
]
# Bytes of a round, by schedule.
ROUND = {'dense': 100.0, 'linear': 30.0, 'fixed': 0.0}


class Killed(BaseException):
  """As SIGKILL: nothing after it is run."""


class Stub:
  """Stands for the simulator. The accuracy is best at a learning rate of
  1e-3, then at a server's of 0.03, and what it says on validation rows is not
  what is true on test rows.

  ends: what happens at the nth run, by n.
  """

  def __init__(self, ends=None):
    self.done, self._ends = [], ends or {}

  def __call__(self, config, log):
    log.write_text('...')
    end = self._ends.get(len(self.done))
    folder = pathlib.Path(config.workdir)
    self.done.append(folder.name)
    (folder / 'flags.txt').write_text(flags.to_text(config))
    if isinstance(end, BaseException):
      raise end
    if end:
      return end
    a = config.algorithm
    rounds = a.stage1_rounds + a.stage2_rounds
    good = config.client.learning_rate == 1e-3
    finished.run(
      folder,
      0.7 if good else 0.8,
      rounds * ROUND[config.schedule.name],
      config.seed,
      config_lib.values(config),
    )
    records = runs.read(folder).records
    score = 0.5 + 0.2 * good + 0.1 * (config.server.learning_rate == 0.03)
    lines = [json.dumps(r | {'score': score}) for r in records]
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    return 0


def play(root, *words, stub=None, entries=ENTRIES, base=()):
  """Runs a benchmark: (exit code, the stub)."""
  parser = search_and_seeds.parser('test', 'A test.')
  options = parser.parse_args([f'--out={root}', *words])
  stub = stub or Stub()
  return search_and_seeds.run(options, base, entries, 'A test', stub), stub


def test_a_finished_benchmark_has_table_page_and_sweep(tmp_path, capsys):
  code, stub = play(tmp_path, '--seeds=0..2', '--reference=a')
  assert (code, len(stub.done)) == (0, 6)
  found = pandas.read_csv(tmp_path / 'results.csv')
  assert list(found['row']) == ['a', 'b'] * 3
  assert list(found['seed']) == [0, 0, 1, 1, 2, 2]
  assert set(found['schedule.name']) == {'dense', 'linear'}
  parquet = pandas.read_parquet(tmp_path / 'results.parquet')
  assert list(parquet['served.own_mean']) == pytest.approx(
    list(found['served.own_mean'])
  )
  assert (tmp_path / 'table.md').read_text().count('\n') == 2 + 2
  page = (tmp_path / 'report.html').read_text()
  assert 'A test' in page and 'a (all)' in page
  assert sweep.main([f'--collect={tmp_path}']) == 0
  table = pandas.read_csv(tmp_path / 'table.csv')
  assert list(table['mixture.own_mean']) == list(found['mixture.own_mean'])
  assert 'left: about' in capsys.readouterr().out


def results(root):
  """The table, without the folders of the runs."""
  return pandas.read_csv(root / 'results.csv').drop(columns='workdir')


@pytest.mark.parametrize('when', range(6))
def test_a_killed_benchmark_goes_on_where_it_was(tmp_path, when):
  words = '--seeds=0..1', '--search=1e-3,1e-2'
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  _, stub = play(whole, *words)
  everything = stub.done
  assert len(everything) == 8
  with pytest.raises(Killed):
    play(killed, *words, stub=Stub({when: Killed()}))
  code, rest = play(killed, *words)
  assert code == 0
  assert rest.done == everything[when:]
  assert results(killed).equals(results(whole))
  assert play(killed, *words)[1].done == []


def test_a_signal_saves_what_there_is(tmp_path, capsys):
  code, stub = play(tmp_path, '--seeds=0..1', stub=Stub({3: 75}))
  assert (code, len(stub.done)) == (75, 4)
  assert list(results(tmp_path)['row']) == ['a', 'b', 'a']
  assert 'goes on' in capsys.readouterr().out
  assert play(tmp_path, '--seeds=0..1')[1].done == ['b,seed=1']


def test_what_cannot_be_run_is_told_and_the_rest_goes_on(tmp_path):
  ends = {0: ValueError('needs two towers'), 1: RuntimeError('broken')}
  entries = [*ENTRIES, Entry('c', {'schedule.name': 'fixed'})]
  code, stub = play(tmp_path, '--seeds=0..2', stub=Stub(ends), entries=entries)
  assert code == 1
  assert len(stub.done) == 5  # no further seed of what did not run
  assert set(results(tmp_path)['row']) == {'c'}
  page = (tmp_path / 'report.html').read_text()
  assert 'needs two towers' in page
  assert 'crashed: RuntimeError: broken' in page
  log = tmp_path / 'runs' / 'b,seed=0' / 'log.txt'
  assert 'Traceback' in log.read_text()


def test_another_benchmark_s_folder_is_refused(tmp_path):
  play(tmp_path, '--seeds=0')
  for words, base, name in (
    (['--seeds=0', '--search=1e-3'], [], 'search'),
    (['--seeds=0'], ['--lora.rank=2'], 'flags'),
  ):
    with pytest.raises(ValueError, match=f'other {name}'):
      play(tmp_path, *words, base=base)


def test_more_seeds_and_rows_are_added(tmp_path):
  play(tmp_path, '--seeds=0', entries=ENTRIES[:1])
  _, stub = play(tmp_path, '--seeds=0..1')
  assert stub.done == ['b,seed=0', 'a,seed=1', 'b,seed=1']
  play(tmp_path / 'searched', '--seeds=0', '--search=1e-3')
  _, stub = play(tmp_path / 'searched', '--seeds=0..1', '--search=1e-3')
  assert stub.done == ['a,seed=1', 'b,seed=1']
  with pytest.raises(ValueError, match='other search_seed'):
    play(tmp_path / 'searched', '--seeds=1', '--search=1e-3')


def test_the_rate_is_chosen_by_validation_on_the_first_seed(tmp_path):
  words = '--seeds=3,4', '--search=1e-2,1e-3,3e-2', '--search_share=0.5'
  _, stub = play(tmp_path, *words)
  rates = '1e-2', '1e-3', '3e-2'
  tried = [f'{label},rate={rate}' for label in 'ab' for rate in rates]
  assert [n for n in stub.done if 'rate' in n] == tried
  short = runs.read(tmp_path / 'search' / 'a,rate=1e-2').flags
  assert (short['seed'], short['algorithm.stage1_rounds']) == ('3', '20')
  for seed in (3, 4):
    found = runs.read(tmp_path / 'runs' / f'b,seed={seed}').flags
    assert found['client.learning_rate'] == '0.001'
    ratio = float(found['client.personal_learning_rate']) / 1e-2
    assert ratio == pytest.approx(1e-3 / 3e-3, rel=1e-4)
    assert found['algorithm.stage1_rounds'] == '40'
  assert 'Learning rates' in (tmp_path / 'report.html').read_text()


def test_a_search_may_have_a_seed_of_its_own(tmp_path):
  words = '--seeds=3,4', '--search=1e-2,1e-3', '--search_seed=9'
  play(tmp_path, *words)
  assert runs.read(tmp_path / 'search' / 'a,rate=1e-3').seed == 9
  assert [run.seed for run in runs.comparison(tmp_path).rows[0].runs] == [3, 4]
  assert 'tried on seed 9' in (tmp_path / 'report.html').read_text()
  # Seeds of the report may then be others.
  _, stub = play(tmp_path, '--seeds=5', *words[1:])
  assert stub.done == ['a,seed=5', 'b,seed=5']
  with pytest.raises(ValueError, match='search_seed=1,2 are 2'):
    play(tmp_path, '--seeds=3', '--search=1', '--search_seed=1,2')


SERVED = Entry(
  'c',
  {'schedule.name': 'dense', 'server.learning_rate': '1e-2'},
  axis=Axis('server.learning_rate', ('3e-3', '1e-2', '3e-2')),
)


def test_an_axis_of_a_row_is_searched_at_its_best_rate(tmp_path):
  words = '--seeds=3,4', '--search=1e-2,1e-3', '--reference=a'
  entries = [*ENTRIES, SERVED]
  _, stub = play(tmp_path, *words, entries=entries)
  tried = [name for name in stub.done if name.startswith('c,rate')]
  at = 'c,rate=1e-3,server.learning_rate='
  # The row's own value has been tried with the rates.
  assert tried == ['c,rate=1e-2', 'c,rate=1e-3', f'{at}3e-3', f'{at}3e-2']
  short = runs.read(tmp_path / 'search' / f'{at}3e-2').flags
  assert (short['seed'], short['algorithm.stage1_rounds']) == ('3', '12')
  for label, rate in (('a', '1.0'), ('c', '0.03')):
    for seed in (3, 4):
      found = runs.read(tmp_path / 'runs' / f'{label},seed={seed}').flags
      assert found['client.learning_rate'] == '0.001'
      assert found['server.learning_rate'] == rate
  page = (tmp_path / 'report.html').read_text()
  assert 'server.learning_rate of c (3e-3, 1e-2, 3e-2)' in page
  assert 'c: server.learning_rate' in page
  assert play(tmp_path, *words, entries=entries)[1].done == []


def test_without_a_search_a_row_keeps_its_own_value(tmp_path):
  _, stub = play(tmp_path, '--seeds=0', entries=[SERVED])
  assert stub.done == ['c,seed=0']
  found = runs.read(tmp_path / 'runs' / 'c,seed=0').flags
  assert found['server.learning_rate'] == '0.01'
  assert (
    'server.learning_rate of c' not in (tmp_path / 'report.html').read_text()
  )


def test_a_rate_that_diverges_loses_and_is_no_failure(tmp_path):
  stub = Stub({1: ValueError('non-finite')})
  code, _ = play(tmp_path, '--seeds=0', '--search=1e-2,1e-3', stub=stub)
  assert code == 0
  found = {label: runs.read(tmp_path / 'runs' / f'{label},seed=0')
           for label in 'ab'}  # fmt: skip
  assert found['a'].flags['client.learning_rate'] == '0.01'
  assert found['b'].flags['client.learning_rate'] == '0.001'
  assert 'non-finite' not in (tmp_path / 'report.html').read_text()


@pytest.mark.parametrize(
  ('words', 'search', 'seeds'),
  [
    ([], ['1e-3', '1e-2'], 3),
    (['--quick'], [], 2),
    (['--search='], [], 3),
    (['--quick', '--search=1', '--seeds=4'], ['1'], 1),
  ],
)
def test_a_benchmark_may_propose_a_search(words, search, seeds):
  parser = search_and_seeds.parser('test', 'A test.', '1e-3, 1e-2')
  found = search_and_seeds.rules(parser.parse_args(words))
  assert (found.search, len(found.seeds)) == (search, seeds)


def test_the_best_has_the_highest_score_then_the_least_loss_then_a_low_rate():
  tried = {
    '3e-3': Tried(0.5, 1.0),
    '1e-2': Tried(0.5, 1.2),
    '1e-3': Tried(0.5, 1.0),
    '3e-2': Tried(0.4, 0.1),
    '1e-1': None,
  }
  assert tuning.best(tried) == '1e-3'
  assert tuning.best(tried | {'1e-2': Tried(0.5, 0.9)}) == '1e-2'
  assert tuning.best(tried | {'3e-2': Tried(0.51, 9.0)}) == '3e-2'
  assert tuning.best({'1e-2': None}) is None
  assert tuning.scores(tried)['1e-1'] is None


def test_a_try_without_a_loss_is_refused_by_name(tmp_path):
  finished.run(tmp_path)
  run = runs.read(tmp_path)
  old = [{k: x for k, x in r.items() if k != tuning.LOSS} for r in run.records]
  with pytest.raises(ValueError, match='earlier version'):
    tuning.validation(run._replace(records=old))


def test_of_language_models_the_loss_counts():
  tried = {'1e-3': Tried(0.5, 2.0, True), '1e-2': Tried(0.4, 1.9, True)}
  assert tuning.best(tried) == '1e-2'


@pytest.mark.parametrize('perplexity, rate', [(False, '1e-3'), (True, '1e-2')])
def test_what_was_tried_is_of_the_last_quarter_of_a_run(
  tmp_path, perplexity, rate
):
  tried = {}
  for value, score, loss in (('1e-3', 0.6, 2.0), ('1e-2', 0.5, 1.0)):
    folder = tmp_path / value
    finished.run(folder)
    run = runs.read(folder)
    last = [
      r | {'stage': 'last', 'score': score * (i >= 4), 'validation_loss': loss}
      for i, r in enumerate(run.records)
    ]
    summary = run.summary | {'perplexity': perplexity}
    tried[value] = tuning.validation(
      run._replace(records=last, summary=summary)
    )
  assert tried['1e-3'] == Tried(0.6, 2.0, perplexity)
  assert tuning.best(tried) == rate


def test_equal_bytes_are_reached_by_more_rounds(tmp_path):
  entries = [*ENTRIES, Entry('c', {'schedule.name': 'fixed'})]
  words = '--seeds=0..1', '--budget=bytes', '--reference=a'
  code, _ = play(tmp_path, *words, entries=entries)
  assert code == 0
  found = results(tmp_path).groupby('row')['bytes'].mean()
  assert found['b'] == pytest.approx(found['a'], rel=tuning.CLOSE)
  assert found['c'] == 0  # nothing to match
  rows = {row.label: row for row in runs.comparison(tmp_path).rows}
  assert [len(row.runs) for row in rows.values()] == [2, 2, 2]
  rounds = {run.flags['algorithm.stage1_rounds'] for run in rows['b'].runs}
  assert rounds == {'133'}
  assert statistics.volume(rows['b'].runs[1]) == pytest.approx(10_000, rel=0.05)


def test_equal_flops_are_found_from_what_the_search_has_spent(tmp_path):
  words = '--seeds=0..1', '--search=1e-3,1e-2', '--reference=a'
  code, stub = play(tmp_path, *words, '--budget=flops', '--most=3')
  assert code == 0
  # Rounds are known before the first run, so that there is one a seed.
  assert [n for n in stub.done if 'rate' not in n] == [
    'a,seed=0', 'b,seed=0,x3.000', 'a,seed=1', 'b,seed=1,x3.000'
  ]  # fmt: skip
  rows = {row.label: row for row in runs.comparison(tmp_path).rows}
  spent = {
    label: [run.summary['total']['client_flops'] for run in row.runs]
    for label, row in rows.items()
  }
  assert spent['b'] == pytest.approx([0.9 * x for x in spent['a']])
  assert '3 times those of' in (tmp_path / 'report.html').read_text()
  _, stub = play(tmp_path / 'more', *words, '--budget=flops')
  assert 'b,seed=0,x3.333' in stub.done


def test_a_search_is_shared_by_two_benchmarks(tmp_path):
  words = '--seeds=0', '--search=1e-3,1e-2', '--reference=a'
  first, second = tmp_path / 'first', tmp_path / 'second'
  play(first, *words, entries=ENTRIES[:1])
  shared = '--budget=bytes', f'--searched={first}'
  _, stub = play(second, *words, *shared)
  tried = [name for name in stub.done if 'rate' in name]
  assert tried == ['b,rate=1e-3', 'b,rate=1e-2']
  assert (first / 'search' / 'b,rate=1e-2').exists()
  assert not (second / 'search').exists()
  found = runs.read(second / 'runs' / 'a,seed=0').flags
  assert found['client.learning_rate'] == '0.001'
  assert set(runs.comparison(second).search) == {'a', 'b'}
  other = '--seeds=0', '--search=1e-4', '--reference=a', *shared
  with pytest.raises(ValueError, match='other search'):
    play(tmp_path / 'third', *other)
  with pytest.raises(ValueError, match='holds no benchmark'):
    play(tmp_path / 'third', *words, f'--searched={tmp_path}/none')


def test_what_a_search_has_spent_is_told(tmp_path):
  play(tmp_path, '--seeds=0', '--search=1e-3,1e-2', '--search_share=0.5')
  record = json.loads((tmp_path / 'sweep.json').read_text())
  costs = record['benchmark']['search_costs']
  assert costs['a'] == {'bytes': 2 * 2 * 25 * 100.0, 'flops': 5e5,
                        'seconds': 50.0}  # fmt: skip
  assert runs.comparison(tmp_path).search_costs == costs


def test_a_row_without_rates_is_searched_along_its_axis_alone(tmp_path):
  once = Entry('d', ENTRIES[0].flags, alone=True, once=True)
  alone = SERVED._replace(label='e', alone=True)
  words = '--seeds=0', '--search=1e-2,1e-3', '--budget=bytes', '--reference=a'
  _, stub = play(tmp_path, *words, entries=[*ENTRIES[:1], once, alone])
  tried = [n for n in stub.done if n[0] in 'de' and 'seed' not in n]
  axis = 'e,server.learning_rate='
  assert tried == [f'{axis}3e-3', f'{axis}1e-2', f'{axis}3e-2']
  found = runs.read(tmp_path / 'runs' / 'e,seed=0').flags
  assert found['server.learning_rate'] == '0.03'
  assert found['client.learning_rate'] == '0.003'  # the default
  page = (tmp_path / 'report.html').read_text()
  assert 'In place of these rates' in page


def test_what_is_asked_once_is_not_stretched(tmp_path):
  once = Entry('b', ENTRIES[1].flags, once=True)
  words = '--seeds=0', '--search=1e-3', '--budget=bytes', '--reference=a'
  _, stub = play(tmp_path, *words, entries=[ENTRIES[0], once])
  assert stub.done[-1] == 'b,seed=0'
  rounds = {
    runs.read(tmp_path / name).flags['algorithm.stage1_rounds']
    for name in ('search/b,rate=1e-3', 'runs/b,seed=0')
  }
  assert rounds == {'40'}


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--most=1'], 'most=1'),
    (['--budget=flops', '--reference='], 'budget=flops needs --reference'),
    (['--search=1e-3,x'], "'x', which is no learning rate"),
    (['--search=0'], 'no learning rate'),
    (['--search_share=0'], 'search_share=0'),
    (['--seeds=3..1'], 'the range 3..1 is empty'),
    (['--reference=z'], 'rows: a, b'),
    (['--budget=bytes'], 'needs --reference'),
  ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, words, message):
  stub = Stub()
  with pytest.raises(ValueError, match=message):
    play(tmp_path / 'new', *words, stub=stub)
  with pytest.raises(ValueError, match='lora.rnk'):
    play(tmp_path / 'new', base=['--lora.rnk=1'], stub=stub)
  assert not stub.done and not (tmp_path / 'new').exists()


def test_the_estimate_learns_from_each_row():
  ledger = contest.Ledger()
  slow, quick = Job('slow', '', {}), Job('quick', '', {}, weight=0.5)
  assert ledger.left([slow]) is None
  ledger.note(slow, 60.0)
  assert ledger.left([slow, quick]) == 90.0  # unknown ones are like the known
  ledger.note(quick, 5.0)
  assert ledger.left([slow, quick, quick]) == 70.0
  assert ledger.left([]) is None
