"""Language models in reports: perplexities beside the accuracy of tokens."""

import json
import math

from fedms_jax.persistence import files
from fedms_jax.report import markdown, printed, runs
from fedms_jax.shell.commands import report
from tests.report import finished

ROWS = {'a': (0.7, 1000.0, {}), 'b': (0.6, 1000.0, {})}


def language(root, losses):
  """Makes the runs of a comparison those of a language model. losses: of the
  served model, by label."""
  labels = json.loads((root / 'sweep.json').read_text())['benchmark']['labels']
  for folder, label in labels.items():
    path = root / folder / 'summary.json'
    told = json.loads(path.read_text())
    seed = int(folder.partition('seed=')[2])
    told['perplexity'] = True
    for model in told['models'].values():
      model |= {k: x and x + seed for k, x in losses[label].items()}
    files.write_atomic(path, json.dumps(told))
  return root


def test_a_row_has_the_perplexity_of_its_mean_loss(tmp_path):
  root = finished.comparison(tmp_path, (0, 1), ROWS)
  a = {'own_loss': 1.0, 'pooled_loss': 2.0, 'mixed_loss': 1.5}
  language(root, {'a': a, 'b': {k: 2 * x for k, x in a.items()}})
  lines = markdown.comparison(runs.comparison(root)).splitlines()
  head = [cell.strip() for cell in lines[0].split('|')]
  for title, loss in zip(
    ('own perplexity', 'pooled perplexity', 'mixed perplexity'),
    a.values(),
    strict=True,
  ):
    told = [line.split('|')[head.index(title)].strip() for line in lines[2:]]
    assert told == [f'{math.exp(m * loss + 0.5):.4g}' for m in (1, 2)]
    assert title in report.text(root)


def test_what_no_run_has_is_no_column(tmp_path):
  plain = finished.comparison(tmp_path / 'plain', (0,), ROWS)
  assert 'perplexity' not in markdown.comparison(runs.comparison(plain))
  root = finished.comparison(tmp_path / 'language', (0,), ROWS)
  some = {'own_loss': 1.0, 'pooled_loss': None}
  language(root, {'a': some | {'mixed_loss': 1.0}, 'b': some})
  table = markdown.comparison(runs.comparison(root))
  assert 'own perplexity' in table and 'mixed perplexity' not in table
  assert '| - |' in table  # nobody's pooled loss


def test_a_run_tells_the_perplexity_of_a_mixed_stream(tmp_path):
  root = finished.comparison(tmp_path, (0,), ROWS)
  language(root, {x: {'mixed_loss': 1.5} for x in ROWS})
  run = next(iter(runs.comparison(root).rows)).runs[0]
  assert f'{math.exp(1.5):.4g}' in '\n'.join(printed.scores(run.summary))
  assert 'mixed perplexity' in report.text(run.root)
