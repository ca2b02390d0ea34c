"""What the tests on a real SLURM share."""

import re

import pytest

from tests.slurm.cluster import Cluster, problem

NEEDS_SLURM = [pytest.mark.skipif(bool(problem()), reason=problem())]


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  with Cluster(tmp_path_factory.mktemp('slurm') / 'c') as running:
    yield running


def submitted(text):
  """The number of a job, from what a launcher says."""
  return re.search(r'submitted job (?:array )?(\d+)', text)[1]
