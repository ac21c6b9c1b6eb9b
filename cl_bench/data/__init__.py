"""Image stores (uint8, addressed by index), batches gathered from them, and views computed on the device."""
