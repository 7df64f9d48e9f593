"""The restoration domain of fewstep: low-quality pictures in, good ones out, in one step."""
