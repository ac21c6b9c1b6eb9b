"""Images as an indexable uint8 store, batches by gather, views computed on the device."""
