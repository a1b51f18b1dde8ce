"""Pretraining: settings, batches, the loop's callbacks and what is measured."""
