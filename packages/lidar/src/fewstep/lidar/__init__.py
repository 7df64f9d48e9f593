"""The lidar domain of fewstep: scans in, complete scenes out, in few steps."""
