"""Crystal graphs: the rule that builds them, arrays, batches, and the one module that knows DGL."""
