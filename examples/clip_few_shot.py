"""CLIP with FedMS on few images of each class, named by class prompts.

python -m examples.clip_few_shot openai/clip-vit-base-patch16 <data> [<shots>]
"""

import sys

import fedms_jax

FEW = {
  'model_head': 'zero_shot',
  'data_public_fraction': 0.0,
  'lora': {'rank': 4, 'alpha': 8.0},
  'partition': {'num_clients': 10, 'unseen_clients': 2},
}


def main(model, data, shots: str = '400', **options):
  given = FEW | {'model': model, 'data': data, 'data_max_rows': int(shots)}
  result = fedms_jax.run(**given | options)
  before, after = (
    result.scores[name]['own_mean'] for name in ('pretrained', 'mixture')
  )
  print(f'zero-shot {100 * before:.1f} %, with FedMS {100 * after:.1f} %')
  return result


if __name__ == '__main__':
  main(*sys.argv[1:])
