"""What a layer keeps: policies that decide which tokens attend, and which are held in how many bits, a file each."""
