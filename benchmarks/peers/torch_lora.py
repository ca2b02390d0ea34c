"""FedAvg of LoRA and FedMS in PyTorch + PEFT, client after client.

What simulations around Flower or OpenFedLLM do on one device: a model of
transformers, adapters of PEFT, a loop over clients. FedMS is computed as it is
written down: a step of stage 2 runs the base model for the gate, the global
expert, and the local one. Needs torch, transformers and peft.

    python torch_lora.py --clients=8 --steps=5 --batch=32
      [--first=1,1,2 --second=2,2 --validation=32] [--dtype=bfloat16]

A unit of work is a dense round of FedAvg, or, with depths for the rounds of
both stages, a whole run. Rows and models are on the GPU if there is one; with
bfloat16, products are in it by autocast.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import warnings

import peft
import serving
import torch
import transformers
from torch.nn import functional

warnings.filterwarnings('ignore')
transformers.logging.set_verbosity_error()

RANK, ALPHA, LEARNING_RATE, CLASSES = 8, 16, 1e-3, 10
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def backbone(args) -> torch.nn.Module:
  """A ViT of transformers with LoRA of PEFT on queries and values."""
  config = transformers.ViTConfig(
    num_hidden_layers=args.blocks,
    hidden_size=args.width,
    num_attention_heads=args.heads,
    intermediate_size=4 * args.width,
    image_size=args.image,
    patch_size=args.patch,
    num_labels=CLASSES,
    layer_norm_eps=1e-6,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
  )
  model = transformers.ViTForImageClassification(config)
  names = [name for name, _ in model.named_modules()]
  new = any(name.endswith('q_proj') for name in names)
  lora = peft.LoraConfig(
    r=RANK,
    lora_alpha=ALPHA,
    target_modules=['q_proj', 'v_proj'] if new else ['query', 'value'],
    modules_to_save=['classifier'],
  )
  return peft.get_peft_model(model, lora)


class Expert:
  """A model of which LoRA in the top blocks and the head train."""

  def __init__(self, model: torch.nn.Module, blocks: int):
    self.model = model
    self._blocks = blocks
    self._all = {
      name: p for name, p in model.named_parameters() if p.requires_grad
    }

  def values(self) -> dict[str, torch.Tensor]:
    """A copy of all that may train."""
    return {name: p.detach().clone() for name, p in self._all.items()}

  @torch.no_grad()
  def load(self, values) -> None:
    for name, p in self._all.items():
      p.copy_(values[name])

  def activate(self, depth: int) -> list[torch.nn.Parameter]:
    """Parameters of the head and of the top `depth` blocks' LoRA."""
    out = []
    for name, p in self._all.items():
      block = re.search(r'\.layers?\.(\d+)\.', name)
      on = block is None or int(block[1]) >= self._blocks - depth
      p.requires_grad_(on)
      if on:
        out.append(p)
    return out

  def logits(self, images):
    return self.model(pixel_values=images).logits


