"""Which multiple of t*(K) each loss is best at, on images that no other stage reports."""
