"""Who reports in a step, where each waits for the whole cohort."""

import numpy as np
import pytest

from fedms_jax.systems import arrivals


def test_a_synchronous_cohort_began_with_the_model_of_its_step():
  plain = arrivals.synchronous(lambda step: np.array([step, step + 4]))
  state, reports = plain.next(plain.init, 3, None)
  assert state is None
  assert reports.ids.tolist() == [3, 7]
  assert reports.versions.tolist() == [3, 3]
  assert reports.lost.tolist() == [False, False]


def test_of_a_synchronous_cohort_some_are_lost_by_step_and_number():
  some = arrivals.synchronous(
    lambda step: np.array([1, 2, 5]), lambda step, ids: ids == step
  )
  lost = [some.next(None, step, None)[1].lost.tolist() for step in (2, 3, 5)]
  assert lost == [[False, True, False], [False] * 3, [False, False, True]]


@pytest.mark.parametrize(
  'versions,late,fine',
  [
    ([4, 4], 0, True),
    ([3, 4], 0, False),
    ([3, 4], 1, True),
    ([2, 4], 1, False),
    ([0, 4], -1, True),
    ([4, 5], -1, False),
  ],
)
def test_reports_of_models_that_nobody_has_are_refused(versions, late, fine):
  """Those of lost clients, which are not trained, may be of any age."""
  ids, lost = np.arange(2), np.zeros(2, bool)
  reports = arrivals.Reports(ids, np.array(versions), lost)
  arrivals.check_reports(reports._replace(lost=~lost), 4, late)
  if fine:
    return arrivals.check_reports(reports, 4, late)
  with pytest.raises(ValueError, match='reports of step 4 began with'):
    arrivals.check_reports(reports, 4, late)
