import numpy as np, collections, os
from tests.models import references, parity_test, clip_test

D = collections.defaultdict(float)


def close(ours, theirs, mask=None):
  d = np.abs(np.asarray(ours, np.float32) - theirs.detach().numpy())
  if mask is not None:
    d = d[np.asarray(mask)]
  n = os.environ['PYTEST_CURRENT_TEST'].split('::')[1]
  D[n] = max(D[n], float(d.max()))


parity_test.close = close
clip_test.close = close
from tests.models.parity_test import *
from tests.models.clip_test import *


def test_zz():
  open('/tmp/diffs.txt', 'w').write(
    '\n'.join(f'{v:.2e} {k}' for k, v in D.items())
  )
