"""What a search of a folder of images should be: from data, machine and time to configs."""
