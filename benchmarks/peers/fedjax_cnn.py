"""`cifar.py` in FedJAX with its jit back-end."""

from __future__ import annotations

import cifar
import fedjax
import haiku as hk
import jax
import numpy as np
import serving


def pooled(x):
  """2 x 2 max-pooling, as in our model: faster on CPUs than `hk.MaxPool`."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def forward(batch):
  """Logits [B, C]."""
  x = (batch['x'].astype(np.float32) / 255 - 0.5) / 0.25
  for channels in cifar.CHANNELS:
    x = pooled(jax.nn.relu(hk.Conv2D(channels, 3, padding='VALID')(x)))
  x = jax.nn.relu(hk.Linear(cifar.HIDDEN)(hk.Flatten()(x)))
  return hk.Linear(cifar.CLASSES)(x)


def main() -> None:
  fedjax.set_for_each_client_backend('jit')
  images, labels = cifar.images(), cifar.labels().astype(np.int32)
  model = fedjax.create_model_from_haiku(
    transformed_forward_pass=hk.transform(forward),
    sample_batch={'x': images[:1], 'y': labels[:1]},
    train_loss=lambda batch, out: fedjax.metrics.unreduced_cross_entropy_loss(
      batch['y'], out
    ),
  )
  data = fedjax.InMemoryFederatedData(
    {
      b'%04d' % client: {
        'x': images[cifar.rows(client)],
        'y': labels[cifar.rows(client)],
      }
      for client in range(cifar.CLIENTS)
    }
  )
  algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.model_grad(model),
    fedjax.optimizers.sgd(cifar.LEARNING_RATE),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=cifar.BATCH, num_epochs=1),
  )
  sampler = fedjax.client_samplers.UniformGetClientSampler(
    data, cifar.COHORT, seed=0
  )
  params = model.init(jax.random.PRNGKey(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == 167562
  state = [algorithm.init(params)]

  def round():
    state[0], _ = algorithm.apply(state[0], sampler.sample())
    jax.block_until_ready(state[0].params)

  serving.serve(round)


if __name__ == '__main__':
  main()
