"""The data path on the model's device: pixels kept as uint8 where the model is, augmented there in batches."""
