"""CrysAE: encoder, decoder and what the pooled columns are made of."""
