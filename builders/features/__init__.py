"""How raw fields and texts become tensors; what a ranker of one's own declares is imported from here."""

from builders.features.encoder import Feature, FeatureEncoder, bag, dense, history, multi_hot, sparse, tokens, vector

__all__ = ["Feature", "FeatureEncoder", "bag", "dense", "history", "multi_hot", "sparse", "tokens", "vector"]
