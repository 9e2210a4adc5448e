"""Which sequences are alike, the clusters that follow, and the split that keeps clusters whole."""
