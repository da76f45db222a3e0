"""How the demo model is made: corpus, tokenizer, training, evaluation, and a small skill added by QLoRA."""
