"""How many trials share a card, where `resources.per_trial.gpu` is `auto`."""
