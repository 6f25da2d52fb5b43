"""Check of a trained supernet: whether it learned, by the scores of a few fixed paths."""