class Gate(torch.nn.Module):
  """A bottleneck adapter and a linear layer to two experts."""

  def __init__(self, width: int):
    super().__init__()
    self.down = torch.nn.Linear(width, width // 4)
    self.up = torch.nn.Linear(width // 4, width)
    self.linear = torch.nn.Linear(width, 2)

  def forward(self, x):
    x = x + self.up(functional.gelu(self.down(x), approximate='tanh'))
    return torch.softmax(self.linear(x), -1)


def pixels(images):
  """Floats [B, 3, H, W] of uint8 images [B, H, W, 3]."""
  return ((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).contiguous()


def average(parts):
  return {k: sum(part[k] for part in parts) / len(parts) for k in parts[0]}


class Federated:
  """Both stages, over clients with random images."""

  def __init__(self, args):
    self.args = args
    rows = args.steps * args.batch + args.validation
    shape = (args.clients, rows, args.image, args.image, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    self.images = images.to(DEVICE)
    self.labels = torch.randint(0, CLASSES, shape[:2]).to(DEVICE)
    model = backbone(args).to(DEVICE)
    self.base = copy.deepcopy(model).requires_grad_(False)
    self.frozen = Expert(copy.deepcopy(model), args.blocks)
    self.expert = Expert(model, args.blocks)
    self.shared = self.expert.values()

  def batches(self, client: int):
    a = self.args
    order = torch.randperm(a.steps * a.batch).split(a.batch)
    for rows in order:
      yield pixels(self.images[client, rows]), self.labels[client, rows]

  def validation(self, client: int):
    a = self.args
    rows = slice(a.steps * a.batch, None)
    return pixels(self.images[client, rows]), self.labels[client, rows]

  def train(self, client: int, parameters, loss) -> None:
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    for images, labels in self.batches(client):
      optimizer.zero_grad()
      loss(images, labels).backward()
      optimizer.step()

  def global_round(self, depth: int) -> None:
    """FedAvg of LoRA in the top blocks, and the score of the clients."""
    parts = []
    for client in range(self.args.clients):
      self.expert.load(self.shared)
      self.train(
        client,
        self.expert.activate(depth),
        lambda x, y: functional.cross_entropy(self.expert.logits(x), y),
      )
      parts.append(self.expert.values())
    self.shared = average(parts)
    if self.args.validation:
      self.expert.load(self.shared)
      self.score(lambda client, x: self.expert.logits(x))

  @torch.no_grad()
  def score(self, predict) -> float:
    right = []
    for client in range(self.args.clients):
      images, labels = self.validation(client)
      right.append((predict(client, images).argmax(-1) == labels).float())
    return torch.cat(right).mean().item()

  def begin_personal(self) -> None:
    self.frozen.load(self.shared)
    self.frozen.model.requires_grad_(False)
    self.local = [dict(self.shared) for _ in range(self.args.clients)]
    self.gate = Gate(self.args.width).to(DEVICE)
    self.adapter = copy.deepcopy(self.gate.state_dict())

  def mixture(self, images):
    with torch.no_grad():
      inner = self.base.base_model.model.vit(pixel_values=images)
      features = inner.last_hidden_state[:, 0]
      other = self.frozen.logits(images)
    weights = self.gate(features)
    own = self.expert.logits(images)
    return weights[:, :1] * other + weights[:, 1:] * own

  def personal_round(self, depth: int) -> None:
    """Local experts, and FedAvg of the gate."""
    parts = []
    for client in range(self.args.clients):
      self.expert.load(self.local[client])
      self.gate.load_state_dict(self.adapter)
      self.train(
        client,
        [*self.expert.activate(depth), *self.gate.parameters()],
        lambda x, y: functional.cross_entropy(self.mixture(x), y),
      )
      self.local[client] = self.expert.values()
      parts.append(copy.deepcopy(self.gate.state_dict()))
    self.adapter = average(parts)
    self.gate.load_state_dict(self.adapter)

    def predict(client, images):
      self.expert.load(self.local[client])
      return self.mixture(images)

    self.score(predict)

  def whole(self) -> None:
    """Both stages with the depths that SAL chose."""
    for depth in self.args.first:
      self.global_round(depth)
    self.begin_personal()
    for depth in self.args.second:
      self.personal_round(depth)


def main() -> None:
  parser = argparse.ArgumentParser()
  sizes = dict(clients=8, steps=5, batch=32, validation=0, blocks=12,
               width=192, heads=3, image=32, patch=4)  # fmt: skip
  for name, default in sizes.items():
    parser.add_argument(f'--{name}', type=int, default=default)

  def depths(text):
    return [int(part) for part in text.split(',') if part]

  parser.add_argument('--first', type=depths, default=[])
  parser.add_argument('--second', type=depths, default=[])
  parser.add_argument('--dtype', default='float32')
  args = parser.parse_args()
  torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
  run = Federated(args)
  half = torch.autocast(DEVICE, torch.bfloat16, args.dtype == 'bfloat16')

  def unit() -> None:
    with half:
      if args.first:
        run.whole()
      else:
        run.global_round(args.blocks)
    if DEVICE == 'cuda':
      torch.cuda.synchronize()

  serving.serve(unit)


if __name__ == '__main__':
  main()
