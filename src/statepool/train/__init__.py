"""Training: pretraining of the bundled model, GRPO and weight updates."""
