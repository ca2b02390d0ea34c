"""`cifar.py` in pfl-research (pfl 0.6.0), as its own benchmark does it."""

from __future__ import annotations

import os
import sys
import types

import cifar
import torch
import torch_cnn
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel


class OnDemand(TrainingProcessCallback):
  """A round for each line that is read."""

  def on_train_begin(self, *, model):
    print('ready', flush=True)
    sys.stdin.readline()
    return Metrics()

  def after_central_iteration(self, aggregate_metrics, model, *,
                              central_iteration):  # fmt: skip
    print('done', flush=True)
    return not sys.stdin.readline(), Metrics()


def main() -> None:
  torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
  network = torch_cnn.model()

  def loss(self, x, y, is_eval=False):
    return torch.nn.functional.cross_entropy(self(x), y)

  network.loss = types.MethodType(loss, network)
  network.metrics = types.MethodType(lambda self, x, y, is_eval=False: {},
                                     network)  # fmt: skip
  images = torch_cnn.images()
  labels = torch.from_numpy(cifar.labels())
  data = {
    client: [images[cifar.rows(client)], labels[cifar.rows(client)]]
    for client in range(cifar.CLIENTS)
  }
  sampler = get_user_sampler('random', list(data))
  central = torch.optim.SGD(network.parameters(), 1.0)
  FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
      central_num_iterations=10**6,
      evaluation_frequency=10**6,
      train_cohort_size=cifar.COHORT,
      val_cohort_size=0,
    ),
    backend=SimulatedBackend(
      training_data=FederatedDataset.from_slices(data, sampler),
      val_data=None,
      postprocessors=[WeightByDatapoints()],
    ),
    model=PyTorchModel(network, torch.optim.SGD, central),
    model_train_params=NNTrainHyperParams(
      local_learning_rate=cifar.LEARNING_RATE,
      local_num_epochs=1,
      local_batch_size=cifar.BATCH,
    ),
    callbacks=[OnDemand()],
  )


if __name__ == '__main__':
  main()
