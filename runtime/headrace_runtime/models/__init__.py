"""Models from their sources into the node's cache.

`fetching.fetch` is all that others need, with a `cache.Cache`, a `credentials.Credentials` and a `progress.Progress`.
Every source (`hub`, `registry`, `s3`, `web`) gives a `listing.Listing`; from there on all are the same: `transfer`
downloads, `unpack` unpacks, `cache` shows the model when all of it is there. Knows neither vLLM nor the agent.
"""
