"""What runs inside Triton: `model.py` is copied into the model repository and imports nothing of ours."""
