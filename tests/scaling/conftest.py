"""What studies of scaling are made on: the corpus that the tiny model wrote."""

from train.conftest import corpus, model, passages  # noqa: F401 - fixtures
