"""Inference: predictors, predictions for images, evaluation."""
