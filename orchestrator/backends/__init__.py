"""Where trials run. Each module is one backend; both pass the contract in orchestrator/testing.py."""
