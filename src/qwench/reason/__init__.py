"""Many thoughts for one answer: votes, checked attempts, a small forest; each under one budget of tokens."""
