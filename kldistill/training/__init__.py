"""Teacher states, distillation and fine-tuning, on one loop."""
