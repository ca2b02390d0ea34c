"""`cifar.py` in Flower's simulation engine: one Ray actor per core."""

from __future__ import annotations

import functools
import os
import sys

import cifar
import torch
import torch_cnn
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation


@functools.cache
def data():
  """What an actor holds for all clients that it plays."""
  torch.set_num_threads(1)
  return torch_cnn.images(), torch.from_numpy(cifar.labels())


class Client(NumPyClient):
  """Trains on the images of one client."""

  def __init__(self, number: int):
    self._rows = cifar.rows(number)

  def fit(self, parameters, config):
    images, labels = (x[self._rows] for x in data())
    network = torch_cnn.model()
    names = network.state_dict().keys()
    values = map(torch.from_numpy, parameters)
    network.load_state_dict(dict(zip(names, values, strict=True)))
    optimizer = torch.optim.SGD(network.parameters(), cifar.LEARNING_RATE)
    for rows in torch.randperm(cifar.EACH).split(cifar.BATCH):
      optimizer.zero_grad()
      out = network(images[rows])
      torch.nn.functional.cross_entropy(out, labels[rows]).backward()
      optimizer.step()
    return arrays(network), cifar.EACH, {}


def arrays(network):
  return [value.numpy() for value in network.state_dict().values()]


class OnDemand(FedAvg):
  """A round for each line that is read."""

  def configure_fit(self, server_round, parameters, client_manager):
    print('done' if server_round > 1 else 'ready', flush=True)
    if not sys.stdin.readline():
      os._exit(0)  # there is no other way out of a simulation
    return super().configure_fit(server_round, parameters, client_manager)


def server(context):
  strategy = OnDemand(
    fraction_fit=cifar.COHORT / cifar.CLIENTS,
    min_fit_clients=cifar.COHORT,
    min_available_clients=cifar.CLIENTS,
    fraction_evaluate=0.0,
    initial_parameters=ndarrays_to_parameters(arrays(torch_cnn.model())),
  )
  return ServerAppComponents(
    strategy=strategy, config=ServerConfig(num_rounds=10**6)
  )


def client(context):
  return Client(int(context.node_config['partition-id'])).to_client()


if __name__ == '__main__':
  run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(client_fn=client),
    num_supernodes=cifar.CLIENTS,
    backend_config={'client_resources': {'num_cpus': 1, 'num_gpus': 0.0}},
  )
