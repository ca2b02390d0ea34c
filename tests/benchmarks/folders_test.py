"""Data and checkpoints that benchmarks make for themselves."""

import datasets
import numpy as np
import pytest

from benchmarks import shifted_digits, small_clip
from fedms_jax.shell import main


def test_every_client_sees_digits_in_its_own_way(tmp_path):
  assert shifted_digits.main([f'--out={tmp_path}', '--clients=16']) == 0
  image = np.arange(6, dtype=np.uint8).reshape(2, 3)
  ways = [shifted_digits.seen(image, k).tobytes() for k in range(16)]
  assert len(set(ways)) == 8 and ways[:8] == ways[8:]
  table = datasets.Dataset.from_parquet(str(tmp_path / 'train.parquet'))
  owners, counts = np.unique(table['client'], return_counts=True)
  assert len(owners) == 16 and np.ptp(counts) <= 1
  # What is inverted is bright where digits are dark: at the edge.
  edges: dict[bool, list[float]] = {False: [], True: []}
  for row in table.select(range(200)):
    dark = int(row['client'].split()[1]) // 4 % 2 == 0
    edges[dark].append(np.asarray(row['image'])[:, 0].mean())
  assert np.mean(edges[True]) < 40 and np.mean(edges[False]) > 215


@pytest.mark.slow
def test_a_small_clip_is_trained_and_serves_methods_of_prompts(tmp_path):
  assert small_clip.main([f'--out={tmp_path}', '--quick']) == 0
  words = [
    'fedms', f'--model.name={tmp_path / "model"}', '--model.head=zero_shot',
    f'--data.source={tmp_path / "data"}', '--data.public_fraction=0',
    '--algorithm.name=pfedprompt', '--prompt.length=2',
    '--partition.num_clients=3', '--partition.unseen_clients=0',
    '--cohort.size=2', '--algorithm.stage1_rounds=1',
    '--algorithm.stage2_rounds=0', f'--workdir={tmp_path / "served"}',
  ]  # fmt: skip
  assert main.main(words) == 0
