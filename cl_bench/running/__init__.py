"""From what a user asks for to stored results: plan, device, executors."""
