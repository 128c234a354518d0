"""How a trial runs: data, the training loop, checkpoints, metrics and pictures. No Ray, Optuna, MLflow or YAML."""
