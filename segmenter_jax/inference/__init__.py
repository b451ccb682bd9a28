"""Pictures to class maps: sliding windows of any image through one compiled program."""
