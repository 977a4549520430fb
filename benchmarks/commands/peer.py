"""sentence-transformers has no command: the script of its documentation, with the options of the job."""

import json
import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss


def main(folder: str, data: str, out: str, options: str) -> None:
  model = SentenceTransformer(folder, device="cpu")
  model.max_seq_length = 128
  with open(data, encoding="utf-8") as lines:
    rows = Dataset.from_list([json.loads(line) for line in lines])
  arguments = SentenceTransformerTrainingArguments(
      output_dir=out, per_device_train_batch_size=64, learning_rate=2e-5, **json.loads(options))
  trainer = SentenceTransformerTrainer(
      model=model, args=arguments, train_dataset=rows, loss=MultipleNegativesRankingLoss(model))
  trainer.train()
  trainer.save_model()


if __name__ == "__main__":
  main(*sys.argv[1:])
