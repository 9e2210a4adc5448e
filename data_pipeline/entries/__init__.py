"""What an entry is and whether it is used: read it, look whether it is sound, gather its facts, judge them."""
