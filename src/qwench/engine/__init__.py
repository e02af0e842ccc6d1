"""Token ids in, token ids out: request, scheduler, batching, runner, sampling, the one loop, its client."""
