"""The video domain of fewstep: text-to-video pipelines, distilled from prompts."""
