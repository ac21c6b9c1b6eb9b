"""What several tests share: methods that stop where a test wants them, processes, small data. No tests are in here."""
