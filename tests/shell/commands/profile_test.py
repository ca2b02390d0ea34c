"""`fedms profile`, on the embedded data."""

import gzip
import json
import re

import pytest

from fedms_jax.shell import main
from fedms_jax.simulation import timeline

SMALL = (
  '--data.source=synthetic', '--data.synthetic_rows=600',
  '--partition.num_clients=6', '--cohort.size=3', '--model.blocks=2',
  '--model.width=8', '--model.heads=2', '--pretrain.epochs=0',
  '--schedule=dense', '--client.steps=2', '--noprogress',
  '--eval.validation_rows=4', '--rounds=2', '--warmup=1',
)  # fmt: skip


@pytest.mark.slow
def test_a_profile_says_where_the_time_went_and_leaves_a_trace(
  tmp_path, capsys
):
  args = [*SMALL, f'--workdir={tmp_path}', '--columns.scope=round']
  assert main.main(['fedms', 'profile', *args]) == 0
  text = capsys.readouterr().out
  for stage in ('global', 'personal'):
    part = text.split(f'{stage} stage: 2 rounds at depth 2\n')[1]
    rows = dict(
      re.findall(r'^(\w+) +([\d.]+) +[\d.]+%$', part.split('\n\n')[0], re.M)
    )
    assert list(rows) == [*timeline.NAMES, 'other', 'round']
    spent = {name: float(ms) for name, ms in rows.items()}
    total = spent.pop('round')
    assert sum(spent.values()) == pytest.approx(total, abs=0.1)
    assert all(ms >= 0 for ms in spent.values())
    measured = set(timeline.NAMES) - {'sample'}
    assert all(spent[name] > 0 for name in measured)
    (trace,) = tmp_path.glob(f'profile/{stage}/**/perfetto_trace.json.gz')
    events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
    names = {event.get('name') for event in events}
    assert measured | {'round'} <= names
    assert list(tmp_path.glob(f'profile/{stage}/**/*.xplane.pb'))
  # The run itself leaves nothing.
  assert [p.name for p in tmp_path.iterdir()] == ['profile']
  assert {p.name for p in (tmp_path / 'profile').iterdir()} == {
    'global', 'personal'
  }  # fmt: skip


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ((), '--out=<folder>'),
    (
      ('--out={}', '--rounds=0'),
      '--rounds=0 is not allowed; allowed: at least',
    ),
    (('--out={}/file/x',), 'cannot be made'),
  ],
)
def test_mistakes_are_told_before_any_work(flags, message, tmp_path, capsys):
  (tmp_path / 'file').touch()
  flags = [flag.format(tmp_path) for flag in flags]
  assert main.main(['fedms', 'profile', *flags]) == 2
  assert message in capsys.readouterr().err
